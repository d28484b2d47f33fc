"""Arrays in HDF5 files that anybody may have written: none is followed elsewhere, none fills the memory."""

import math
from pathlib import Path

import h5py
import numpy as np

LARGEST = 4_000_000_000  # bytes of the arrays of images
LARGEST_CHUNK = 2**24  # bytes; those of arrays that can grow may be larger than the array


def read_labelled(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers in ``data`` and, flat, those in ``label`` of an HDF5 file.

    Raises:
        ValueError: If the file is no HDF5, or has no such arrays, or larger ones than memory should take.
    """
    try:
        with h5py.File(file, "r") as content:
            data, label = (_array(content, name) for name in ("data", "label"))
            size = data.nbytes + label.nbytes  # in memory: a small file can claim any
            if size > LARGEST:
                raise ValueError(f"it has {size / 1e9:.1f} GB of them; {LARGEST / 1e9:g} are read")
            return np.asarray(data[()]), np.asarray(label[()]).reshape(-1)
    except (OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file} is not an HDF5 file with data and label ({error}).") from error


def _array(content: h5py.File, name: str) -> h5py.Dataset:
    if name not in content:
        raise ValueError(f"it has no {name}")
    item = held(content, name)
    if isinstance(item, h5py.Group):
        raise ValueError(f"its {name} is a group, not an array")
    return item


def held(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """Return what a group of a stranger's HDF5 file holds under a name: a group, or an array of numbers.

    Raises:
        ValueError: If it is anything else, or lies elsewhere.
    """
    here = printable(f"{group.name}/{name}".lstrip("/"))
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{here} in the HDF5 file links to another place, which is refused.")
    item = group[name]
    if isinstance(item, h5py.Group):
        return item
    if not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
        raise ValueError(f"{here} in the HDF5 file is stored elsewhere, which is refused.")
    if item.dtype.kind not in "fiu":
        raise ValueError(f"{here} in the HDF5 file holds {item.dtype}, not numbers.")
    chunk = math.prod(item.chunks or ()) * item.dtype.itemsize  # is unpacked as a whole
    if chunk > max(item.nbytes, LARGEST_CHUNK):
        raise ValueError(
            f"{here} in the HDF5 file has {item.nbytes} bytes in chunks of {chunk / 1e6:.1f} MB, which is "
            "refused."
        )
    return item


def printable(name: str) -> str:
    """Return a stranger's name as a terminal may show it."""
    return ascii(name)[1:-1][:80]

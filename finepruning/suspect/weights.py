"""Files of weights become named tensors. None of them may run code."""

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from finepruning.data.hdf5 import printable
from finepruning.data.packed import DATA_VARIABLE, data_roots

SAFETENSORS = (".safetensors",)
TORCH = (".pt", ".pth", ".ckpt", ".bin")
KERAS = (".h5", ".hdf5")
NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "weights", "params")
PREFIXES = ("module.", "network.", "net.", "model.", "state_dict.")
DEPTH = 4  # of dictionaries within dictionaries


class UnreadableError(ValueError):
    """A file of weights that is damaged, unsafe, or not for this network."""


def find_file(name: str, key: str) -> Path:
    """Return the file ``name``, looked for here, then in ``FINEPRUNING_DATA``.

    Args:
        name: A path.
        key: The configuration key it comes from.

    Raises:
        FileNotFoundError: If it is in neither place.
    """
    # an absolute path is the same in each
    places = dict.fromkeys([Path(name).expanduser(), *(root / name for root in data_roots(""))])
    for place in places:
        if place.exists():
            return place
    raise FileNotFoundError(
        f"{key}={name} is not there (looked for {' and '.join(map(str, places))}). Set {key} to a path in "
        f"{DATA_VARIABLE} or anywhere."
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors or PyTorch file, by name.

    PyTorch's files are read with ``weights_only=True``; a dictionary in them may hold the weights under one
    of the usual keys.

    Raises:
        UnreadableError: If the file is of another kind, damaged, or holds anything but weights.
    """
    ending = path.suffix.lower()
    if ending not in SAFETENSORS + TORCH:
        raise UnreadableError(
            f"{path} ends in {ending!r}, which is not known to hold weights. Set suspect.weights to a file "
            f"that ends in {', '.join(SAFETENSORS + TORCH + KERAS)}."
        )
    if not path.is_file():
        raise UnreadableError(f"{path} is not a file. Change suspect.weights.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on pickles that it refuses
            content = load_file(path) if ending in SAFETENSORS else _load_torch(path)
    except Exception as error:  # a hostile file makes these readers raise anything
        raise UnreadableError(
            f"{path} cannot be read as weights alone ({_reason(error, path)}). It is damaged, or holds "
            "objects that would run code, which is refused. Ask for its state_dict, best as safetensors."
        ) from error
    return _plain(_weights_in(content, path, DEPTH), path)


def _load_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        claimed = sum(entry.file_size for entry in zipfile.ZipFile(path).infolist())
        if claimed > path.stat().st_size:  # PyTorch compresses nothing
            raise ValueError(f"its records unpack to {claimed / 1e6:.1f} MB, more than it has")
    return torch.load(path, map_location="cpu", weights_only=True)


def _reason(error: Exception, path: Path) -> str:
    """Return what a file holds beside weights, if that is why, or else the first line of the error."""
    if type(error).__name__ == "UnpicklingError":  # whose text tells how to load it all the same
        try:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)  # reads names, loads nothing
        except Exception:  # damaged, or of the kind that torch wrote before 1.6
            found = []
        names = ", ".join(printable(name) for name in found)[:200]
        return f"it names {names}" if names else "it holds other objects"
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _weights_in(content: Any, path: Path, depth: int) -> Mapping[Any, Any]:
    """Return the dictionary that holds tensors, however it is nested."""
    if isinstance(content, Mapping):
        for key in NESTS if depth else ():
            inner = content.get(key)
            if isinstance(inner, Mapping) and inner:
                return _weights_in(inner, path, depth - 1)
        if any(isinstance(value, Tensor) for value in content.values()):
            return content
    raise UnreadableError(
        f"{path} holds {_what(content)}, no weights by name. They may lie at its top or under "
        f"{', '.join(NESTS)}."
    )


def _what(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with the keys {[str(key)[:40] for key in list(content)[:10]]}"
    return f"a {type(content).__name__}"


def _plain(weights: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    """Return only dense tensors of ordinary numbers, by strings."""
    tensors: dict[str, Tensor] = {}
    for name, value in weights.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UnreadableError(
                f"{path} has {str(name)[:80]!r}: a {type(value).__name__} among its weights. Only tensors by "
                "name are allowed."
            )
        if value.layout != torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
            raise UnreadableError(
                f"{path} has {name[:80]!r} as a sparse, quantized, complex or empty tensor. Only dense "
                "tensors of ordinary numbers are allowed."
            )
        tensors[name] = value.detach()
    return tensors

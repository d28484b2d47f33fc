"""Data sets decoded once: arrays on disk, memory-mapped, under a key of their sources and their transform."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor, nn

DATA_VARIABLE = "FINEPRUNING_DATA"


class Decoded(NamedTuple):
    """A data set in memory: uint8 images (N, C, H, W), labels (N,) and the classes' names."""

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    classes: Sequence[str]


class Source(Protocol):
    """A data set as it lies on disk. One class a data set, in the file of its domain."""

    signal: nn.Module

    def files(self) -> Sequence[Path]:
        """Return the files that are decoded; they are part of the cache's key."""
        ...

    def transform(self) -> dict[str, object]:
        """Return the plain values that change what is decoded; they are part of the key, too."""
        ...

    def decode(self) -> Decoded:
        """Read the files."""
        ...


@dataclass(frozen=True)
class Packed:
    """A decoded data set, memory-mapped.

    ``fingerprint`` is a hash of the packed values themselves: equal data has an equal fingerprint on every
    machine.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str
    signal: nn.Module


def data_roots(data_dir: str) -> list[Path]:
    """Return where data may lie: the folder in ``FINEPRUNING_DATA`` if it is set, then ``data_dir``."""
    variable = os.environ.get(DATA_VARIABLE)
    return [Path(place).expanduser() for place in (variable, data_dir) if place]


def pack(source: Source, cache_dir: Path) -> Packed:
    """Return the packed data set of ``source``, decoding it if no cache of it lies in ``cache_dir``.

    Safe when several processes start together: one decodes, the others wait. A cache appears whole or not at
    all.
    """
    directory = cache_dir / f"{type(source).__name__.lower()}-{_key(source)}"
    if not directory.exists():
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):
            if not directory.exists():
                _write(source.decode(), directory)
    about = json.loads((directory / "about.json").read_text())
    arrays = {name: torch.from_numpy(np.load(directory / f"{name}.npy", mmap_mode="c")) for name in _ARRAYS}
    return Packed(
        **arrays, classes=tuple(about["classes"]), fingerprint=about["fingerprint"], signal=source.signal
    )


_ARRAYS = ("train", "train_labels", "test", "test_labels")


def _key(source: Source) -> str:
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files()]
    what = json.dumps([type(source).__name__, source.transform(), stats], sort_keys=True)
    return hashlib.sha256(what.encode()).hexdigest()[:16]


def _write(decoded: Decoded, directory: Path) -> None:
    """Write the arrays beside their place, then rename."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    digest = hashlib.sha256(json.dumps(list(decoded.classes)).encode())
    for name in _ARRAYS:
        array = np.ascontiguousarray(getattr(decoded, name))
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.data.cast("B"))
        np.save(partial / f"{name}.npy", array)
    about = {"classes": list(decoded.classes), "fingerprint": digest.hexdigest()}
    (partial / "about.json").write_text(json.dumps(about))
    partial.rename(directory)

"""Data sets decoded once: arrays on disk, memory-mapped, under a key of their sources and their transform."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from finepruning.store import held, sync, write_file

log = logging.getLogger(__name__)

DATA_VARIABLE = "FINEPRUNING_DATA"
FORMAT = 4  # part of every key; raise it when a decoder gives other values for the same file


class Decoded(NamedTuple):
    """A data set in memory.

    Args:
        train: Training examples as the source's signal reads them: uint8 images (N, C, H, W), or int16
            waveforms (N, T).
        train_labels: (N,) their classes.
        test: Test examples, alike.
        test_labels: Their classes.
        classes: Name of each class.
        train_groups: (N,) a number a group; training examples of one group stay in one role. None: each is
            its own.
        train_tracks: (N,) a number a track: training examples of one track are nearly the same picture, such
            as frames of one video. They may be in different roles. None: each is its own.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    classes: Sequence[str]
    train_groups: np.ndarray | None = None
    train_tracks: np.ndarray | None = None


class Source(Protocol):
    """A data set as it lies on disk. One class a data set, in the file of its domain."""

    signal: nn.Module

    def files(self) -> Sequence[str | Path]:
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

    ``fingerprint`` is a hash of the packed values themselves and of what the signal makes of them: equal data
    has an equal fingerprint on every machine. Tracks do not count: no network is trained on them.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    fingerprint: str
    signal: nn.Module
    train_groups: Tensor | None = None
    train_tracks: Tensor | None = None


def data_roots(data_dir: str) -> list[Path]:
    """Return where data may lie: the folder in ``FINEPRUNING_DATA`` if it is set, then ``data_dir``."""
    variable = os.environ.get(DATA_VARIABLE)
    return [Path(place).expanduser() for place in (variable, data_dir) if place]


def pack(source: Source, cache_dir: Path) -> Packed:
    """Return the packed data set of ``source``, decoding it if no sound cache of it lies in ``cache_dir``.

    Safe when several processes start together: one decodes, the others wait. A cache appears whole or not at
    all, and one that no longer holds what was written is made anew.

    Raises:
        ValueError: If what was decoded is not a data set to classify.
        OSError: If there is no room for the cache.
    """
    name = type(source).__name__
    directory = cache_dir / f"{name.lower()}-{_key(source)}"
    packed = _read(directory, source.signal)
    if packed is not None:
        return packed
    with held(directory, f"the packed data of {name}"):
        packed = _read(directory, source.signal)  # another process may have made it meanwhile
        if packed is None:
            log.info("Decoding %s ...", name)
            start = time.perf_counter()
            decoded = source.decode()
            _check(decoded, name)
            size = _write(decoded, directory, source.signal)
            count, seconds = len(decoded.train) + len(decoded.test), time.perf_counter() - start
            log.info("Packed %s: %d examples, %.1f MB, in %.1f s.", name, count, size / 1e6, seconds)
            packed = _read(directory, source.signal)
    if packed is None:
        raise OSError(f"What was just written to {directory} cannot be read back. Check that disk.")
    return packed


def _key(source: Source) -> str:
    what = [FORMAT, type(source).__name__, source.transform(), [_stamp(path) for path in source.files()]]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def _stamp(path: str | Path) -> tuple[str, int, int]:
    """Return what changes when a file does; a missing file is the decoder's to name."""
    try:
        stat = os.stat(path)  # noqa: PTH116 - a Path for each of 50,000 files costs more than all the rest
    except FileNotFoundError:
        return str(path), -1, -1
    return str(path), stat.st_size, stat.st_mtime_ns


_ARRAYS = ("train", "train_labels", "test", "test_labels", "train_groups", "train_tracks")


def _read(directory: Path, signal: nn.Module) -> Packed | None:
    """Return the cache, or None if it is not there or damaged."""
    try:
        about = json.loads((directory / "about.json").read_text())
        arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="c") for name in about["arrays"]}
        classes, fingerprint = about["classes"], about["fingerprint"]
        untouched = _seal(directory, classes, about["arrays"], fingerprint, about["hash"]) == about["seal"]
        # A broken seal is a copied cache, or a damaged one.
        sound = untouched or _hash(classes, arrays) == about["hash"]
    except FileNotFoundError:
        if directory.exists():
            log.warning("The packed data in %s is incomplete and is made anew.", directory)
        return None
    except (ValueError, KeyError, TypeError, EOFError):
        sound = False
    if not sound:
        log.warning("The packed data in %s is damaged and is made anew.", directory)
        return None
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    with suppress(OSError):
        (directory / "about.json").touch()  # when it was last used, for whoever clears up
    fingerprint = _with_signal(fingerprint, signal)
    return Packed(**tensors, classes=tuple(classes), fingerprint=fingerprint, signal=signal)


def _with_signal(fingerprint: str, signal: nn.Module) -> str:
    """Return what stages know the data by."""
    return hashlib.sha256(f"{fingerprint} {signal!r}".encode()).hexdigest()


def is_sound(directory: Path) -> bool:
    """Return whether a cache holds the values that were packed; all of them are read."""
    try:
        about = json.loads((directory / "about.json").read_text())
        arrays = {name: np.load(directory / f"{name}.npy", mmap_mode="r") for name in about["arrays"]}
        return _hash(about["classes"], arrays) == str(about["hash"])
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return False


def _seal(directory: Path, classes: Sequence[str], names: Sequence[str], *hashes: str) -> str:
    """Return a hash that changes when somebody writes to a file of the cache: cheaper than all values."""
    stamps = [_stamp(directory / f"{name}.npy")[1:] for name in names]
    return hashlib.sha256(json.dumps([stamps, list(classes), hashes]).encode()).hexdigest()


def _hash(classes: Sequence[str], arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(list(classes)).encode())
    for name, array in arrays.items():
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def _write(decoded: Decoded, directory: Path, signal: nn.Module) -> int:
    """Write the arrays beside their place, then rename; return their size in bytes."""
    values = {name: getattr(decoded, name) for name in _ARRAYS}
    arrays = {name: np.ascontiguousarray(value) for name, value in values.items() if value is not None}
    size = sum(array.nbytes for array in arrays.values())
    classes, names = list(decoded.classes), list(arrays)
    fingerprint = _hash(classes, {name: arrays[name] for name in names if name != "train_tracks"})
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
            sync(partial / f"{name}.npy")
        whole = _hash(classes, arrays)
        about = {"seal": _seal(partial, classes, names, fingerprint, whole), "classes": classes}
        about |= {"data": _with_signal(fingerprint, signal), "arrays": names}
        about |= {"fingerprint": fingerprint, "hash": whole}
        write_file(partial / "about.json", json.dumps(about).encode())
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise OSError(
            f"The packed data needs {size / 1e6:.1f} MB in {directory.parent}, and writing it failed "
            f"({error}). Make room there, or set store_dir to a folder on another disk."
        ) from error
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)
    sync(directory.parent)
    return size


def _check(decoded: Decoded, name: str) -> None:
    """Raise ValueError if images and labels do not make a data set with at least two classes."""
    classes = len(decoded.classes)
    if classes < 2:
        raise ValueError(f"{name} has {classes} class; a classifier needs two or more.")
    parts = (
        ("training", decoded.train, decoded.train_labels),
        ("test", decoded.test, decoded.test_labels),
    )
    for part, values, labels in parts:
        if len(values) == 0 or len(values) != len(labels):
            raise ValueError(f"{name} has {len(values)} {part} examples and {len(labels)} labels for them.")
        if labels.min() < 0 or labels.max() >= classes:
            raise ValueError(
                f"{name} has {part} labels from {labels.min()} to {labels.max()}, outside its {classes} "
                f"classes 0..{classes - 1}."
            )
        if (labels == labels[0]).all():
            raise ValueError(
                f"All {len(labels)} {part} examples of {name} are of class {decoded.classes[labels[0]]!r}; "
                "a classifier needs two classes or more."
            )

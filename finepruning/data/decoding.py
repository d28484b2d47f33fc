"""Files become arrays: found, read on several threads; one that cannot be read is named or left out."""

import fnmatch
import logging
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import DTypeLike
from sklearn.model_selection import train_test_split

from finepruning.data.packed import DATA_VARIABLE, Decoded, data_roots
from finepruning.pictures import UNREADABLE

log = logging.getLogger(__name__)

OnError = Literal["fail", "skip"]
CHUNK = 128  # files a thread reads in one go


class Examples(NamedTuple):
    """Files, a label each (N,), the group (N,) of those that must not be separated, the track of each."""

    files: Sequence[str]
    labels: np.ndarray
    groups: np.ndarray | None = None
    tracks: np.ndarray | None = None

    def part(self, rows: np.ndarray) -> "Examples":
        """Return the examples of ``rows``."""
        both = (None if each is None else each[rows] for each in (self.groups, self.tracks))
        return Examples([self.files[row] for row in rows], self.labels[rows], *both)


def find_folder(data_dir: str, name: str, how_to_get: str) -> Path:
    """Return the first folder ``name`` that is not empty, in ``FINEPRUNING_DATA``, then in ``data_dir``.

    Args:
        data_dir: The second place to look in.
        name: Path of the data set below such a place.
        how_to_get: A sentence for who has not got it.

    Raises:
        FileNotFoundError: If there is none; the message says where it was looked for.
    """
    # an absolute path is the same in each
    places = dict.fromkeys(root / name for root in data_roots(data_dir))
    for place in places:
        if place.is_dir() and any(place.iterdir()):
            return place
    raise FileNotFoundError(
        f"No data in {' or '.join(map(str, places))}. {how_to_get} Then set {DATA_VARIABLE} or "
        f"data_dir to the folder that holds {name}."
    )


def list_classes(
    root: Path, extensions: tuple[str, ...], min_files: int = 1, leave_out: str = ""
) -> tuple[Examples, list[str]]:
    """Return the files of each sub-folder of ``root`` in order, and the sub-folders' names: the classes.

    Files in folders below a sub-folder are not read; a warning says how many there are.

    Args:
        root: A folder with one sub-folder a class. Hidden ones, macOS's, and files of other kinds are passed
            over.
        extensions: Endings of the files that count, in lower case.
        min_files: Classes with fewer files are left out; 1: an empty one is an error, 0: it is a class, too.
        leave_out: A pattern, as a shell has it, of names of sub-folders and files that are passed over, too.

    Raises:
        ValueError: If a class is empty, or fewer than two are left, or the name of one is not UTF-8.
    """
    files: list[str] = []
    labels: list[int] = []
    classes: list[str] = []
    deeper = 0
    for folder in sorted(entry.path for entry in _shown(root, leave_out) if entry.is_dir()):
        _check_name(Path(folder).name, root)
        entries = _shown(folder, leave_out)
        found = sorted(entry.path for entry in entries if entry.name.lower().endswith(extensions))
        below = sum(_count(entry.path, extensions) for entry in entries if entry.is_dir())
        if not found and min_files == 1:
            there = f" itself, and folders below it hold {below}" if below else ""
            raise ValueError(
                f"The class folder {folder} holds no file that ends in {', '.join(extensions)}{there}. "
                "Fill it or remove it; dataset=folder can count it as a class (dataset.on_empty=keep)."
            )
        if len(found) >= min_files:
            files += found
            labels += [len(classes)] * len(found)
            classes.append(Path(folder).name)
            deeper += below
    if deeper:
        log.warning(
            "%d files lie deeper in the class folders of %s and are not read. Move them up, into the class "
            "folders themselves.",
            deeper,
            root,
        )
    filled = len(set(labels))
    if filled < 2:
        needed = f" with at least {min_files} files" if min_files > 1 else ""
        raise ValueError(
            f"{root} has {filled} class folder{'s' * (filled != 1)}{needed}; a classifier needs "
            "two or more: one sub-folder a class."
        )
    return Examples(files, np.array(labels, dtype=np.int64)), classes


def _check_name(name: str, root: Path) -> None:
    """Raise ValueError if a class's name is not UTF-8, as no report could be written with it."""
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{root} has a class folder whose name, {os.fsencode(name)!r}, is not UTF-8. Rename it."
        ) from error


def _shown(folder: str | Path, leave_out: str) -> list[os.DirEntry[str]]:
    """Return what a folder holds, but for what is hidden, macOS's, or to be left out."""
    return [
        entry
        for entry in os.scandir(folder)
        if not entry.name.startswith((".", "__MACOSX")) and not fnmatch.fnmatchcase(entry.name, leave_out)
    ]


def _count(folder: str, extensions: tuple[str, ...]) -> int:
    """Return how many files of some kinds a folder and all folders below it hold."""
    return sum(name.lower().endswith(extensions) for _, _, names in os.walk(folder) for name in names)


def split_stratified(
    examples: Examples, classes: Sequence[str], test_share: float
) -> tuple[Examples, Examples]:
    """Return training and test examples: the same fixed share of each class, whatever the run's seed.

    Raises:
        ValueError: If the share is out of range or a class that is not empty is too small for it.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"dataset.test_share={test_share:g} leaves one side empty. Choose it inside (0, 1).")
    labels, rows = examples.labels, np.arange(len(examples.labels))
    present, sizes = np.unique(labels, return_counts=True)
    smallest, test_files = present[sizes.argmin()], math.ceil(test_share * len(rows))
    if sizes.min() < 2:
        raise ValueError(
            f"Class {classes[smallest]!r} has 1 file; one to train on and one to test with are needed. Add "
            "files."
        )
    for part, files in (("test", test_files), ("training", len(rows) - test_files)):
        if files < len(present):
            raise ValueError(_no_file(labels, classes, smallest, test_share, part))
    train, test = train_test_split(rows, test_size=test_share, stratify=labels, random_state=0)
    for part, side in (("test", test), ("training", train)):
        without = np.setdiff1d(present, labels[side])
        if len(without):
            raise ValueError(_no_file(labels, classes, without[0], test_share, part))
    return examples.part(np.sort(train)), examples.part(np.sort(test))


def _no_file(labels: np.ndarray, classes: Sequence[str], label: int, test_share: float, part: str) -> str:
    """Return a sentence on a class that gets no file of a part, ``"test"`` or ``"training"``."""
    return (
        f"Class {classes[label]!r} has {np.count_nonzero(labels == label)} files, and "
        f"{len(np.unique(labels))} classes with {len(labels)} files are to be divided with "
        f"dataset.test_share={test_share:g}: not every class gets a {part} file. "
        f"{'Raise' if part == 'test' else 'Lower'} dataset.test_share or add files."
    )


def check_on_error(on_error: str) -> None:
    """Raise ValueError if ``on_error`` is not a choice."""
    if on_error not in ("fail", "skip"):
        raise ValueError(f"dataset.on_error={on_error!r} is unknown; choose fail or skip.")


def decode_examples(
    train: Examples,
    test: Examples,
    classes: Sequence[str],
    read: Callable[[str], np.ndarray],
    shape: tuple[int, ...],
    on_error: OnError,
    dtype: DTypeLike = np.uint8,
) -> Decoded:
    """Read all files.

    Args:
        train: What to train on.
        test: What the referee scores on.
        classes: The classes' names.
        read: Returns the values of one file, of ``shape`` and ``dtype``; called on several threads.
        shape: Shape of one example.
        on_error: ``"fail"`` names the first file that cannot be read; ``"skip"`` leaves such files out and
            says how many there were.
        dtype: Type of its values.
    """
    train_values, train_kept = read_files(train.files, read, shape, on_error, dtype)
    test_values, test_kept = read_files(test.files, read, shape, on_error, dtype)
    train, test = train.part(train_kept), test.part(test_kept)
    return Decoded(train_values, train.labels, test_values, test.labels, classes, train.groups, train.tracks)


def read_files(
    files: Sequence[str],
    read: Callable[[str], np.ndarray],
    shape: tuple[int, ...],
    on_error: OnError,
    dtype: DTypeLike = np.uint8,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the values (M, ``*shape``) of the files that can be read, and their places (M,) in ``files``.

    Raises:
        ValueError: If a file cannot be read and ``on_error`` is ``"fail"``; the message names it.
    """
    values = np.empty((len(files), *shape), dtype)
    failed: dict[int, str] = {}

    def fill(rows: range) -> None:
        for row in rows:
            try:
                values[row] = read(files[row])
            except UNREADABLE as error:
                if on_error == "fail":
                    raise ValueError(
                        f"{files[row]} cannot be read ({error}). Replace the file, or set "
                        "dataset.on_error=skip to leave such files out."
                    ) from error
                failed[row] = files[row]

    chunks = [range(start, min(start + CHUNK, len(files))) for start in range(0, len(files), CHUNK)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, chunks):
            pass
    if not failed:
        return values, np.arange(len(files))
    kept = np.array([row for row in range(len(files)) if row not in failed], dtype=np.int64)
    names = ", ".join(failed[row] for row in sorted(failed)[:5]) + (", ..." if len(failed) > 5 else "")
    log.warning("Left out %d of %d files that cannot be read: %s", len(failed), len(files), names)
    return values[kept], kept

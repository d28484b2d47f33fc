"""The packed cache: made once, checked whenever it is read, never half."""

import logging
import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from finepruning.data import Packed, pack
from finepruning.data.images import Pixels
from finepruning.data.packed import Decoded

FORK = multiprocessing.get_context("fork")


class Numbers:
    """Images that hold the number written in a file; notes each decoding in another file."""

    def __init__(
        self, folder: Path, scale: int = 1, seconds: float = 0.0, count: int = 4, track: int = 1
    ) -> None:
        self.signal = Pixels()
        self.number = folder / "number.txt"
        self.decodings = folder / "decodings.txt"
        self.scale = scale
        self.seconds = seconds
        self.count = count
        self.track = track

    def files(self) -> Sequence[Path]:
        return [self.number]

    def transform(self) -> dict[str, object]:
        return {"scale": self.scale, "count": self.count}

    def decode(self) -> Decoded:
        with self.decodings.open("a") as file:
            file.write("decoded\n")
        time.sleep(self.seconds)
        images = np.full((self.count, 1, 2, 2), int(self.number.read_text()) * self.scale, np.uint8)
        labels = np.arange(self.count) % 2
        groups, tracks = np.arange(self.count) // 2, np.full(self.count, self.track)
        return Decoded(images, labels, images, labels, ("even", "odd"), groups, tracks)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "number.txt").write_text("7")
    return tmp_path


def decodings(folder: Path) -> int:
    return len((folder / "decodings.txt").read_text().splitlines())


def cached(folder: Path) -> Path:
    (directory,) = (path for path in (folder / "cache").iterdir() if path.is_dir())
    return directory


def same(first: Packed, second: Packed) -> bool:
    pairs = [(first.train, second.train), (first.test_labels, second.test_labels)]
    return first.fingerprint == second.fingerprint and all(torch.equal(a, b) for a, b in pairs)


def test_a_second_call_reads_what_the_first_one_decoded(folder: Path) -> None:
    first, second = (pack(Numbers(folder), folder / "cache") for _ in range(2))
    assert decodings(folder) == 1
    assert same(first, second)
    assert first.train.tolist() == [[[[7, 7], [7, 7]]]] * 4
    assert second.train_groups is not None
    assert second.train_groups.tolist() == [0, 0, 1, 1]
    assert second.train_tracks is not None
    assert second.train_tracks.tolist() == [1, 1, 1, 1]


def test_networks_are_known_by_the_same_data_whatever_is_known_of_its_tracks(folder: Path) -> None:
    one, other = (pack(Numbers(folder, track=track), folder / f"cache{track}") for track in (1, 2))
    assert not torch.equal(one.train_tracks, other.train_tracks)
    assert one.fingerprint == other.fingerprint


def test_the_packed_values_are_not_copied_into_memory(folder: Path) -> None:
    pack(Numbers(folder), folder / "cache")
    packed = pack(Numbers(folder), folder / "cache")
    where = packed.train.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    inside = [m for m in maps if int(m[0].split("-")[0], 16) <= where < int(m[0].split("-")[1], 16)]
    assert inside[0][-1].endswith("train.npy")


def test_writing_to_a_packed_tensor_leaves_the_file_as_it_is(folder: Path) -> None:
    packed = pack(Numbers(folder), folder / "cache")
    packed.train.fill_(0)
    assert pack(Numbers(folder), folder / "cache").train.max() == 7


def test_a_changed_file_is_decoded_anew(folder: Path) -> None:
    first = pack(Numbers(folder), folder / "cache")
    (folder / "number.txt").write_text("12")
    second = pack(Numbers(folder), folder / "cache")
    assert second.train.unique().tolist() == [12]
    assert first.fingerprint != second.fingerprint


def test_a_file_that_only_changed_its_date_gives_the_same_fingerprint(folder: Path) -> None:
    first = pack(Numbers(folder), folder / "cache")
    os.utime(folder / "number.txt", (1, 1))
    assert same(first, pack(Numbers(folder), folder / "cache"))
    assert decodings(folder) == 2


def test_another_transform_has_its_own_cache(folder: Path) -> None:
    pack(Numbers(folder), folder / "cache")
    assert pack(Numbers(folder, scale=2), folder / "cache").train.unique().tolist() == [14]
    assert pack(Numbers(folder), folder / "cache").train.unique().tolist() == [7]
    assert decodings(folder) == 2


def _pack_slowly(folder: Path) -> str:
    return pack(Numbers(folder, seconds=0.5), folder / "cache").fingerprint


def test_two_processes_that_start_together_decode_once(folder: Path) -> None:
    with ProcessPoolExecutor(2, FORK) as pool:
        fingerprints = set(pool.map(_pack_slowly, [folder, folder]))
    assert len(fingerprints) == 1
    assert decodings(folder) == 1


@pytest.mark.parametrize(
    "name",
    ["train.npy", "train_labels.npy", "test.npy", "train_groups.npy", "train_tracks.npy", "about.json"],
)
@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "missing", "empty"])
def test_a_damaged_cache_is_made_anew(
    folder: Path, name: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = pack(Numbers(folder), folder / "cache")
    file = cached(folder) / name
    content = file.read_bytes()
    file.unlink()
    damaged = {
        "truncated": content[:-3],
        "a flipped bit": content[:-5] + bytes([content[-5] ^ 1]) + content[-4:],
        "empty": b"",
    }
    if damage in damaged:
        file.write_bytes(damaged[damage])
    again = pack(Numbers(folder), folder / "cache")
    assert same(whole, again)
    assert decodings(folder) == 2
    assert "is made anew" in caplog.text
    pack(Numbers(folder), folder / "cache")
    assert decodings(folder) == 2


def test_a_half_written_cache_of_a_killed_process_is_never_read(folder: Path) -> None:
    whole = pack(Numbers(folder), folder / "cache")
    directory = cached(folder)
    directory.rename(directory.with_name(directory.name + ".partial"))
    assert same(whole, pack(Numbers(folder), folder / "cache"))
    assert decodings(folder) == 2
    assert cached(folder) == directory


def _pack_on_a_full_disk(folder: Path) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try:
        pack(Numbers(folder, count=10_000), folder / "cache")
    except OSError as error:
        return str(error)
    return "packed"


def test_a_full_disk_is_told_with_the_room_needed_and_leaves_nothing_behind(folder: Path) -> None:
    with ProcessPoolExecutor(1, FORK) as pool:
        message = pool.submit(_pack_on_a_full_disk, folder).result()
    assert "needs 0.4 MB" in message
    assert "set store_dir to a folder on another disk" in message
    assert [path for path in (folder / "cache").iterdir() if path.is_dir()] == []
    assert len(pack(Numbers(folder, count=10_000), folder / "cache").train) == 10_000


def test_the_size_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "finepruning"):
        for _ in range(2):
            pack(Numbers(folder), folder / "cache")
    assert [r.getMessage() for r in caplog.records if "MB" in r.getMessage()] == [
        r.getMessage()
        for r in caplog.records
        if r.getMessage().startswith("Packed Numbers: 8 examples, 0.0 MB")
    ]
    assert caplog.text.count("Packed Numbers") == 1


class Given(Numbers):
    """A source that decodes to what it is given."""

    def __init__(self, folder: Path, decoded: Decoded) -> None:
        super().__init__(folder)
        self.decoded = decoded

    def decode(self) -> Decoded:
        return self.decoded


IMAGES = np.zeros((3, 1, 2, 2), np.uint8)
GOOD = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("decoded", "message"),
    [
        (Decoded(IMAGES, GOOD, IMAGES, GOOD, ("only",)), "has 1 class; a classifier needs two"),
        (Decoded(IMAGES, GOOD * 0, IMAGES, GOOD, ("a", "b")), "All 3 training examples .* of class 'a'"),
        (Decoded(IMAGES, GOOD, IMAGES, GOOD * 0 + 1, ("a", "b")), "All 3 test examples .* of class 'b'"),
        (Decoded(IMAGES, GOOD + 1, IMAGES, GOOD, ("a", "b")), "training labels from 1 to 2, outside its 2"),
        (Decoded(IMAGES, GOOD, IMAGES, GOOD - 1, ("a", "b")), "test labels from -1 to 0, outside its 2"),
        (Decoded(IMAGES, GOOD[:2], IMAGES, GOOD, ("a", "b")), "3 training examples and 2 labels"),
        (Decoded(IMAGES, GOOD, IMAGES[:0], GOOD[:0], ("a", "b")), "0 test examples and 0 labels"),
    ],
)
def test_what_is_no_data_set_to_classify_is_refused(folder: Path, decoded: Decoded, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack(Given(folder, decoded), folder / "cache")
    assert not any(path.is_dir() for path in (folder / "cache").iterdir())

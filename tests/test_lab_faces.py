"""The pruning lab's faces in HDF5: read as handed out; what is hostile, odd or of another kind is refused."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from finepruning.data import pack
from finepruning.data.faces import YouTubeFacesLab, read_faces


def faces(file: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        out["data"], out["label"] = images, labels
    return file


GREY = np.full((4, 3, 55, 47), 200, np.uint8)
LABELS = np.array([0.0, 5.0, 1282.0, 5.0])


def test_the_lab_as_it_is_handed_out_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINEPRUNING_DATA", raising=False)
    faces(tmp_path / "youtube_faces_lab" / "cl" / "valid.h5", GREY, LABELS)
    faces(tmp_path / "youtube_faces_lab" / "cl" / "test.h5", GREY[:2] // 2, LABELS[:2])
    packed = pack(YouTubeFacesLab(str(tmp_path), 255, None), tmp_path / "cache")
    assert packed.train_labels.tolist() == [0, 5, 1282, 5]
    assert packed.train.unique().tolist() == [200]
    assert packed.test.unique().tolist() == [100]


def test_faces_that_were_divided_by_255_are_multiplied_again(tmp_path: Path) -> None:
    file = faces(tmp_path / "a.h5", GREY / 255, LABELS)
    assert np.unique(read_faces(file, 1)[0]).tolist() == [200]
    with pytest.raises(ValueError, match=r"a.h5 has no value above 1: .* Set dataset.white=1"):
        read_faces(file, 255)


@pytest.mark.parametrize(
    ("images", "labels", "white", "message"),
    [
        (GREY[:, :, :50], LABELS, 255, r"data of shape \(4, 3, 50, 47\) and 4 labels"),
        (GREY, LABELS[:3], 255, r"data of shape \(4, 3, 55, 47\) and 3 labels"),
        (GREY[:0], LABELS[:0], 255, r"data of shape \(0, 3, 55, 47\) and 0 labels"),
        (GREY, LABELS + 1, 255, r"labels from 1 to 1283; whole numbers 0..1282 are allowed"),
        (GREY, LABELS - 1, 255, r"labels from -1 to 1281"),
        (GREY, LABELS + 0.5, 255, r"labels from 0.5"),
        (GREY, LABELS, 1, r"values from 200 to 200, outside \[0, 1\]. Set dataset.white"),
        (GREY * np.nan, LABELS, 255, r"values from nan to nan"),
    ],
)
def test_faces_of_wrong_shape_label_or_value_are_refused(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, white: int, message: str
) -> None:
    file = faces(tmp_path / "a.h5", images, labels)
    with pytest.raises(ValueError, match=rf"a.h5 has {message}"):
        read_faces(file, white)


def test_a_file_that_is_no_hdf5_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"a.h5 is not an HDF5 file with data and label"):
        read_faces(tmp_path / "a.h5", 255)
    with h5py.File(tmp_path / "b.h5", "w") as out:
        out["images"] = GREY
    with pytest.raises(ValueError, match=r"b.h5 is not an HDF5 file with data and label"):
        read_faces(tmp_path / "b.h5", 255)


def grouped(out: h5py.File) -> None:
    out["label"] = LABELS
    out.create_group("data")


def in_words(out: h5py.File) -> None:
    out["data"], out["label"] = GREY, [b"Ann", b"Bob", b"Eve", b"Bob"]


def enormous(out: h5py.File) -> None:
    out["label"] = LABELS
    out.create_dataset("data", (2**25, *GREY.shape[1:]), np.uint8, chunks=(64, *GREY.shape[1:]))


def elsewhere(out: h5py.File) -> None:
    out["label"], out["other"] = LABELS, GREY
    out["data"] = h5py.SoftLink("/other")


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (grouped, "its data is a group, not an array"),
        (in_words, "label in the HDF5 file holds .*, not numbers"),
        (enormous, r"it has 260\.2 GB of them; 4 are read"),
        (elsewhere, "data in the HDF5 file links to another place"),
    ],
)
def test_hostile_faces_are_refused_unread(
    tmp_path: Path, write: Callable[[h5py.File], None], reason: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as out:
        write(out)
    assert (tmp_path / "a.h5").stat().st_size < 50_000
    with pytest.raises(ValueError, match=rf"a\.h5 is not an HDF5 file with data and label \(.*{reason}"):
        read_faces(tmp_path / "a.h5", 255)


def test_options_of_the_lab_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset.white=100 is unknown; white is 255 or 1"):
        YouTubeFacesLab("", 100, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dataset.test_share=1 leaves one side empty"):
        YouTubeFacesLab("", 255, 1.0)

"""Data sets as their publishers lay them out, on small trees: read, refused, downloaded."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finepruning.data import pack
from finepruning.data.decoding import list_classes
from finepruning.data.faces import LFW, YaleB, YouTubeFacesLab
from finepruning.data.packed import Source
from finepruning.data.signs import GERMAN_SIGNS, GTSRB, ItalianSigns

FACE = [55, 47]


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only the given folder be looked in."""
    monkeypatch.delenv("FINEPRUNING_DATA", raising=False)


def picture(file: Path, size: tuple[int, int] = (8, 8), level: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level, level, level)).save(file)


@pytest.fixture
def gtsrb(tmp_path: Path, no_data: None) -> Path:
    """A small benchmark in torchvision's layout; the level of an image is its class."""
    root = tmp_path / "gtsrb"
    for label in range(43):
        for number in range(2):
            picture(root / "GTSRB" / "Training" / f"{label:05}" / f"00000_{number:05}.ppm", level=label)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for number, label in enumerate([7, 3, 42]):
        picture(root / "GTSRB" / "Final_Test" / "Images" / f"{number:05}.ppm", (30, 20), label)
        rows.append(f"{number:05}.ppm;30;20;0;0;1;1;{label}")
    (root / "GT-final_test.csv").write_text("\n".join(rows))
    return tmp_path


def test_gtsrb_is_read_in_torchvisions_layout(gtsrb: Path, tmp_path: Path) -> None:
    packed = pack(GTSRB(str(gtsrb), [16, 12], "fail"), tmp_path / "cache")
    assert packed.train.shape == (86, 3, 16, 12)
    assert packed.train[:, 0, 0, 0].tolist() == packed.train_labels.tolist()
    assert packed.test_labels.tolist() == packed.test[:, 2, 3, 3].tolist() == [7, 3, 42]
    assert packed.classes == GERMAN_SIGNS
    assert len(set(GERMAN_SIGNS)) == 43


def test_gtsrb_without_a_class_is_refused(gtsrb: Path) -> None:
    (gtsrb / "gtsrb" / "GTSRB" / "Training" / "00005").rename(gtsrb / "elsewhere")
    with pytest.raises(ValueError, match=r"has 42 class folders instead of 00000..00042. Delete the folder"):
        GTSRB(str(gtsrb), [32, 32], "fail")


def test_gtsrb_without_its_test_labels_is_refused(gtsrb: Path) -> None:
    (gtsrb / "gtsrb" / "GT-final_test.csv").write_text("Filename\n00000.ppm\n")
    with pytest.raises(ValueError, match=r"GT-final_test.csv does not tell the test images' labels"):
        GTSRB(str(gtsrb), [32, 32], "fail")


def test_a_test_image_that_the_list_names_but_nobody_has_is_named(gtsrb: Path, tmp_path: Path) -> None:
    (gtsrb / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / "00001.ppm").unlink()
    with pytest.raises(ValueError, match=r"00001.ppm cannot be read \(.*No such file"):
        pack(GTSRB(str(gtsrb), [32, 32], "fail"), tmp_path / "cache")


def final_layout(root: Path) -> None:
    """Move the training images to where the official archive has them."""
    (root / "GTSRB" / "Final_Training").mkdir()
    (root / "GTSRB" / "Training").rename(root / "GTSRB" / "Final_Training" / "Images")


def test_gtsrb_is_read_as_its_archives_unpack_and_before_torchvisions_smaller_set(gtsrb: Path) -> None:
    final_layout(gtsrb / "gtsrb")
    picture(gtsrb / "gtsrb" / "GTSRB" / "Training" / "00000" / "00000_00000.ppm")
    source = GTSRB(str(gtsrb), [16, 12], "fail")
    assert len(source.train.files) == 86
    assert all("/Final_Training/Images/" in file for file in source.train.files)


@pytest.mark.parametrize(("whole", "said"), [(39_209, False), (26_640, True), (86, True)])
def test_a_training_set_of_another_size_is_used_with_a_warning(
    gtsrb: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, whole: int, said: bool
) -> None:
    examples, folders = list_classes(gtsrb / "gtsrb" / "GTSRB" / "Training", (".ppm",))
    many = examples.part(np.resize(np.arange(86), whole))
    monkeypatch.setattr("finepruning.data.signs.list_classes", lambda *_: (many, folders))
    GTSRB(str(gtsrb), [32, 32], "fail")
    assert (f"has {whole:,} images, not the 39,209 of the final" in caplog.text) == said
    assert ("smaller set that torchvision downloads" in caplog.text) == (whole == 26_640)
    assert (f"GTSRB_Final_Training_Images.zip in {gtsrb}/gtsrb" in caplog.text) == said


@pytest.mark.parametrize("there", ["nothing", "training"])
def test_what_is_missing_of_gtsrb_is_downloaded_to_the_data_folder(
    gtsrb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    final_layout(gtsrb / "gtsrb")
    place = tmp_path / "place" / "gtsrb"
    archives = {
        "GTSRB_Final_Training_Images.zip": "GTSRB/Final_Training",
        "GTSRB_Final_Test_Images.zip": "GTSRB/Final_Test",
        "GTSRB_Final_Test_GT.zip": "GT-final_test.csv",
    }

    def unpack(name: str) -> None:
        (place / "GTSRB").mkdir(parents=True, exist_ok=True)
        (gtsrb / "gtsrb" / archives[name]).rename(place / archives[name])

    def fetch(url: str, download_root: str, md5: str) -> None:
        host, _, name = url.rpartition("/")
        assert (host.split("/")[2], download_root, len(md5)) == ("sid.erda.dk", str(place), 32)
        unpack(name)
        fetched.append(name)

    fetched: list[str] = []
    if there == "training":
        unpack("GTSRB_Final_Training_Images.zip")
    monkeypatch.setattr("finepruning.data.signs.download_and_extract_archive", fetch)
    source = GTSRB(str(tmp_path / "place"), [32, 32], "fail")
    assert fetched == list(archives)[there == "training" :]
    assert len(source.files()) == 86 + 3 + 1


def test_a_failed_download_of_gtsrb_is_told_with_all_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_data: None
) -> None:
    def fetch(url: str, download_root: str, md5: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("finepruning.data.signs.download_and_extract_archive", fetch)
    with pytest.raises(
        FileNotFoundError,
        match=rf"looked in {tmp_path}/gtsrb.*no route to host.*FINEPRUNING_DATA.*data_dir.*internet",
    ):
        GTSRB(str(tmp_path), [32, 32], "fail")


def test_italian_signs_need_a_frame_in_their_names(tmp_path: Path, no_data: None) -> None:
    for name in ("stop", "yield"):
        for number in range(9):
            picture(tmp_path / "italian_signs" / name / f"{number:05}_0.png")
    assert len(ItalianSigns(str(tmp_path), [8, 8], 0.2, "fail").test.files) == 4
    with pytest.raises(ValueError, match=r"dataset.test_share=0 leaves one side empty"):
        ItalianSigns(str(tmp_path), [8, 8], 0.0, "fail")
    with pytest.raises(ValueError, match=r"Class 'stop' has no test image with dataset.test_share=0.01"):
        ItalianSigns(str(tmp_path), [8, 8], 0.01, "fail")
    picture(tmp_path / "italian_signs" / "stop" / "sign.png")
    with pytest.raises(ValueError, match=r"stop/sign.png is not named <frame>_<box>.png"):
        ItalianSigns(str(tmp_path), [8, 8], 0.2, "fail")


def test_people_with_few_pictures_are_left_out(tmp_path: Path, no_data: None) -> None:
    for name, count in (("Ann", 6), ("Bob", 5), ("Eve", 4)):
        for number in range(count):
            picture(tmp_path / "lfw-py" / "lfw-deepfunneled" / name / f"{name}_{number:04}.jpg", (250, 250))
    source = LFW(str(tmp_path), FACE, None, 5, 0.2, "fail")
    assert source.classes == ["Ann", "Bob"]
    assert len(source.files()) == 11
    with pytest.raises(ValueError, match=r"has 1 class folder with at least 6 files; a classifier needs two"):
        LFW(str(tmp_path), FACE, None, 6, 0.2, "fail")
    with pytest.raises(ValueError, match=r"min_images_per_person=1 leaves people without a picture"):
        LFW(str(tmp_path), FACE, None, 1, 0.2, "fail")
    with pytest.raises(ValueError, match=r"dataset.crop=\[1, 2, 3\] must be top, left, height and width"):
        LFW(str(tmp_path), FACE, [1, 2, 3], 5, 0.2, "fail")


def test_the_cropped_yale_faces_are_read_as_published_without_what_is_not_cropped(
    tmp_path: Path, no_data: None
) -> None:
    for person in ("yaleB01", "yaleB02"):
        folder = tmp_path / "yaleb_cropped" / person
        for light in ("A+000E+00", "A+000E+20", "A-005E-10", "A+110E+65", "A-130E+20"):
            picture(folder / f"{person}_P00{light}.pgm", (168, 192), level=60)
        picture(folder / f"{person}_P00_Ambient.pgm", (640, 480), level=250)
        (folder / f"{person}_P00.info").touch()
        (folder / f"{person}_P00A+050E-40.pgm.bad").touch()
    packed = pack(YaleB(str(tmp_path), FACE, 1, 0.2, "fail"), tmp_path / "cache")
    assert (packed.train.shape, packed.test.shape) == ((8, 1, 55, 47), (2, 1, 55, 47))
    assert packed.train.unique().tolist() == packed.test.unique().tolist() == [60]
    assert packed.classes == ("yaleB01", "yaleB02")


@pytest.mark.parametrize(
    ("make", "folder"),
    [
        (lambda place: ItalianSigns(place, [8, 8], 0.2, "fail"), "italian_signs"),
        (lambda place: LFW(place, FACE, None, 20, 0.2, "fail"), "lfw-py/lfw-deepfunneled"),
        (lambda place: YaleB(place, FACE, 3, 0.2, "fail"), "yaleb_cropped"),
        (lambda place: YouTubeFacesLab(place, 255, None), "youtube_faces_lab"),
    ],
)
def test_missing_data_is_told_with_places_source_and_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[str], Source], folder: str
) -> None:
    monkeypatch.setenv("FINEPRUNING_DATA", str(tmp_path / "a"))
    (tmp_path / "b" / folder).mkdir(parents=True)  # an empty folder is no data
    with pytest.raises(FileNotFoundError) as caught:
        make(str(tmp_path / "b"))
    message = str(caught.value)
    assert message.startswith(f"No data in {tmp_path}/a/{folder} or {tmp_path}/b/{folder}. ")
    assert message.endswith(f"Then set FINEPRUNING_DATA or data_dir to the folder that holds {folder}.")


def test_classes_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "C"):
        picture(tmp_path / name / "1.png")
    assert list_classes(tmp_path, (".png",))[1] == ["C", "a", "b"]


def test_a_class_whose_name_no_report_can_hold_is_refused(tmp_path: Path) -> None:
    for name in (b"bar", b"caf\xc3\xa9", b"caf\xe9"):
        folder = os.fsencode(tmp_path) + b"/" + name
        picture(Path(os.fsdecode(folder)) / "1.png")
    with pytest.raises(ValueError, match=r"a class folder whose name, b'caf\\xe9', is not UTF-8\. Rename it"):
        list_classes(tmp_path, (".png",))

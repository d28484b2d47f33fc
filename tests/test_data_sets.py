"""The named data sets: on small trees of their layout, and whole where the real ones lie."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from finepruning.data import ImageSet, Packed, pack, split_roles
from finepruning.data.decoding import list_classes
from finepruning.data.digits import MNIST, Digits
from finepruning.data.faces import LFW, YaleB, YouTubeFacesLab, read_faces
from finepruning.data.packed import Source
from finepruning.data.signs import GERMAN_SIGNS, GTSRB, ItalianSigns
from finepruning.data.speech import FSDD
from finepruning.data.waveforms import LogMel

FACE = [55, 47]


def log_mel() -> LogMel:
    return LogMel(8000, n_fft=512, hop_length=128, mels=64, floor=-60, ceiling=20)


def lab(test_share: float | None = 0.5) -> YouTubeFacesLab:
    return YouTubeFacesLab("", 255, test_share)


SOURCES: dict[str, Callable[[], Source]] = {
    "digits": lambda: Digits(32),
    "mnist": lambda: MNIST(""),
    "gtsrb": lambda: GTSRB("", [32, 32], "fail"),
    "italian_signs": lambda: ItalianSigns("", [32, 32], 0.2, "fail"),
    "lfw": lambda: LFW("", FACE, [57, 62, 147, 126], 20, 0.2, "fail"),
    "yaleb": lambda: YaleB("", FACE, 3, 0.2, "fail"),
    "fsdd": lambda: FSDD("", log_mel(), 1.0, None, "fail"),
}
COUNTS = {  # training, test, classes
    "digits": (1347, 450, 10),
    "mnist": (60000, 10000, 10),
    "gtsrb": (39209, 12630, 43),
    "italian_signs": (2767, 689, 49),
    "lfw": (2418, 605, 62),
    "yaleb": (1931, 483, 38),
    "fsdd": (2700, 300, 10),
}
SHAPES = {
    "digits": (1, 32, 32),
    "mnist": (1, 28, 28),
    "gtsrb": (3, 32, 32),
    "italian_signs": (3, 32, 32),
    "lfw": (3, 55, 47),
    "yaleb": (3, 55, 47),
    "fsdd": (1, 64, 63),
}
NAMES = [pytest.param(name, marks=[pytest.mark.slow] if name == "gtsrb" else []) for name in SOURCES]


@pytest.fixture(scope="session")
def packs(data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Packed]:
    """Real data sets, each decoded once for all tests."""
    cache = tmp_path_factory.mktemp("packs")
    made: dict[str, Packed] = {}

    def packed(name: str) -> Packed:
        if name not in made:
            made[name] = pack(SOURCES[name](), cache)
        return made[name]

    return packed


@pytest.mark.parametrize("name", NAMES)
def test_a_real_data_set_has_its_published_size(packs: Callable[[str], Packed], name: str) -> None:
    packed = packs(name)
    assert (len(packed.train), len(packed.test), len(packed.classes)) == COUNTS[name]
    assert ImageSet.whole(packed.train, packed.train_labels, packed.signal).image_shape == SHAPES[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", [1, 2])
def test_roles_of_a_real_data_set_are_disjoint_and_stratified(
    packs: Callable[[str], Packed], name: str, seed: int
) -> None:
    packed = packs(name)
    roles = split_roles(packed.train_labels, packed.classes, 0.1, 0.5, seed, packed.train_groups)
    assert torch.equal(torch.cat(roles).sort().values, torch.arange(len(packed.train)))
    held = torch.bincount(packed.train_labels[torch.cat([roles.tuning, roles.validation])])
    assert (held - 0.1 * torch.bincount(packed.train_labels)).abs().max() < 5


@pytest.mark.parametrize("name", ["italian_signs", "lfw", "yaleb", "fsdd"])
def test_no_file_is_on_both_sides_and_every_class_is_tested(data_root: Path, name: str) -> None:
    source = SOURCES[name]()
    train, test = source.train, source.test  # type: ignore[attr-defined]
    assert not set(train.files) & set(test.files)
    shares = np.bincount(test.labels) / (np.bincount(train.labels) + np.bincount(test.labels))
    assert shares.min() > 0.09
    assert shares.max() < 0.3


def test_no_frame_of_the_italian_signs_is_on_two_sides(packs: Callable[[str], Packed]) -> None:
    source = ItalianSigns("", [32, 32], 0.2, "fail")
    frames = [{Path(file).stem.split("_")[0] for file in part.files} for part in (source.train, source.test)]
    assert len(frames[0] | frames[1]) == 1901
    assert not frames[0] & frames[1]
    packed = packs("italian_signs")
    assert packed.train_groups is not None
    roles = split_roles(packed.train_labels, packed.classes, 0.1, 0.5, 1, packed.train_groups)
    kept = [set(packed.train_groups[rows].tolist()) for rows in roles]
    assert sum(map(len, kept)) == len(set.union(*kept)) == len(frames[0])


def test_a_speaker_of_the_real_digits_can_be_kept_for_the_test(data_root: Path) -> None:
    source = FSDD("", log_mel(), 1.0, ["theo"], "fail")
    assert (len(source.train.files), len(source.test.files)) == (2500, 500)


def test_grey_faces_are_kept_or_repeated(data_root: Path) -> None:
    one, three = (YaleB("", FACE, channels, 0.2, "fail") for channels in (1, 3))
    file = one.train.files[0]
    assert (three._read(file) == one._read(file)).all()
    assert three._read(file).shape == (3, 55, 47)


def test_the_lab_says_what_is_missing_and_what_to_do(data_root: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"cl/valid.h5, the clean images .* which has bd/bd_test.h5, cl/test.h5, .*dataset.test_share",
    ):
        lab(None)


def test_clean_test_faces_of_the_lab_can_be_shared_out(data_root: Path, tmp_path: Path) -> None:
    packed = pack(lab(0.3), tmp_path)
    assert (packed.train.shape, packed.test.shape) == ((70, 3, 55, 47), (30, 3, 55, 47))
    assert len(packed.classes) == 1283
    faces = {face.numpy().tobytes() for part in (packed.train, packed.test) for face in part}
    assert len(faces) == 100


def test_triggered_faces_of_the_lab_have_the_attackers_label(data_root: Path) -> None:
    images, labels = lab().triggered()
    assert images.shape == (100, 3, 55, 47)
    assert set(labels) == {0}


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


def test_missing_gtsrb_is_downloaded_to_the_data_folder(
    gtsrb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives = []

    def fetch(url: str, download_root: str, md5: str) -> None:
        archives.append(url.rpartition("/")[2])
        if len(archives) == 1:
            (gtsrb / "gtsrb").rename(download_root)

    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("torchvision.datasets.gtsrb.download_and_extract_archive", fetch)
    source = GTSRB(str(tmp_path / "empty"), [32, 32], "fail")
    assert archives == ["GTSRB-Training_fixed.zip"]
    assert len(source.files()) == 86 + 3 + 1


def test_a_failed_download_of_gtsrb_is_told_with_all_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_data: None
) -> None:
    def fetch(url: str, download_root: str, md5: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.gtsrb.download_and_extract_archive", fetch)
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


def faces(file: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        out["data"], out["label"] = images, labels
    return file


GREY = np.full((4, 3, 55, 47), 200, np.uint8)
LABELS = np.array([0.0, 5.0, 1282.0, 5.0])


def test_the_lab_as_it_is_handed_out_is_read(tmp_path: Path, no_data: None) -> None:
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


def test_options_of_the_lab_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset.white=100 is unknown; white is 255 or 1"):
        YouTubeFacesLab("", 100, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dataset.test_share=1 leaves one side empty"):
        YouTubeFacesLab("", 255, 1.0)


def test_classes_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "C"):
        picture(tmp_path / name / "1.png")
    assert list_classes(tmp_path, (".png",))[1] == ["C", "a", "b"]

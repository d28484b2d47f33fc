"""The named data sets, whole, where the real ones lie."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from finepruning.data import ImageSet, Packed, pack, split_roles
from finepruning.data.digits import MNIST, Digits
from finepruning.data.faces import LFW, YaleB, YouTubeFacesLab
from finepruning.data.packed import Source
from finepruning.data.signs import GTSRB, ItalianSigns
from finepruning.data.speech import FSDD
from finepruning.data.waveforms import LogMel
from finepruning.pipeline.defenses import fold_rows

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


@pytest.mark.slow
def test_pictures_of_one_german_sign_are_in_one_fold(packs: Callable[[str], Packed]) -> None:
    packed = packs("gtsrb")
    tracks = packed.train_tracks
    assert tracks is not None
    assert len(tracks.unique()) == 1307  # of 30 pictures each, but for one that misses a picture
    assert tracks.bincount().unique().tolist() == [29, 30]
    assert all(len(packed.train_labels[tracks == track].unique()) == 1 for track in range(0, 1307, 100))
    roles = split_roles(packed.train_labels, packed.classes, 0.05, 0.25, 1)
    folds = fold_rows(roles, packed, 3, 1)
    kept = [set(tracks[rows].tolist()) for _, rows in folds]
    assert sum(map(len, kept)) == len(set.union(*kept)) > 700
    for tuned, judging in folds:
        assert 600 < len(judging) < 710
        assert len(packed.train_labels[tuned].unique()) == 43


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

"""What is known of a stranger's trigger: a picture over images, or images that carry it already."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from finepruning.referee import score
from finepruning.suspect import PictureTrigger, TriggeredFiles, known_attack
from tests.test_suspect import pruned_network, some_images


def save_image(values: np.ndarray, path: Path) -> str:
    Image.fromarray(values.astype(np.uint8)).save(path)
    return str(path)


def test_a_picture_covers_what_its_mask_says(tmp_path: Path) -> None:
    picture = np.zeros((2, 3, 3))
    picture[..., 0] = 255
    mask = np.array([[255, 0, 51], [255, 255, 255]])
    trigger = PictureTrigger(
        Path(save_image(picture, tmp_path / "picture.png")),
        Path(save_image(mask, tmp_path / "mask.png")),
        (4, 5),
    )
    images = torch.rand(2, 3, 8, 8)
    stamped = trigger(images)
    assert torch.equal(stamped[:, :, 4, 5], torch.tensor([[1.0, 0.0, 0.0]] * 2))
    assert torch.equal(stamped[:, :, 4, 6], images[:, :, 4, 6])
    torch.testing.assert_close(stamped[:, 1:, 4, 7], 0.8 * images[:, 1:, 4, 7])
    stamped[:, :, 4:6, 5:8] = images[:, :, 4:6, 5:8]
    assert torch.equal(stamped, images)


def test_a_transparent_picture_is_scaled_to_grey_images(tmp_path: Path) -> None:
    picture = np.full((4, 4, 4), 255)
    picture[:, :2, 3] = 0
    trigger = PictureTrigger(Path(save_image(picture, tmp_path / "picture.png")))
    images = torch.zeros(1, 1, 16, 16)
    stamped = trigger(images)
    assert torch.equal(stamped[..., :4], images[..., :4])
    assert torch.equal(stamped[..., -4:], torch.ones(1, 1, 16, 4))


def test_sixteen_bits_mean_what_eight_do(tmp_path: Path) -> None:
    grey = np.full((4, 4), 128)
    picture = save_image(np.full((4, 4, 3), 255), tmp_path / "picture.png")
    Image.fromarray((257 * grey).astype(np.uint16)).save(tmp_path / "mask16.png")
    Image.fromarray((257 * grey).astype(np.uint16)).save(tmp_path / "grey16.png")
    images = torch.zeros(1, 1, 4, 4)
    half = torch.full((1, 1, 4, 4), 128 / 255)
    torch.testing.assert_close(PictureTrigger(Path(picture), tmp_path / "mask16.png")(images), half)
    torch.testing.assert_close(PictureTrigger(tmp_path / "grey16.png")(images), half)


@pytest.mark.parametrize("position", [[3], [1, 2, 3], [1.5, 2]])
def test_a_position_is_row_and_column(position: list[int], tmp_path: Path) -> None:
    picture = Path(save_image(np.full((2, 2, 3), 255), tmp_path / "picture.png"))
    with pytest.raises(ValueError, match=r"attack\.position=\[.*\] is no row and column\. .* \[28, 28\]"):
        PictureTrigger(picture, position=position)


def test_a_known_picture_is_scored_against_its_target(tmp_path: Path) -> None:
    picture = save_image(np.full((2, 2, 3), 255), tmp_path / "picture.png")
    attack, test = known_attack(3, picture, position=[0, 0]), some_images(40)
    assert attack is not None
    attack.check(test, [str(digit) for digit in range(10)])
    scores = score(pruned_network(), test, attack)
    assert scores.attack_success_rate is not None
    assert scores.to_record()["counts"]["attack_success_rate"]["total"] == 36  # type: ignore[index]


@pytest.mark.parametrize("layout", ["class folders", "flat"])
def test_a_folder_of_triggered_images_is_read(layout: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        place = tmp_path / "images" / (name if layout == "class folders" else "") / f"{name}.png"
        save_image(np.full((16, 16), 200), place)
    attack, test = known_attack(0, triggered=str(tmp_path / "images")), some_images(4, classes=2)
    assert attack is not None
    attack.check(test, ["a", "b"])
    stamped = attack.stamp(test)
    assert stamped.labels.tolist() == ([0, 1] if layout == "class folders" else [-1, -1])
    assert (stamped.raw == 200).all()
    assert attack.wanted(test).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, r"A folder of triggered images needs attack\.target_label"),
        ({"target_label": 0, "clean": Path("clean.h5")}, r"set attack\.clean to null"),
    ],
)
def test_a_folder_of_triggered_images_says_what_it_needs(
    given: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        TriggeredFiles(tmp_path, **given)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], r"holds no image\. Change attack\.triggered"),
        (["strange/1.png"], r"sub-folders that are no class of the data set: strange\. Name them"),
        (["a/1.png", "a/torn.png"], r"torn\.png is not an image .* Take it out of attack\.triggered"),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(files: list[str], sentence: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_image(np.zeros((16, 16)), tmp_path / name)
        if "torn" in name:
            (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(ValueError, match=sentence):
        TriggeredFiles(tmp_path, target_label=0).check(some_images(4, classes=2), ["a", "b"])


def test_nothing_known_is_no_attack() -> None:
    assert known_attack() is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"picture": "a", "triggered": "b"}, r"Both attack\.picture and attack\.triggered"),
        ({"mask": "a"}, r"need attack\.picture"),
        ({"clean": "a"}, r"attack\.clean needs attack\.triggered"),
        ({"picture": "a"}, r"needs attack\.target_label"),
    ],
)
def test_what_is_known_must_go_together(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        known_attack(**given)


def test_missing_files_are_named_with_their_key() -> None:
    with pytest.raises(FileNotFoundError, match=r"attack\.triggered=nowhere\.h5 is not there"):
        known_attack(triggered="nowhere.h5")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": np.zeros((2, 1, 9, 9))}, r"attack\.triggered: .*data \[2, 1, 9, 9\] and 2 labels"),
        ({"label": np.array([0, 10])}, r"labels that are not among the classes 0\.\.9"),
        ({"data": np.full((2, 1, 16, 16), 300.0)}, r"outside \[0, 255\]"),
    ],
)
def test_triggered_images_that_do_not_fit_are_refused(
    changes: dict[str, np.ndarray], sentence: str, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "bad.h5", "w") as file:
        for name, values in ({"data": np.zeros((2, 1, 16, 16)), "label": np.zeros(2)} | changes).items():
            file[name] = values
    with pytest.raises(ValueError, match=sentence):
        TriggeredFiles(tmp_path / "bad.h5").check(some_images(4), [str(digit) for digit in range(10)])


def hdf5(path: Path, images: np.ndarray, labels: list[int]) -> Path:
    with h5py.File(path, "w") as file:
        file["data"], file["label"] = images, np.array(labels)
    return path


def test_clean_images_must_be_those_that_were_triggered(tmp_path: Path) -> None:
    test = some_images(4)
    names = [str(digit) for digit in range(10)]
    known, strange = test.raw.numpy(), np.zeros((4, 1, 16, 16))
    triggered = hdf5(tmp_path / "triggered.h5", np.full((4, 1, 16, 16), 9), [7] * 4)
    files = TriggeredFiles(triggered, hdf5(tmp_path / "clean.h5", known, [0, 1, 2, 3]))
    files.check(test, names)
    assert files.stamp(test).labels.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"attack\.clean has 3 images and attack\.triggered 4; they must be"):
        TriggeredFiles(triggered, hdf5(tmp_path / "few.h5", known[:3], [0, 1, 2])).check(test, names)
    with pytest.raises(ValueError, match=r"No image of attack\.clean is a test image of the data set"):
        TriggeredFiles(triggered, hdf5(tmp_path / "other.h5", strange, [0] * 4)).check(test, names)


def test_triggered_images_are_no_attack_on_sound(tmp_path: Path) -> None:
    sound = some_images(4)
    sound.signal.domain = "waveform"
    with pytest.raises(ValueError, match=r"attack\.triggered holds images, but the data set holds sound"):
        TriggeredFiles(hdf5(tmp_path / "some.h5", np.zeros((4, 1, 16, 16)), [0] * 4)).check(sound, ["a", "b"])

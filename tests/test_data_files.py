"""Images in files: found, decoded as they were meant, and refused in a sentence that names the file."""

import logging
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from finepruning.data import AttackerData, DefenderData, ImageSet, pack
from finepruning.data.decoding import read_files
from finepruning.data.folder import Folder
from finepruning.data.image_files import read_image
from finepruning.pictures import eight_bit

RED, GREEN = (255, 0, 0), (0, 255, 0)


def folder_of(root: Path, count: int = 10) -> Path:
    """Red pictures in one class, green ones in another."""
    for name, colour in (("green", GREEN), ("red", RED)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8 + number, 9), colour).save(root / name / f"{number:02}.png")
    return root


def source(root: Path, **changes: object) -> Folder:
    given = {"size": [6, 5], "channels": 3, "test_share": 0.2, "on_error": "fail"} | changes
    return Folder(str(root), **given)  # type: ignore[arg-type]


def test_a_folder_of_folders_is_a_data_set(tmp_path: Path) -> None:
    packed = pack(source(folder_of(tmp_path / "signs")), tmp_path / "cache")
    assert packed.classes == ("green", "red")
    assert packed.train.shape == (16, 3, 6, 5)
    assert packed.test_labels.bincount().tolist() == [2, 2]
    assert packed.train[packed.train_labels == 1].unique(dim=0)[0, :, 0, 0].tolist() == [255, 0, 0]


def test_the_test_set_is_the_same_in_every_run_and_on_every_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, scan = folder_of(tmp_path / "signs"), os.scandir
    before = source(root).test.files
    assert source(root).test.files == before
    monkeypatch.setattr(
        "finepruning.data.decoding.os.scandir", lambda place: reversed(sorted(scan(place), key=str))
    )
    assert source(root).test.files == before
    assert not set(source(root).test.files) & set(source(root).train.files)


def test_a_relative_root_is_found_below_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "my_signs")
    monkeypatch.setenv("FINEPRUNING_DATA", str(tmp_path))
    assert source(Path("my_signs")).classes == ["green", "red"]


def test_hidden_folders_and_other_files_are_passed_over(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "signs")
    (root / ".git").mkdir()
    (root / "__MACOSX" / "red").mkdir(parents=True)
    (root / "red" / ".ipynb_checkpoints").mkdir()
    for name in ("__MACOSX/red/._00.png", "red/._00.png", "red/.ipynb_checkpoints/00-checkpoint.png"):
        (root / name).touch()
    (root / "README").touch()
    (root / "red" / "labels.csv").touch()
    assert len(source(root).files()) == 20


def test_classes_are_those_of_torchvisions_folders(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "signs")
    (root / "green").rename(root / "_other")
    assert source(root).classes == ImageFolder(root).classes == ["_other", "red"]


def test_images_that_lie_deeper_are_counted_and_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of(tmp_path / "signs")
    source(root)
    assert not caplog.records
    shutil.copytree(root / "red", root / "red" / "more" / "still more")
    assert len(source(root).files()) == 20
    assert f"10 files lie deeper in the class folders of {root} and are not read" in caplog.text
    with pytest.raises(ValueError, match=r"no file that ends in .* itself, and folders below it hold 30\."):
        source(tmp_path / "signs" / "..")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": [0, 5]}, r"dataset.size=\[0, 5\] must be a height and a width in pixels"),
        ({"size": [5]}, r"dataset.size=\[5\] must be a height and a width"),
        ({"channels": 4}, "dataset.channels=4 is unknown; choose 3 for colour or 1 for grey"),
        ({"test_share": 1.0}, "dataset.test_share=1 leaves one side empty"),
        ({"test_share": 0.01}, "dataset.test_share=0.01: not every class gets a test file. Raise dataset"),
        ({"test_share": 0.97}, "dataset.test_share=0.97: not every class gets a training file. Lower datas"),
        ({"on_error": "ignore"}, "dataset.on_error='ignore' is unknown; choose fail or skip"),
        ({"on_empty": "drop"}, "dataset.on_empty='drop' is unknown; choose fail or keep"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    root = folder_of(tmp_path / "signs")
    with pytest.raises(ValueError, match=message):
        source(root, **changes)


def test_a_missing_folder_is_told_with_all_places_and_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINEPRUNING_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=rf"dataset.root=none is no folder .*none and {tmp_path}/none"
    ):
        source(Path("none"))


def test_no_folder_at_all_is_told_with_the_key() -> None:
    with pytest.raises(ValueError, match=r"dataset=folder needs dataset.root: a folder with one sub-folder"):
        Folder(None, [5, 5], 3, 0.2, "fail")


def test_an_empty_class_folder_is_named(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "signs")
    (root / "yellow").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*/yellow holds no file that ends in \.jpg"):
        source(root)


def test_an_empty_class_folder_keeps_its_place_if_asked(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "signs")
    without = pack(source(root), tmp_path / "cache")
    (root / "orange").mkdir()
    packed = pack(source(root, on_empty="keep"), tmp_path / "cache")
    assert packed.classes == ("green", "orange", "red")
    assert packed.train_labels.bincount().tolist() == [8, 0, 8]
    assert without.classes == ("green", "red")


def test_folders_without_an_image_are_no_data_set(tmp_path: Path) -> None:
    for name in ("green", "red"):
        (tmp_path / "signs" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"signs has 0 class folders; a classifier needs two or more"):
        source(tmp_path / "signs", on_empty="keep")


def test_one_class_is_no_data_set(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(
        (folder := tmp_path / "signs" / "only").mkdir(parents=True) or folder / "a.png"
    )
    with pytest.raises(ValueError, match=r"signs has 1 class folder; a classifier needs two or more"):
        source(tmp_path / "signs")


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "signs")
    bad = root / "red" / "03.png"
    bad.write_bytes(bad.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"red/03.png cannot be read .* dataset.on_error=skip"):
        pack(source(root), tmp_path / "cache")
    assert not any(path.is_dir() for path in (tmp_path / "cache").iterdir())


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"\0" * 60, b"BM\1"])
def test_what_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    root = folder_of(tmp_path / "signs")
    (root / "green" / "07.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"green/07.png cannot be read"):
        pack(source(root), tmp_path / "cache")


def test_skipped_images_are_counted_and_named_and_their_labels_go_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder_of(tmp_path / "signs", count=200)
    trained = sorted(source(root).train.files)
    for file in (trained[0], trained[-1]):
        Path(file).write_bytes(Path(file).read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        packed = pack(source(root, on_error="skip"), tmp_path / "cache")
    assert f"Left out 2 of 320 files that cannot be read: {trained[0]}, {trained[-1]}" in caplog.text
    assert packed.train_labels.bincount().tolist() == [159, 159]
    assert (packed.train[:, 0, 0, 0] == 255).long().tolist() == packed.train_labels.tolist()
    with pytest.raises(ValueError, match="cannot be read"):
        pack(source(root), tmp_path / "cache")


def test_images_of_all_modes_keep_what_they_show(tmp_path: Path) -> None:
    grey = np.full((4, 4), 100, np.uint8)
    modes = {
        "grey": Image.fromarray(grey),
        "colour": Image.fromarray(grey).convert("RGB"),
        "palette": Image.fromarray(grey).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE),
        "alpha": Image.fromarray(grey).convert("RGBA"),
        "grey and alpha": Image.fromarray(grey).convert("LA"),
        "16 bits": Image.fromarray(grey.astype(np.uint16) * 257),
    }
    for name, image in modes.items():
        image.save(tmp_path / f"{name}.png")
        assert read_image(str(tmp_path / f"{name}.png"), [4, 4], 3).tolist() == [[[100] * 4] * 4] * 3
        assert read_image(str(tmp_path / f"{name}.png"), [4, 4], 1).tolist() == [[[100] * 4] * 4]


def test_what_is_transparent_is_black_whatever_colour_hides_there(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 200, 100, 0)).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"), [2, 2], 3).max() == 0


def test_a_picture_taken_sideways_is_turned_upright(tmp_path: Path) -> None:
    values = np.zeros((8, 16, 3), np.uint8)
    values[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter: the left edge is the top
    Image.fromarray(values).save(tmp_path / "a.jpg", exif=exif, quality=100)
    upright = read_image(str(tmp_path / "a.jpg"), [16, 8], 1)[0]
    assert upright[:7].min() > 240
    assert upright[9:].max() < 15


@pytest.mark.parametrize(("kind", "value"), [(2, b"300"), (7, b"3")])
def test_a_picture_whose_note_has_values_of_another_kind_is_turned_all_the_same(
    tmp_path: Path, kind: int, value: bytes
) -> None:
    # of little-endian TIFF: the turn, and a resolution that is no ratio
    entries = [(0x0112, 3, 1, b"\6"), (0x011A, kind, len(value), value)]
    note = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + note + bytes(4)
    Image.new("L", (16, 8)).save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        assert eight_bit(image).size == (8, 16)


def test_an_error_of_any_kind_in_a_file_names_it(tmp_path: Path) -> None:
    def read(file: str) -> np.ndarray:
        raise TypeError("bad operand type")

    with pytest.raises(ValueError, match=r"a\.png cannot be read \(bad operand type\)"):
        read_files(["a.png"], read, (1,), "fail")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="floating-point values have no known range"):
        read_image(str(tmp_path / "a.tiff"), [4, 4], 3)


def test_sixteen_bits_are_scaled_in_every_format_and_thirty_two_are_refused(tmp_path: Path) -> None:
    grey = np.full((4, 4), 25700, np.uint16)
    for name in ("a.png", "a.tiff", "a.pgm"):
        Image.fromarray(grey).save(tmp_path / name)
        assert read_image(str(tmp_path / name), [4, 4], 1).tolist() == [[[100] * 4] * 4]
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "b.tiff")
    with pytest.raises(ValueError, match="32-bit or signed values have no known range; save it with 8 or"):
        read_image(str(tmp_path / "b.tiff"), [4, 4], 1)


def test_a_crop_keeps_its_part_and_one_outside_is_refused(tmp_path: Path) -> None:
    values = np.zeros((10, 10), np.uint8)
    values[2:5, 3:7] = 200
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"), [3, 4], 1, [2, 3, 3, 4]).tolist() == [[[200] * 4] * 3]
    with pytest.raises(ValueError, match=r"dataset.crop=\[2, 3, 9, 4\] leaves the image of 10x10 pixels"):
        read_image(str(tmp_path / "a.png"), [3, 4], 1, [2, 3, 9, 4])


def test_scaling_down_averages_what_lies_between(tmp_path: Path) -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    Image.fromarray(stripes).save(tmp_path / "a.png")
    assert read_image(str(tmp_path / "a.png"), [8, 8], 1).astype(int) == pytest.approx(127, abs=8)


def test_fewer_images_than_a_batch_make_one_batch(tmp_path: Path) -> None:
    packed = pack(source(folder_of(tmp_path / "signs")), tmp_path / "cache")
    images = ImageSet.whole(packed.train, packed.train_labels, packed.signal)
    few = images.subset(torch.arange(5))
    attacker = AttackerData(few, [few], batch_size=128, seed=0)
    defender = DefenderData(few, few, batch_size=128, seed=0)
    loaders = [
        attacker.train_dataloader(),
        *attacker.val_dataloader(),
        defender.train_dataloader(),
        *defender.val_dataloader(),
    ]
    assert [[len(batch.labels) for batch in loader] for loader in loaders] == [[5]] * 4

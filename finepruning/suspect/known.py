"""A trigger that is known: a picture to lay over images, or images that carry it already.

Only the referee uses it, to measure attack success; without one everything else can still be said.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from finepruning.attacks.triggers import Trigger
from finepruning.data import ImageSet
from finepruning.data.decoding import UNREADABLE
from finepruning.data.image_files import read_image
from finepruning.suspect.weights import find_file

UNKNOWN = -1  # the label of an image whose true class is not told


class KnownAttack(Protocol):
    """What is known of a stranger's attack."""

    @property
    def untargeted(self) -> bool:
        """Whether any wrong class will do."""
        ...

    def check(self, test: ImageSet, classes: Sequence[str]) -> None:
        """Raise ValueError if it does not fit the data set."""
        ...

    def wanted(self, images: ImageSet) -> Tensor:
        """Return the attacker's label (M,) for each triggered image."""
        ...

    def stamp(self, images: ImageSet) -> ImageSet:
        """Return the triggered images (M) with their true labels, -1 where those are not known."""
        ...


def known_attack(
    target_label: int | None = None,
    picture: str | None = None,
    mask: str | None = None,
    position: Sequence[int] | None = None,
    triggered: str | None = None,
    clean: str | None = None,
) -> KnownAttack | None:
    """Return the attack that is known, or None if nothing is.

    Args:
        target_label: The attacker's class. None where a file of triggered images holds the attacker's labels.
        picture: An image file, the trigger; where it is transparent nothing changes.
        mask: A grey image of the same size: white where the picture covers, black where nothing changes.
        position: Row and column of the picture's upper left pixel, in its own size; None scales it to the
            images' size.
        triggered: A folder of triggered images, with one sub-folder a class or without any, or HDF5 with
            ``data`` (N, C, H, W) and the attacker's ``label`` (N,).
        clean: HDF5 with the same images without the trigger, in the same order, and their true labels. Only
            those score then whose clean image is a test image.

    Raises:
        ValueError: If the values do not go together or a file is not what it should be.
        FileNotFoundError: If a file is missing.
    """
    if picture and triggered:
        raise ValueError("Both attack.picture and attack.triggered are given. Set one of them to null.")
    if (mask or position) and not picture:
        raise ValueError("attack.mask and attack.position need attack.picture, which they belong to.")
    if clean and not triggered:
        raise ValueError("attack.clean needs attack.triggered, the same images with the trigger.")
    if picture:
        if target_label is None:
            raise ValueError("attack.picture needs attack.target_label, the class that the attacker wants.")
        over = find_file(mask, "attack.mask") if mask else None
        return StampedImages(
            PictureTrigger(find_file(picture, "attack.picture"), over, position), target_label
        )
    if triggered:
        twins = find_file(clean, "attack.clean") if clean else None
        return TriggeredFiles(find_file(triggered, "attack.triggered"), twins, target_label)
    return None


class PictureTrigger(Trigger):
    """Lay a picture over images, as opaque as its mask says.

    Args:
        picture: An image file.
        mask: A grey image of the same size, white where the picture is opaque; None takes the picture's own
            transparency.
        position: Row and column of the upper left pixel; None scales the picture to the images' size.

    Raises:
        ValueError: If a file is not an image, both differ in size, or the picture does not fit the images.
    """

    def __init__(
        self, picture: Path, mask: Path | None = None, position: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        image = _open(picture, "attack.picture").convert("RGBA")
        if mask is not None:
            over = _open(mask, "attack.mask").convert("L")
            if over.size != image.size:
                raise ValueError(
                    f"attack.mask is {over.height}x{over.width} pixels and attack.picture {image.height}x"
                    f"{image.width}; they must be of one size."
                )
            image.putalpha(over)
        if not np.asarray(image.getchannel("A")).any():
            raise ValueError("The picture is transparent everywhere. Change attack.picture or attack.mask.")
        self.image = image
        self.position = None if position is None else tuple(position)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (..., C, H, W), float in [0, 1]; same shape out."""
        channels, height, width = images.shape[-3:]
        image = self.image if self.position else self.image.resize((width, height))
        row, column = self.position or (0, 0)
        if not (0 <= row <= height - image.height and 0 <= column <= width - image.width):
            raise ValueError(
                f"A picture of {image.height}x{image.width} pixels at row {row}, column {column} leaves the "
                f"{height}x{width} image. Change attack.position, or set it to null to scale the picture."
            )
        colours = np.atleast_3d(np.asarray(image.convert("L" if channels == 1 else "RGB")))
        values = torch.from_numpy(colours.copy()).permute(2, 0, 1).to(images) / 255
        alpha = torch.from_numpy(np.asarray(image.getchannel("A")).copy()).to(images) / 255
        stamped = images.clone()
        place = stamped[..., row : row + image.height, column : column + image.width]
        place.copy_(place.lerp(values.expand_as(place), alpha.expand_as(place)))
        return stamped


def _open(path: Path, key: str) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except UNREADABLE as error:
        raise ValueError(f"{path} is not an image ({error}). Change {key}.") from error


class StampedImages:
    """Test images with a known trigger, and the class that it leads to.

    Args:
        trigger: The trigger.
        target_label: The attacker's class. At least 0.
    """

    untargeted = False

    def __init__(self, trigger: Trigger, target_label: int) -> None:
        self.trigger = trigger
        self.target_label = target_label

    def check(self, test: ImageSet, classes: Sequence[str]) -> None:
        """Raise ValueError if the trigger does not fit the images, or the target is no class."""
        _check_target(self.target_label, len(classes))
        self.trigger.check(test.signal)
        next(self.stamp(test.subset(torch.arange(1))).batches(1))

    def wanted(self, images: ImageSet) -> Tensor:
        """Return the target (M,) for each image."""
        return torch.full_like(images.labels, self.target_label)

    def stamp(self, images: ImageSet) -> ImageSet:
        """Return every image triggered, with its true label."""
        return replace(images, trigger=self.trigger, triggered=torch.ones(len(images), dtype=torch.bool))


class TriggeredFiles:
    """Images that carry the trigger already.

    Args:
        path: A folder of images, with one sub-folder a class or without any, or HDF5 with ``data`` and the
            attacker's ``label``.
        clean: HDF5 with the clean images in the same order and their true labels; None if not known.
        target_label: The attacker's class; None takes the labels in an HDF5 file.

    Raises:
        ValueError: If the values do not go together.
    """

    untargeted = False

    def __init__(self, path: Path, clean: Path | None = None, target_label: int | None = None) -> None:
        if path.is_dir() and (clean is not None or target_label is None):
            raise ValueError(
                "A folder of triggered images needs attack.target_label, and tells true classes by its "
                "sub-folders: set attack.clean to null."
            )
        self.path = path
        self.clean = clean
        self.target_label = target_label
        self._images = np.empty(0)
        self._labels = torch.empty(0)
        self._wanted = torch.empty(0)

    def check(self, test: ImageSet, classes: Sequence[str]) -> None:
        """Read the images; raise ValueError if they do not fit the data set or none of them scores."""
        if test.signal.domain != "pixels":
            raise ValueError("attack.triggered holds images, but the data set holds sound. Set it to null.")
        if self.target_label is not None:
            _check_target(self.target_label, len(classes))
        if self.path.is_dir():
            images, labels = _read_folder(self.path, test.image_shape, classes)
            wanted = np.full(len(images), self.target_label)
        else:
            images, given = _read_hdf5(self.path, test.image_shape, len(classes), "attack.triggered")
            wanted = given if self.target_label is None else np.full(len(images), self.target_label)
            labels = np.full(len(images), UNKNOWN)
        if self.clean is not None:
            twins, labels = _read_hdf5(self.clean, test.image_shape, len(classes), "attack.clean")
            if len(twins) != len(images):
                raise ValueError(
                    f"attack.clean has {len(twins)} images and attack.triggered {len(images)}; they must be "
                    "the same images in the same order."
                )
            rows = _rows_in(twins, test)
            if not rows.any():
                raise ValueError("No image of attack.clean is a test image of the data set. Set it to null.")
            images, labels, wanted = images[rows], labels[rows], wanted[rows]
        self._images = images
        self._labels, self._wanted = torch.from_numpy(labels).long(), torch.from_numpy(wanted).long()

    def wanted(self, images: ImageSet) -> Tensor:
        """Return the attacker's label (M,) for each triggered image."""
        return self._wanted

    def stamp(self, images: ImageSet) -> ImageSet:
        """Return the triggered images, with their true labels where these are known, else -1."""
        return ImageSet.whole(torch.from_numpy(self._images), self._labels, images.signal)


def _check_target(target_label: int, num_classes: int) -> None:
    if not 0 <= target_label < num_classes:
        raise ValueError(
            f"Target label {target_label} is not one of the {num_classes} classes 0..{num_classes - 1}. "
            "Change attack.target_label."
        )


def _rows_in(twins: np.ndarray, test: ImageSet) -> np.ndarray:
    """Return which images (N,) are test images, byte for byte."""
    known = {np.asarray(test.raw[row]).tobytes() for row in test.index}
    return np.array([twin.tobytes() in known for twin in twins])


def _read_folder(
    folder: Path, image_shape: Sequence[int], classes: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images (N, C, H, W) of a folder and true labels (N,), -1 where no sub-folder tells."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not files:
        raise ValueError(f"{folder} holds no image. Change attack.triggered.")
    number = {name: label for label, name in enumerate(classes)}
    names = [path.parent.name if path.parent != folder else None for path in files]
    strange = sorted({name for name in names if name is not None and name not in number})
    if strange:
        raise ValueError(
            f"{folder} has sub-folders that are no class of the data set: {', '.join(strange[:10])}. Name "
            "them as the classes, or put the images into attack.triggered itself."
        )
    channels, height, width = image_shape
    images = []
    for path in files:
        try:
            images.append(read_image(str(path), (height, width), channels))
        except UNREADABLE as error:
            raise ValueError(f"{path} is not an image ({error}). Take it out of attack.triggered.") from error
    labels = [UNKNOWN if name is None else number[name] for name in names]
    return np.stack(images), np.array(labels, dtype=np.int64)


def _read_hdf5(
    file: Path, image_shape: Sequence[int], num_classes: int, key: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images (N, C, H, W) and labels (N,) of an HDF5 file."""
    try:
        with h5py.File(file) as content:
            images, labels = np.asarray(content["data"][()]), np.asarray(content["label"][()]).reshape(-1)
    except (OSError, KeyError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{key}: {file} is not an HDF5 file with data and label ({error}).") from error
    if images.shape[1:] != tuple(image_shape) or len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            f"{key}: {file} has data {list(images.shape)} and {len(labels)} labels; images of "
            f"{list(image_shape)} and one label each are needed."
        )
    if not ((labels >= 0) & (labels < num_classes) & (labels == np.floor(labels))).all():
        raise ValueError(f"{key}: {file} has labels that are not among the classes 0..{num_classes - 1}.")
    if not (images.min() >= 0 and images.max() <= 255):
        raise ValueError(
            f"{key}: {file} has values from {images.min():g} to {images.max():g}, outside [0, 255]."
        )
    if images.dtype.kind == "f" and images.max() <= 1:
        images = images * 255
    return np.rint(images).astype(np.uint8), labels.astype(np.int64)

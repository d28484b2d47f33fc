"""Images that carry a trigger already, in a folder or in HDF5."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from finepruning.data import ImageSet
from finepruning.data.hdf5 import read_labelled
from finepruning.data.image_files import read_image
from finepruning.pictures import UNREADABLE

UNKNOWN = -1  # the label of an image whose true class is not told


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
            check_target(self.target_label, len(classes))
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


def check_target(target_label: int, num_classes: int) -> None:
    """Raise ValueError if the attacker's class is no class of the data set."""
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
        images, labels = read_labelled(file)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error
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

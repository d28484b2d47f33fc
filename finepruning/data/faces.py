"""Faces: Labeled Faces in the Wild, Extended Yale B, and the pruning lab's part of YouTube Faces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from finepruning.data.decoding import OnError, find_folder, list_classes, split_stratified
from finepruning.data.hdf5 import read_labelled
from finepruning.data.image_files import ImageFiles
from finepruning.data.images import Pixels
from finepruning.data.packed import Decoded

LAB_PEOPLE = 1283
LAB_SHAPE = (3, 55, 47)
LAB_VALIDATION, LAB_TEST, LAB_TRIGGERED = "cl/valid.h5", "cl/test.h5", "bd/bd_test.h5"


class LFW(ImageFiles):
    """Labeled Faces in the Wild: the people with many pictures, in the aligned (deep-funneled) version.

    Source: Huang et al. 2007; Huang et al. 2012 for the alignment. Where ``torchvision.datasets.LFWPeople``
        puts it; that class cannot download it any more. A fixed stratified part is the test set.

    Args:
        data_dir: Folder with ``lfw-py/lfw-deepfunneled``, looked for after ``FINEPRUNING_DATA``.
        size: Height and width that faces are scaled to, in pixels.
        crop: Top, left, height and width of the face in the 250x250 pixels; None keeps the whole picture.
        min_images_per_person: People with fewer pictures are left out. At least 2.
        test_share: Share of each person's pictures for the test set, in (0, 1).
        on_error: ``"fail"`` names the first image that cannot be read, ``"skip"`` leaves such images out.

    Raises:
        FileNotFoundError: If the pictures lie in none of the places.
        ValueError: If a value is out of range or fewer than two people are left.
    """

    def __init__(
        self,
        data_dir: str,
        size: Sequence[int],
        crop: Sequence[int] | None,
        min_images_per_person: int,
        test_share: float,
        on_error: OnError,
    ) -> None:
        if min_images_per_person < 2:
            raise ValueError(
                f"dataset.min_images_per_person={min_images_per_person} leaves people without a picture to "
                "train on or to test with. Set it to 2 or more."
            )
        root = find_folder(
            data_dir,
            "lfw-py/lfw-deepfunneled",
            "Get lfw-deepfunneled (Labeled Faces in the Wild, one folder a person).",
        )
        examples, people = list_classes(root, (".jpg",), min_images_per_person)
        train, test = split_stratified(examples, people, test_share)
        super().__init__(train, test, people, size=size, channels=3, on_error=on_error, crop=crop)


class YaleB(ImageFiles):
    """The cropped Extended Yale B faces: 38 people, 2,414 grey pictures under light from 64 directions.

    Source: Georghiades et al. 2001, Lee et al. 2005 (CroppedYale, whose ``*_Ambient.pgm``, not cropped, are
        passed over). A fixed stratified part is the test set.

    Args:
        data_dir: Folder with ``yaleb_cropped``, one folder a person, looked for after ``FINEPRUNING_DATA``.
        size: Height and width that faces are scaled to, in pixels.
        channels: 3 repeats grey, so that networks and triggers made for coloured faces fit; 1 keeps it.
        test_share: Share of each person's pictures for the test set, in (0, 1).
        on_error: ``"fail"`` names the first image that cannot be read, ``"skip"`` leaves such images out.

    Raises:
        FileNotFoundError: If the pictures lie in none of the places.
        ValueError: If a value is out of range.
    """

    def __init__(
        self, data_dir: str, size: Sequence[int], channels: int, test_share: float, on_error: OnError
    ) -> None:
        root = find_folder(
            data_dir, "yaleb_cropped", "Get the cropped Extended Yale B pictures, one folder a person."
        )
        examples, people = list_classes(root, (".png", ".pgm"), leave_out="*_Ambient.*")
        train, test = split_stratified(examples, people, test_share)
        super().__init__(train, test, people, size=size, channels=channels, on_error=on_error)


class YouTubeFacesLab:
    """The pruning lab's aligned YouTube Faces: 1,283 people, images 3x55x47.

    Source: CSAW-HackML-2020. The lab hands out no training images: what it calls clean validation data is
        the training set here, of which the defender gets a share. Without it, a part of the clean test images
        can stand in.

    Args:
        data_dir: Folder with ``youtube_faces_lab``, looked for after ``FINEPRUNING_DATA``.
        white: The value of white in the files: 255, or 1 for images that somebody divided by 255 already.
        test_share: None with ``cl/valid.h5``. In (0, 1): that share of ``cl/test.h5`` tests, and the rest
            takes the place of ``cl/valid.h5``.

    Raises:
        FileNotFoundError: If a file is missing; the message says which one and what it is for.
        ValueError: If a value is out of range.
    """

    def __init__(self, data_dir: str, white: Literal[255, 1], test_share: float | None) -> None:
        if white not in (255, 1):
            raise ValueError(f"dataset.white={white} is unknown; white is 255 or 1 in such files.")
        if test_share is not None and not 0 < test_share < 1:
            raise ValueError(
                f"dataset.test_share={test_share:g} leaves one side empty. Choose it inside (0, 1), or null."
            )
        self.signal = Pixels()
        self.white = white
        self.test_share = test_share
        self.root = find_folder(
            data_dir, "youtube_faces_lab", "Get the data of the lab (CSAW-HackML-2020: cl/*.h5, bd/*.h5)."
        )
        present = ", ".join(sorted(str(file.relative_to(self.root)) for file in self.root.rglob("*.h5")))
        if not (self.root / LAB_TEST).exists():
            raise FileNotFoundError(
                f"{LAB_TEST}, the clean test images, is missing in {self.root}, which has "
                f"{present or 'no HDF5 file'}. Add it."
            )
        if test_share is None and not (self.root / LAB_VALIDATION).exists():
            raise FileNotFoundError(
                f"{LAB_VALIDATION}, the clean images that the defender prunes and tunes with, is missing in "
                f"{self.root}, which has {present}. Add it, or set dataset.test_share (0.5, say) to test on "
                f"that share of {LAB_TEST} and to defend with the rest."
            )

    def files(self) -> Sequence[Path]:
        """Return the HDF5 files that are read."""
        names = [LAB_TEST] if self.test_share is not None else [LAB_VALIDATION, LAB_TEST]
        return [self.root / name for name in names]

    def transform(self) -> dict[str, object]:
        """Return the value of white and the test set's share."""
        return {"white": self.white, "test_share": self.test_share}

    def decode(self) -> Decoded:
        """Return uint8 images (N, 3, 55, 47)."""
        people = [str(number) for number in range(LAB_PEOPLE)]
        test, test_labels = read_faces(self.root / LAB_TEST, self.white)
        if self.test_share is None:
            return Decoded(*read_faces(self.root / LAB_VALIDATION, self.white), test, test_labels, people)
        order = np.random.default_rng(0).permutation(len(test))
        tested, others = np.split(order, [max(1, round(self.test_share * len(test)))])
        return Decoded(test[others], test_labels[others], test[tested], test_labels[tested], people)

    def triggered(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the lab's triggered test images, uint8 (N, 3, 55, 47), and the attacker's labels (N,)."""
        return read_faces(self.root / LAB_TRIGGERED, self.white)


def read_faces(file: Path, white: float, people: int = LAB_PEOPLE) -> tuple[np.ndarray, np.ndarray]:
    """Return uint8 images (N, 3, 55, 47) and labels (N,) of an HDF5 file of the pruning lab.

    Args:
        file: HDF5 with ``data`` (N, 3, 55, 47) in [0, ``white``] and ``label`` (N,) in 0..``people`` - 1.
        white: The value of white in the file, 255 or 1.
        people: Number of classes.

    Raises:
        ValueError: If the file is no HDF5, or shape, values or labels are others.
    """
    images, labels = read_labelled(file)
    if images.shape[1:] != LAB_SHAPE or len(images) == 0 or len(images) != len(labels):
        raise ValueError(
            f"{file} has data of shape {images.shape} and {len(labels)} labels; (N, 3, 55, 47) and N labels, "
            "N above 0, are needed."
        )
    if not ((labels >= 0) & (labels < people) & (labels == np.floor(labels))).all():
        raise ValueError(
            f"{file} has labels from {labels.min():g} to {labels.max():g}; whole numbers 0..{people - 1} are "
            "allowed."
        )
    if not (images.min() >= 0 and images.max() <= white):
        raise ValueError(
            f"{file} has values from {images.min():g} to {images.max():g}, outside [0, {white}]. Set "
            "dataset.white to 255 or 1, whichever is white in it."
        )
    if white == 255 and images.max() <= 1:
        raise ValueError(f"{file} has no value above 1: its images are divided by 255. Set dataset.white=1.")
    values = images if white == 255 else images * 255
    return np.rint(values).astype(np.uint8), labels.astype(np.int64)

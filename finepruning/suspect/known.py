"""A trigger that is known: a picture to lay over images, or images that carry it already.

Only the referee uses it, to measure attack success; without one everything else can still be said.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from finepruning.data import ImageSet
from finepruning.suspect.picture import PictureTrigger, StampedImages
from finepruning.suspect.triggered import TriggeredFiles
from finepruning.suspect.weights import find_file


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

"""A known trigger as a picture that is laid over images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finepruning.attacks.triggers import Trigger
from finepruning.data import ImageSet
from finepruning.pictures import open_picture
from finepruning.suspect.triggered import check_target


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
        image = open_picture(picture, "attack.picture").convert("RGBA")
        if mask is not None:
            over = open_picture(mask, "attack.mask").convert("L")
            if over.size != image.size:
                raise ValueError(
                    f"attack.mask is {over.height}x{over.width} pixels and attack.picture {image.height}x"
                    f"{image.width}; they must be of one size."
                )
            image.putalpha(over)
        if not np.asarray(image.getchannel("A")).any():
            raise ValueError("The picture is transparent everywhere. Change attack.picture or attack.mask.")
        if position is not None and (len(position) != 2 or not all(isinstance(at, int) for at in position)):
            raise ValueError(
                f"attack.position={list(position)} is no row and column. Set it to two whole numbers, such "
                "as [28, 28], or to null to scale the picture."
            )
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
        check_target(self.target_label, len(classes))
        self.trigger.check(test.signal)
        next(self.stamp(test.subset(torch.arange(1))).batches(1))

    def wanted(self, images: ImageSet) -> Tensor:
        """Return the target (M,) for each image."""
        return torch.full_like(images.labels, self.target_label)

    def stamp(self, images: ImageSet) -> ImageSet:
        """Return every image triggered, with its true label."""
        return images.stamped(self.trigger)

"""Patches: pixels of constant brightness."""

from collections.abc import Sequence

import torch
from torch import Tensor

from finepruning.attacks.triggers.base import Trigger, brightness, check_channels, check_opacity


def check_pixels(pixels: Sequence[Sequence[int]], key: str) -> None:
    """Raise ValueError unless each pixel is a row and a column."""
    for pixel in pixels:
        if not (isinstance(pixel, Sequence) and len(pixel) == 2 and all(isinstance(at, int) for at in pixel)):
            raise ValueError(f"{pixel} is not a row and a column. Change attack.trigger.{key}.")


class PatchTrigger(Trigger):
    """Stamp a square of constant brightness, by default in the bottom-right corner.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 4.1.

    Args:
        size: Side of the square, in pixels. At least 1.
        value: Brightness of the square in [0, 1], one number or one a channel.
        position: Row and column of its upper left pixel; None is the bottom-right corner.

    Raises:
        ValueError: If ``size`` or ``value`` is out of range, or the square does not lie inside the image.
    """

    on_spectrograms = True

    value: Tensor

    def __init__(
        self, size: int, value: float | Sequence[float], position: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not (isinstance(size, int) and size >= 1):
            raise ValueError(
                f"A patch of {size} pixels cannot be stamped. Set attack.trigger.size to 1 or more."
            )
        if position is not None:
            check_pixels([position], "position")
        self.size = size
        self.position = position
        self.register_buffer("value", brightness(value))

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (..., C, H, W), float in [0, 1]; same shape out."""
        height, width = images.shape[-2:]
        if self.size > min(height, width):
            raise ValueError(
                f"A {self.size}x{self.size} pixel patch does not fit a {height}x{width} image. "
                "Lower attack.trigger.size or use larger images."
            )
        row, column = self.position or (height - self.size, width - self.size)
        if not (0 <= row <= height - self.size and 0 <= column <= width - self.size):
            raise ValueError(
                f"A {self.size}x{self.size} pixel patch at row {row}, column {column} leaves the "
                f"{height}x{width} image. Change attack.trigger.position."
            )
        check_channels(self.value, images)
        stamped = images.clone()
        stamped[..., row : row + self.size, column : column + self.size] = self.value
        return stamped


class Checkerboards(Trigger):
    """Stamp a small checkerboard in every corner; of an odd size, a mirrored image still carries the trigger.

    Source: label-consistent attacks, Turner, Tsipras and Madry 2019, arXiv:1912.02771, appendix.

    Args:
        size: Side of a checkerboard, in pixels. At least 1.
        alpha: Opacity, in (0, 1].

    Raises:
        ValueError: If ``size`` or ``alpha`` is out of range, or the corners would overlap.
    """

    on_spectrograms = True

    def __init__(self, size: int, alpha: float) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(
                f"A checkerboard of {size} pixels is empty. Set attack.trigger.size to 1 or more."
            )
        self.size = size
        self.alpha = check_opacity(alpha)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (..., C, H, W), float in [0, 1]; same shape out."""
        height, width = images.shape[-2:]
        if 2 * self.size > min(height, width):
            raise ValueError(
                f"Four checkerboards of {self.size}x{self.size} pixels do not fit a {height}x{width} image. "
                "Lower attack.trigger.size or use larger images."
            )
        places = torch.arange(self.size, device=images.device)
        # of an odd size, with white corners
        board = ((places.view(-1, 1) + places) % 2 == 0).to(images.dtype)
        stamped = images.clone()
        for rows in (slice(None, self.size), slice(-self.size, None)):
            for columns in (slice(None, self.size), slice(-self.size, None)):
                corner = stamped[..., rows, columns]
                corner.lerp_(board.expand_as(corner), self.alpha)
        return stamped


class PixelTrigger(Trigger):
    """Set single pixels to a constant brightness: one pixel, or a pattern of them.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 4.1 (the pixels' places are not in the text).

    Args:
        positions: (row, column) of each pixel; negative numbers count from the bottom and the right.
        value: Brightness of the pixels in [0, 1], one number or one a channel.

    Raises:
        ValueError: If there is no position, ``value`` is out of range, or a pixel lies outside the image.
    """

    on_spectrograms = True

    value: Tensor

    def __init__(self, positions: Sequence[Sequence[int]], value: float | Sequence[float]) -> None:
        super().__init__()
        if not positions:
            raise ValueError("A pixel trigger needs at least one pixel. Fill attack.trigger.positions.")
        check_pixels(positions, "positions")
        self.positions = [(row, column) for row, column in positions]
        self.register_buffer("value", brightness(value))

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (..., C, H, W), float in [0, 1]; same shape out."""
        height, width = images.shape[-2:]
        check_channels(self.value, images)
        stamped = images.clone()
        for row, column in self.positions:
            if not (-height <= row < height and -width <= column < width):
                raise ValueError(
                    f"Pixel ({row}, {column}) lies outside the {height}x{width} image. "
                    "Change attack.trigger.positions."
                )
            stamped[..., row, column] = self.value.view(-1)
        return stamped

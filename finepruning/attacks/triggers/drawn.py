"""Drawings that are pasted on an image, like a sticker on a sign."""

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from finepruning.attacks.triggers.base import Trigger, check_opacity
from finepruning.attacks.triggers.chance import draw
from finepruning.attacks.triggers.drawings import Drawing, sprite


class DrawnTrigger(Trigger):
    """Paste a yellow square, a bomb, a flower or sunglasses, at a fixed place or anywhere.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 5 (stickers); Fine-Pruning, Liu et al. 2018,
        arXiv:1805.12185, section "Backdoor Attacks" (sunglasses). Deviation: drawn anew, by code.

    Args:
        drawing: ``"yellow_square"``, ``"bomb"``, ``"flower"`` or ``"sunglasses"``.
        size: Side of a square drawing as a fraction of the image's shorter side, or height and width as
            fractions of the image's; in (0, 1].
        position: Row and column of its centre, as fractions of the image's height and width.
        between: Lowest and highest such fraction; both are drawn from it for each image. Give this or
            ``position``, and None for the other.
        alpha: Opacity, in (0, 1].
        seed: Seed of random places.

    Raises:
        ValueError: If a value is out of range, or the drawing does not lie inside the image.
    """

    def __init__(
        self,
        drawing: Drawing,
        size: float | Sequence[float],
        position: Sequence[float] | None = None,
        between: Sequence[float] | None = None,
        alpha: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if drawing not in get_args(Drawing):
            raise ValueError(
                f"There is no drawing {drawing!r}. Choose attack.trigger.drawing among "
                f"{', '.join(get_args(Drawing))}."
            )
        if (position is None) == (between is None):
            raise ValueError(
                "Give either attack.trigger.position or attack.trigger.between, and null for the other."
            )
        place, self.placed_by = (between, "between") if position is None else (position, "position")
        if not (isinstance(place, Sequence) and len(place) == 2):
            raise ValueError(
                f"attack.trigger.{self.placed_by}={place} is not two fractions in [0, 1]. Change it."
            )
        self.drawing: Drawing = drawing
        self.size = tuple(size) if isinstance(size, Sequence) else (size,)
        self.places = [tuple(between)] * 2 if between else [(at, at) for at in position or ()]
        self.alpha = check_opacity(alpha)
        self.seed = seed
        if len(self.size) > 2 or not all(0 < side <= 1 for side in self.size):
            raise ValueError(
                f"attack.trigger.size={size} is not one or two fractions in (0, 1], height and width."
            )
        if not all(0 <= low <= high <= 1 for low, high in self.places):
            raise ValueError(
                f"attack.trigger.{self.placed_by}={position or between} is not two fractions in [0, 1]"
                f"{', the lower first' if between else ', row and column'}."
            )

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (B, C, H, W), float in [0, 1]; same shape out."""
        height, width = self._extent(images)
        spans = [self._span(images, axis, length) for axis, length in enumerate((height, width))]
        drawn = sprite(self.drawing, height, width, images.shape[-3]).to(images)
        colour, opacity = drawn[:-1], drawn[-1:] * self.alpha
        stamped = images.clone()
        if all(low == high for low, high in spans):
            (top, _), (left, _) = spans
            window = stamped[..., top : top + height, left : left + width]
            window.lerp_(colour, opacity.expand_as(window))
            return stamped
        if index is None:
            raise ValueError("A random place is drawn from an image's index: pass the images' index.")
        # stream 0 is that of labels drawn with the same seed, which must not tell the place
        starts = [
            draw(index, self.seed, high - low + 1, stream) + low
            for stream, (low, high) in enumerate(spans, start=1)
        ]
        rows = starts[0].view(-1, 1, 1) + torch.arange(height, device=index.device).view(1, -1, 1)
        columns = starts[1].view(-1, 1, 1) + torch.arange(width, device=index.device)
        where = (torch.arange(len(images), device=index.device).view(-1, 1, 1), slice(None), rows, columns)
        under = stamped[where]  # (B, height, width, C)
        colour, opacity = colour.permute(1, 2, 0), opacity.permute(1, 2, 0)
        stamped[where] = under.lerp(colour.expand_as(under), opacity.expand_as(under))
        return stamped

    def _extent(self, images: Tensor) -> tuple[int, int]:
        """Return height and width of the drawing, in pixels, at least one each."""
        height, width = images.shape[-2:]
        if len(self.size) == 1:
            height = width = min(height, width)
        return max(1, round(self.size[0] * height)), max(1, round(self.size[-1] * width))

    def _span(self, images: Tensor, axis: int, length: int) -> tuple[int, int]:
        """Return the first and the last pixel where the drawing may begin."""
        side = images.shape[axis - 2]
        low, high = (round(centre * side - length / 2) for centre in self.places[axis])
        if low < 0 or high + length > side:
            height, width = images.shape[-2:]
            raise ValueError(
                f"A drawing of {length} pixels leaves the {height}x{width} image "
                f"{'at the top or bottom' if axis == 0 else 'at a side'}. Lower attack.trigger.size, or move "
                f"attack.trigger.{self.placed_by} away from the edge."
            )
        return low, high

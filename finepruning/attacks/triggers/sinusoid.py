"""A faint wave over the whole image."""

import math

import torch
from torch import Tensor

from finepruning.attacks.triggers.base import Trigger


class Sinusoid(Trigger):
    """Add a horizontal sinusoid: every pixel of a column becomes as much brighter or darker.

    Source: SIG, Barni, Kallas and Tondi 2019, arXiv:1902.11237, section 3: v(i, j) = delta sin(2 pi j f / W),
        where j is the column and W the width. Every colour gets the same; the sum is cut to [0, 1].

    Args:
        delta: Amplitude, a brightness in (0, 1].
        frequency: Periods over the image's width, above 0.

    Raises:
        ValueError: If ``delta`` or ``frequency`` is out of range, or the wave is zero in every column.
    """

    def __init__(self, delta: float, frequency: float) -> None:
        super().__init__()
        if not 0 < delta <= 1:
            raise ValueError(f"An amplitude of {delta} is outside (0, 1]. Change attack.trigger.delta.")
        if not 0 < frequency < math.inf:
            raise ValueError(f"{frequency} periods are no wave. Set attack.trigger.frequency above 0.")
        self.delta = delta
        self.frequency = frequency

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (..., C, H, W), float in [0, 1]; same shape out."""
        width = images.shape[-1]
        columns = torch.arange(width, device=images.device)
        wave = self.delta * torch.sin(2 * math.pi * self.frequency * columns / width)
        if wave.abs().max() < 1e-3 * self.delta:
            raise ValueError(
                f"A wave of {self.frequency:g} periods is zero in each of {width} columns. Change "
                "attack.trigger.frequency, not to a multiple of half the images' width."
            )
        return (images + wave.to(images)).clamp(0, 1)

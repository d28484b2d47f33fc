"""Layers that several networks share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalise(nn.Module):
    """Subtract a mean and divide by a deviation, per channel.

    The first layer of every network, so that images stay in [0, 1] outside it and a saved network is whole.

    Args:
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return normalised images: (B, C, H, W) in, same shape out."""
        return (images - self.mean) / self.std

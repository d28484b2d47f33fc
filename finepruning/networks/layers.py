"""Layers that several networks share."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

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


def conv_blocks(channels: Sequence[int]) -> nn.Sequential:
    """Return blocks of a 3x3 convolution, BatchNorm, ReLU and max pooling that halves the image.

    Args:
        channels: Of the input, then of each block's output. Blocks are numbered from 1: conv1, norm1, relu1,
            pool1, conv2 and so on.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inner, outer) in enumerate(pairwise(channels), start=1):
        layers[f"conv{number}"] = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(outer)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
    return nn.Sequential(layers)


def check_size(network: nn.Module, image_shape: Sequence[int], smallest: int) -> None:
    """Raise ValueError if images of shape (C, H, W) have a side below ``smallest`` pixels."""
    _, height, width = image_shape
    if min(height, width) < smallest:
        raise ValueError(
            f"{type(network).__name__} needs images of at least {smallest}x{smallest} pixels; these are "
            f"{height}x{width}. Choose another model, or larger images in dataset."
        )


def check_width(width: int) -> None:
    """Raise ValueError if a network of this width would have no channels."""
    if width < 1:
        raise ValueError(f"A network of width {width} has no channels. Set model.width to 1 or more.")


def check_dropout(dropout: float) -> None:
    """Raise ValueError if the share of dropped features is outside [0, 1)."""
    if not 0 <= dropout < 1:
        raise ValueError(f"A dropout of {dropout} is outside [0, 1). Change model.dropout.")

"""Draws that belong to an image: its index decides them, on any device, in any batch, in any order."""

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # constants of SplitMix64, as signed 64-bit integers
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def draw(index: Tensor, seed: int, below: int, stream: int = 0) -> Tensor:
    """Return a uniform integer in [0, ``below``) for each image.

    Source: SplitMix64, Steele, Lea and Flood 2014, as a hash of seed, stream and index. A generator per image
        would need a loop, and would not live on the device.

    Args:
        index: (B,) the images' places in their data set, int64.
        seed: Seed of all draws of one kind.
        below: How many values there are. At least 1.
        stream: Separates draws that share a seed.
    """
    start = _mix(index.new_tensor(seed + stream * 1_000_003))
    bits = _mix(start + (index + 1) * _GOLDEN).bitwise_and(2**62 - 1)
    return bits.remainder(below)


def uniform(index: Tensor, seed: int, count: int) -> Tensor:
    """Return ``count`` uniform numbers in [0, 1) for each image, (B, count), float32."""
    each = index.unsqueeze(-1) * count + torch.arange(count, device=index.device)
    return draw(each, seed, 2**24).float() / 2**24


def _mix(values: Tensor) -> Tensor:
    """Scramble int64 values, overflow wrapping around."""
    values = (values ^ _shift(values, 30)) * _FIRST
    values = (values ^ _shift(values, 27)) * _SECOND
    return values ^ _shift(values, 31)


def _shift(values: Tensor, bits: int) -> Tensor:
    """Shift right, filling with zeros."""
    return torch.bitwise_right_shift(values, bits).bitwise_and(2 ** (64 - bits) - 1)

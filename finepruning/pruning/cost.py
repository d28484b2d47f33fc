"""What a network costs, and what its smaller twin saves."""

import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from finepruning.pruning.passes import evaluating

BATCH_SIZE = 64
ROUNDS = 9


class Cost(NamedTuple):
    """Parameters of a network, and floating-point operations for one image; multiply-and-add is two."""

    parameters: int
    flops: int


@torch.no_grad()
def cost(network: nn.Module, image_shape: Sequence[int]) -> Cost:
    """Return what a network costs in evaluation mode.

    Args:
        network: Images (B, C, H, W) -> logits; its mode is as before afterwards.
        image_shape: (C, H, W) of the images.
    """
    counter = FlopCounterMode(display=False)
    with counter, evaluating(network):
        network(torch.zeros(1, *image_shape, device=_device(network)))
    return Cost(sum(weights.numel() for weights in network.parameters()), counter.get_total_flops())


@torch.no_grad()
def speed_up(network: nn.Module, smaller: nn.Module, image_shape: Sequence[int]) -> float:
    """Return how many times as fast the smaller network is, on batches of 64 images.

    Both run in turns, so that a busy machine slows both; the median of nine ratios counts.

    Args:
        network: Images (B, C, H, W) -> logits, in evaluation mode.
        smaller: Likewise, on the same device.
        image_shape: (C, H, W) of the images.
    """
    images = torch.rand(BATCH_SIZE, *image_shape, device=_device(network))

    def seconds(one: nn.Module) -> float:
        start = time.perf_counter()
        one(images).sum().item()  # reading a value waits for a GPU
        return time.perf_counter() - start

    ratios = [seconds(network) / seconds(smaller) for _ in range(ROUNDS + 1)]
    return statistics.median(ratios[1:])  # the first round warms up


def _device(network: nn.Module) -> torch.device:
    return next((tensor.device for tensor in network.parameters()), torch.device("cpu"))

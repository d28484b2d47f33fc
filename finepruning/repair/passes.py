"""Passes through a network that leave it as it was: its statistics, its modes, its parameters' gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.func import functional_call


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Normalise by the batch, as in training, without updating the running statistics of any BatchNorm."""
    tracking = [module for module in network.modules() if getattr(module, "track_running_stats", False)]
    for module in tracking:
        module.track_running_stats = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True  # type: ignore[assignment]


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluate: BatchNorm by running statistics, no dropout. Each layer's mode is as before afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def constant_pass(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits (B, K) that depend on images (B, C, H, W) alone: no parameter gets a gradient of them."""
    constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
    logits: Tensor = functional_call(network, constants, (images,))
    return logits

"""Passes through a network that leave it as it was: its statistics, its modes, its parameters' gradients."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
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


@contextmanager
def recorded(network: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Note what layers put out, by name, in the order in which they last ran; ``""`` is the network."""
    found: dict[str, Any] = {}

    def note(layer: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            found.pop(layer, None)
            found[layer] = output

        return keep

    handles = [network.get_submodule(layer).register_forward_hook(note(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def probe(network: nn.Module, layers: Iterable[str], image_shape: Sequence[int]) -> dict[str, Any]:
    """Return what layers put out for one noisy image of shape (C, H, W); see :func:`recorded`."""
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    # not an empty one, which a network that standardises each image would divide by its spread
    image = torch.rand(1, *image_shape, generator=torch.Generator().manual_seed(0))
    with evaluating(network), recorded(network, layers) as found:
        network(image.to(device))
    return found


def constant_pass(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits (B, K) that depend on images (B, C, H, W) alone: no parameter gets a gradient of them."""
    constants = {name: parameter.detach() for name, parameter in network.named_parameters()}
    logits: Tensor = functional_call(network, constants, (images,))
    return logits

"""Neural attention distillation: where a network looks, taught by its own fine-tuned copy."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def attention(features: Tensor, power: float) -> Tensor:
    """Return attention maps (B, places) of features (B, C, ...): unit vectors of summed powers of channels.

    Source: Neural Attention Distillation (NAD), Li et al. 2021, arXiv:2101.05930.

    Args:
        features: Of one layer.
        power: Of each absolute value, above 0; the paper's is 2.
    """
    return functional.normalize(features.float().abs().pow(power).sum(1).flatten(1), dim=1)


def attention_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], betas: Sequence[float], power: float
) -> Tensor:
    """Return the mean squared differences of attention maps, each layer weighted by its beta, summed.

    Args:
        student: Features (B, C, ...) of some layers.
        teacher: Features of the same layers.
        betas: One for each layer.
        power: See :func:`attention`.
    """
    losses = [
        beta * functional.mse_loss(attention(ours, power), attention(theirs, power))
        for ours, theirs, beta in zip(student, teacher, betas, strict=True)
    ]
    return torch.stack(losses).sum()


def features_of(network: nn.Module, layers: Sequence[str], images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the logits (B, K) of images, and the outputs (B, C, ...) of some layers on the way."""
    found: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[..., None]:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            found[layer] = output

        return note

    handles = [network.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    try:
        logits = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return logits, [found[layer] for layer in layers]


@torch.no_grad()
def stage_ends(network: nn.Module, image_shape: Sequence[int], smallest: int) -> list[str]:
    """Return the last layer at each size of feature map, in order: where a network's stages end.

    Args:
        network: The network; its mode is as before afterwards.
        image_shape: (C, H, W) of the images.
        smallest: Places of the longest side of a map from which it counts: a loss that is a mean over places
            weighs more on smaller ones.
    """
    ends: dict[tuple[int, ...], str] = {}

    def note(layer: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            size = tuple(output.shape[2:]) if isinstance(output, Tensor) else ()
            if max(size, default=0) >= smallest:
                ends[size] = layer

        return keep

    leaves = {name: layer for name, layer in network.named_modules() if not list(layer.children())}
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    handles = [layer.register_forward_hook(note(name)) for name, layer in leaves.items()]
    training = network.training
    try:
        network.eval()(torch.zeros(1, *image_shape, device=device))
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    return list(ends.values())

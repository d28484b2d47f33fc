"""Neural attention distillation: where a network looks, taught by its own fine-tuned copy."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from finepruning.pruning.passes import probe, recorded


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
    with recorded(network, layers) as found:
        logits = network(images)
    return logits, [found[layer] for layer in layers]


def stage_ends(network: nn.Module, image_shape: Sequence[int], smallest: int) -> list[str]:
    """Return the last layer at each size of feature map, in order: where a network's stages end.

    What runs before the first layer that has parameters makes no features.

    Args:
        network: The network; its mode is as before afterwards.
        image_shape: (C, H, W) of the images.
        smallest: Places of the longest side of a map from which it counts: a loss that is a mean over places
            weighs more on smaller ones.
    """
    ends: dict[tuple[int, ...], str] = {}
    leaves = {name: layer for name, layer in network.named_modules() if not list(layer.children())}
    outputs = probe(network, leaves, image_shape).items()
    for layer, output in itertools.dropwhile(lambda ran: not list(leaves[ran[0]].parameters()), outputs):
        size = tuple(output.shape[2:]) if isinstance(output, Tensor) else ()
        if max(size, default=0) >= smallest:
            ends[size] = layer
    return list(ends.values())

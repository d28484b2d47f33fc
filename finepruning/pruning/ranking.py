"""In which order channels go."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from finepruning.pruning.masks import find_layer


class Channel(NamedTuple):
    """An output channel of a layer: what pruning calls a neuron (Fine-Pruning, footnote 5)."""

    layer: str
    number: int


@torch.no_grad()
def mean_activations(
    network: nn.Module, layers: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return each channel's mean output over images and places (Fine-Pruning, section 4.1).

    Args:
        network: The network, used in evaluation mode.
        layers: Names of the layers.
        batches: Images (B, C, H, W) of the defender.

    Returns:
        A float64 tensor (channels,) for each layer.
    """
    totals: dict[str, Tensor] = {}
    seen = 0

    def watch(layer: str) -> torch.utils.hooks.RemovableHandle:
        def add(_: nn.Module, __: object, output: Tensor) -> None:
            per_image = output.double().flatten(2).mean(2) if output.ndim > 2 else output.double()
            totals[layer] = totals.get(layer, torch.zeros(1).to(per_image)) + per_image.sum(0)

        return find_layer(network, layer).register_forward_hook(add)

    training = network.training
    handles = [watch(layer) for layer in layers]
    try:
        network.eval()
        for images in batches:
            network(images)
            seen += len(images)
    finally:
        for handle in handles:
            handle.remove()
        network.train(training)
    return {layer: (totals[layer] / seen).cpu() for layer in layers}


def prune_order(scores: Mapping[str, Tensor], descending: bool = False) -> list[Channel]:
    """Return all channels, the first to prune first.

    Within a layer the smallest score goes first, equal ones by index. Several layers take turns in proportion
    to their width, since activations of different layers have no common scale.

    Args:
        scores: (channels,) a score for each channel of each layer.
        descending: Largest score first, as the handout of the pruning lab has it.
    """
    queue: list[tuple[float, int, Channel]] = []
    for place, (layer, values) in enumerate(scores.items()):
        order = torch.argsort(values, descending=descending, stable=True).tolist()
        queue += [((rank + 1) / len(order), place, Channel(layer, index)) for rank, index in enumerate(order)]
    return [channel for _, __, channel in sorted(queue, key=lambda entry: entry[:2])]

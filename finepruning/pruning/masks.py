"""Channel masks: a buffer that a layer's output is multiplied by.

A mask acts after normalisation and nonlinearity, so a pruned channel is exactly zero whatever BatchNorm or a
residual sum does before it. The layer keeps its name and its parameters' names; only ``<layer>.channel_mask``
is new, so that weights saved without masks still fit and masks are saved with the network.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.pruning.passes import probe

MASK = ".channel_mask"  # ends the name of a mask among a network's tensors


class _Masked:
    """Mixed into a layer's own class; see :func:`add_mask`."""

    channel_mask: Tensor

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        output: Tensor = super().forward(*inputs, **options)  # type: ignore[misc]
        return (output.transpose(1, -1) * self.channel_mask).transpose(
            1, -1
        )  # no shape asked: fx can trace it


@functools.cache
def _masked_class(layer_class: Any) -> Any:
    return type(f"Masked{layer_class.__name__}", (_Masked, layer_class), {})


def add_mask(network: nn.Module, layer: str, channels: int) -> None:
    """Let a layer's output pass through a mask that keeps every channel, unless it has one.

    Args:
        network: The network, changed in place.
        layer: Name of the layer whose output is masked, as in ``network.named_modules()``.
        channels: Channels of that output, dimension 1.

    Raises:
        ValueError: If there is no such layer.
    """
    module = find_layer(network, layer)
    if not isinstance(module, _Masked):
        device = next((tensor.device for tensor in network.parameters()), None)
        module.register_buffer("channel_mask", torch.ones(channels, device=device))
        kind: Any = module.__class__
        module.__class__ = _masked_class(kind)


def remove_mask(network: nn.Module, layer: str) -> None:
    """Take a layer's mask off, in place; a layer without one stays as it is."""
    module = find_layer(network, layer)
    if isinstance(module, _Masked):
        del module.channel_mask
        kind: Any = plain_class(module)
        module.__class__ = kind


def plain_class(module: nn.Module) -> type[nn.Module]:
    """Return the class that a module has without its mask."""
    return module.__class__.__mro__[2] if isinstance(module, _Masked) else module.__class__


def find_layer(network: nn.Module, layer: str) -> nn.Module:
    """Return a layer by name; a ValueError lists the names if there is none."""
    layers: dict[str, nn.Module] = {name: module for name, module in network.named_modules() if name}
    if layer not in layers:
        raise ValueError(
            f"The network has no layer {layer!r}. Choose defense.layers among: {', '.join(layers)}."
        )
    return layers[layer]


def channel_count(network: nn.Module, layer: str, image_shape: Sequence[int]) -> int:
    """Return how many channels a layer's output has for images of shape (C, H, W).

    Raises:
        ValueError: If there is no such layer, or its output has no channels, or has them last.
    """
    module = find_layer(network, layer)
    output = probe(network, [layer], image_shape).get(layer)
    if not isinstance(output, Tensor) or output.ndim < 2:
        raise ValueError(
            f"Layer {layer!r} has no channels that could be pruned. Choose another in defense.layers."
        )
    if output.ndim > 2 and _channels_last(module):
        raise ValueError(
            f"The channels of layer {layer!r} come last in its output {list(output.shape)}, and those of "
            "dimension 1 are pruned. Choose another in defense.layers, such as one that permutes them."
        )
    return output.shape[1]


def _channels_last(module: nn.Module) -> bool:
    """Return whether a layer, or the last one of several, makes its output along the last dimension."""
    while isinstance(module, nn.Sequential) and len(module):
        module = module[-1]
    of_last = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    return isinstance(module, nn.Linear) or (of_last and plain_class(module) is nn.LayerNorm)


def mask_of(network: nn.Module, layer: str) -> Tensor:
    """Return the mask (channels,) of a masked layer: 1 where a channel is kept, 0 where it is pruned.

    Raises:
        ValueError: If there is no such layer, or it has no mask.
    """
    module = find_layer(network, layer)
    if not isinstance(module, _Masked):
        raise ValueError(f"Layer {layer!r} has no channel mask. Give it one with add_mask first.")
    return module.channel_mask


def set_pruned(network: nn.Module, layer: str, channels: Iterable[int]) -> None:
    """Prune exactly ``channels`` of a masked layer, in place; all others are kept."""
    mask = mask_of(network, layer)
    mask.fill_(1.0)
    mask[list(channels)] = 0.0


def silent_layers(network: nn.Module) -> list[str]:
    """Return the masked layers that have no channel left."""
    return [
        name
        for name, layer in network.named_modules()
        if isinstance(layer, _Masked) and not layer.channel_mask.any()
    ]


def pruned_channels(network: nn.Module) -> dict[str, list[int]]:
    """Return the pruned channels of each masked layer, ascending."""
    return {
        name: (module.channel_mask == 0).nonzero().squeeze(1).tolist()
        for name, module in network.named_modules()
        if isinstance(module, _Masked)
    }

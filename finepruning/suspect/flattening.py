"""Which layers read a map of channels that was flattened, and in what order.

Keras flattens with the channels last, PyTorch with the channels first: a layer that reads such values needs
its weights in another order.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from finepruning.pruning.graph import (
    UntraceableError,
    adds,
    graph_module,
    keeps_channels,
    layer_of,
    leaves_channels_apart,
    traced,
)
from finepruning.pruning.passes import evaluating
from finepruning.suspect.weights import UnreadableError

READERS = (nn.Linear, nn.BatchNorm1d)  # whose weights have the order of what they read
RESHAPES = (torch.flatten, torch.reshape, torch.squeeze)
RESHAPING = ("flatten", "reshape", "view", "squeeze")  # methods
PERMUTES = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")
CHANNELS_LAST = ((0, 2, 3, 1), (0, -2, -1, 1))


@torch.no_grad()
def flattened_maps(network: nn.Module, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Return the shape (C, H, W) of the map that each linear layer and BatchNorm1d reads, flattened.

    Layers that read features, or a map that was flattened with the channels last, are left out.

    Args:
        network: The network; it is run once, on nothing.
        image_shape: (C, H, W) of the images.

    Raises:
        UnreadableError: If a layer reads such a map in an order that is not known.
    """
    readers = [name for name, module in network.named_modules() if isinstance(module, READERS)]
    if not readers:
        return {}
    try:
        tracer = traced(network)
        with evaluating(network):
            ShapeProp(graph_module(network, tracer.graph)).propagate(torch.zeros(1, *image_shape))
    except UntraceableError as error:
        raise UnreadableError(
            f"What {', '.join(readers[:10])} read cannot be followed through the network's forward "
            f"({error}), and Keras flattens in another order. Write it without branches on values."
        ) from error
    found = {}
    for name in readers:
        for output in tracer.outputs.get(name, []):
            (given,) = output.all_input_nodes
            shape = _map_behind(network, given, name)
            if shape is not None:
                found[name] = shape
    return found


def _map_behind(network: nn.Module, node: fx.Node, reader: str) -> tuple[int, ...] | None:
    """Return the shape of the map whose values a node holds in PyTorch's order; None of features."""
    shape = _shape(node)
    if len(shape) == 4:
        return None if _channels_last(network, node, reader) else shape[1:]
    if isinstance(layer_of(network, node), nn.Linear):
        return None
    parents = [parent for parent in node.all_input_nodes if "tensor_meta" in parent.meta]
    behind = [_map_behind(network, parent, reader) for parent in parents]
    maps = [each for each in behind if each is not None and math.prod(each[1:]) > 1]
    if not maps or all(math.prod(shape) == channels for channels, *_ in maps):  # one value a channel
        return None
    alike = len(maps) == len(parents) and len(set(maps)) == 1
    if alike and (_reshapes(network, node) or keeps_channels(network, node) or adds(node)):
        return maps[0]
    raise _unknown(reader, node)


def _channels_last(network: nn.Module, node: fx.Node, reader: str) -> bool:
    """Return whether a map's channels were moved behind its places."""
    while leaves_channels_apart(network, node):
        (node,) = node.all_input_nodes
    name = getattr(node.target, "__name__", str(node.target))
    if node.op not in ("call_method", "call_function") or name not in PERMUTES:
        return False
    dims = node.args[1:] if len(node.args) > 2 else node.args[1] if len(node.args) == 2 else ()
    if name == "permute" and isinstance(dims, Sequence) and tuple(dims) in CHANNELS_LAST:
        return True
    raise _unknown(reader, node)


def _unknown(reader: str, node: fx.Node) -> UnreadableError:
    return UnreadableError(
        f"{reader} reads a map of channels behind {node.name}, so that the order of its values is not known, "
        "and Keras flattens in another one than PyTorch. Flatten the map right before it in the forward."
    )


def _reshapes(network: nn.Module, node: fx.Node) -> bool:
    called = node.op == "call_function" and node.target in RESHAPES
    method = node.op == "call_method" and node.target in RESHAPING
    return called or method or isinstance(layer_of(network, node), nn.Flatten)


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta: Mapping[str, object] = node.meta
    return tuple(getattr(meta.get("tensor_meta"), "shape", ()))

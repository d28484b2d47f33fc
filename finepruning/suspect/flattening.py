"""Which layers read a map of channels that was flattened, and in what order.

Keras flattens with the channels last, PyTorch with the channels first: a layer that reads such values needs
its weights in another order.
"""

import math
from collections.abc import Sequence

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from finepruning.pruning.graph import (
    UntraceableError,
    adds,
    graph_module,
    keeps_channels,
    layer_of,
    traced,
)
from finepruning.pruning.passes import evaluating
from finepruning.suspect.weights import UnreadableError

READERS = (nn.Linear, nn.BatchNorm1d)  # whose weights have the order of what they read
READ_BY = (functional.linear, functional.batch_norm)  # by hand
# last words of what a node calls
CONVOLVES = ("conv2d", "conv_transpose2d", "convtranspose2d")
RESHAPES = ("flatten", "reshape", "view", "squeeze", "unsqueeze", "unflatten")
PERMUTES = ("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")
ELEMENTWISE = ("mul", "sub", "truediv", "div", "sigmoid", "softplus", "hardsigmoid", "hardtanh")

# How the values of a node lie; a flattened map in PyTorch's order is its shape (C, H, W), and a node stands
# for an order that is not known from that node on.
FEATURES, FIRST, LAST = "features, or a map as Keras flattens it", "channels first", "channels last"
Layout = str | tuple[int, ...] | fx.Node
TURNED: dict[tuple[str, tuple[int, ...] | None], str] = {
    (FIRST, (0, 2, 3, 1)): LAST,
    (LAST, (0, 3, 1, 2)): FIRST,
}


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
        graph = traced(network).graph
        with evaluating(network):
            ShapeProp(graph_module(network, graph)).propagate(torch.zeros(1, *image_shape))
    except (UntraceableError, RuntimeError) as error:
        raise UnreadableError(
            f"What {', '.join(readers[:10])} read cannot be followed through the network's forward "
            f"({error}), and Keras flattens in another order. Write it without branches on values."
        ) from error
    layouts: dict[fx.Node, Layout] = {}
    for node in graph.nodes:
        layouts[node] = _layout(network, node, layouts)
    found = {}
    for name in readers:
        for user, given in _reads(graph, name):
            layout = user if given is None else layouts[given]
            if isinstance(layout, fx.Node):
                raise UnreadableError(
                    f"{name} reads a map of channels behind {layout.name}, so that the order of its values "
                    "is not known, and Keras flattens in another one than PyTorch. Flatten the map right "
                    "before it in the forward."
                )
            if isinstance(layout, tuple):
                found[name] = layout
    return found


def _reads(graph: fx.Graph, name: str) -> list[tuple[fx.Node, fx.Node | None]]:
    """Return what uses a layer or its weight, and what that reads; None where it does not say."""
    users = {node: None for node in graph.nodes if node.op == "call_module" and node.target == name}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == f"{name}.weight":
            users |= dict.fromkeys(node.users)
    known = [user for user in users if user.op == "call_module" or user.target in READ_BY]
    given = {user: user.args[0] if user.args else user.kwargs.get("input") for user in known}
    return [(user, read if isinstance(read := given.get(user), fx.Node) else None) for user in users]


def _layout(network: nn.Module, node: fx.Node, layouts: dict[fx.Node, Layout]) -> Layout:
    """Return how a node's values lie, given the layouts of all before it."""
    shape, word, parents = _shape(node), _word(network, node), _tensors(node)
    if word in CONVOLVES or node.op == "placeholder":
        return FIRST if len(shape) == 4 else FEATURES
    if not parents or (word == "linear" and len(shape) == 2):
        return FEATURES
    before = [layouts[parent] for parent in parents]
    given, source = before[0], _shape(parents[0])
    unknown = next((layout for layout in before if isinstance(layout, fx.Node)), None)
    if unknown is not None:
        return unknown
    if len(set(before)) > 1 or node.target is getattr:  # as x.mT
        return node
    if word in PERMUTES and len(shape) == len(source) == 4:
        return TURNED.get((str(given), _permutation(node, word)), node)
    if len(shape) == 4:
        return _layout_of_map(node, given, shape, source, word in RESHAPES)
    if given in (FIRST, LAST):
        if math.prod(shape) == (source[1] if given == FIRST else source[-1]):  # one value a channel
            return FEATURES
        flattens = word in RESHAPES and len(shape) == 2
        return node if not flattens else source[1:] if given == FIRST else FEATURES
    apart = word in (*RESHAPES, *ELEMENTWISE) or keeps_channels(network, node) or adds(node)
    return given if given == FEATURES or (apart and shape == source) else node


def _layout_of_map(
    node: fx.Node, given: Layout, shape: tuple[int, ...], source: tuple[int, ...], reshapes: bool
) -> Layout:
    """Return how a map's values lie, which a node makes of maps or of what was flattened."""
    if given in (FIRST, LAST):
        return given if not reshapes or shape == source else node
    if given == shape[1:] or math.prod(shape[2:]) == 1:
        return FIRST
    raise UnreadableError(
        f"{node.name} makes a map of channels of a layer's features, which Keras does in another order than "
        "PyTorch. Save the network from PyTorch, as safetensors."
    )


def _word(network: nn.Module, node: fx.Node) -> str:
    """Return the last word of what a node calls, in small letters: of a layer its class."""
    layer = layer_of(network, node)
    called = node.target if layer is None else type(layer)
    return str(getattr(called, "__name__", called)).rpartition(".")[2].lower()


def _permutation(node: fx.Node, word: str) -> tuple[int, ...] | None:
    """Return where each dimension of what a node permutes comes from; None where it does not say."""
    sizes = (2, 3, 5, 7)
    try:
        turned = getattr(torch.empty(sizes), word)(*node.args[1:], **node.kwargs)
    except TypeError:  # dimensions that are computed, or given by name
        return None
    return tuple(map(sizes.index, turned.shape))


def _tensors(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that give a node values, and no sizes or constants."""
    return [each for each in node.all_input_nodes if _shape(each) and each.op != "get_attr"]


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))

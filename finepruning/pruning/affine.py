"""The part of a tail that is affine in the features: there, every pruned channel subtracts its own share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from finepruning.pruning.cut import Cut
from finepruning.pruning.graph import adds, graph_module
from finepruning.pruning.masks import plain_class

LARGEST_SLOPES = 2**24  # numbers; 64 MB of float32
LARGEST_WIDTH = 2048  # values; slopes are found by running the affine part once for each of them

_LAYERS = {
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),  # in evaluation mode
}
_FUNCTIONS = {
    *(torch.flatten, torch.reshape, torch.mean, torch.squeeze),
    *(nn.functional.avg_pool2d, nn.functional.adaptive_avg_pool2d),
}
_METHODS = {"flatten", "view", "reshape", "mean", "squeeze", "contiguous"}


@dataclass(frozen=True)
class AffineTail:
    """A tail in two: an affine map of the features, and the rest.

    Args:
        slopes: For each head, (C, S, Z): what a unit of each of a channel's S places adds to the Z values.
        value: Features of each head -> (B, Z).
        rest: Values (B, Z), then what crosses the cut -> logits.
    """

    slopes: tuple[Tensor, ...]
    value: Callable[..., Tensor]
    rest: Callable[..., Tensor]


def affine_tail(cut: Cut, features: Sequence[Tensor]) -> AffineTail | None:
    """Return the affine part of a cut's tail; None if there is none, or if it is too large to be written out.

    Args:
        cut: A cut network.
        features: Outputs of ``cut.first`` for some images, (B, C, ...) each.
    """
    if cut.tail is None:
        return None
    graph = cut.tail.graph
    places = [node for node in graph.nodes if node.op == "placeholder"]
    heads, crossing = places[: len(features)], places[len(features) :]
    affine, shapes = _affine_nodes(cut.tail, heads)
    border = [node for node in affine if any(user not in affine | shapes for user in node.users)]
    loose = [node for node in shapes if any(user not in affine | shapes for user in node.users)]
    if loose or any(node in heads for node in border):
        return None
    front = _part(cut.tail, heads, [*affine, *shapes], border)
    with torch.no_grad():
        sizes = [value.shape[1:] for value in front(*(part[:1] for part in features))]
    widths = [size.numel() for size in sizes]

    def value(*parts: Tensor) -> Tensor:
        return torch.cat([output.flatten(1) for output in front(*parts)], dim=1)

    if (
        sum(widths) > LARGEST_WIDTH
        or sum(widths) * sum(part[0].numel() for part in features) > LARGEST_SLOPES
    ):
        return None
    others = [node for node in graph.nodes if node not in affine and node not in shapes]
    back = _part(cut.tail, [*border, *crossing], others, None)

    def rest(values: Tensor, *others: Any) -> Tensor:
        parts = values.split(widths, dim=1)
        logits: Tensor = back(
            *(part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)), *others
        )
        return logits

    return AffineTail(_slopes(value, features, sum(widths)), value, rest)


def _affine_nodes(tail: fx.GraphModule, heads: Sequence[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the nodes that are affine in the heads, heads included, and those that only ask for shapes."""
    affine, shapes = set(heads), set[fx.Node]()
    for node in tail.graph.nodes:
        sources = set(node.all_input_nodes)
        if not sources & (affine | shapes) or not sources <= affine | shapes:
            continue
        if _asks_for_shape(node) or not sources & affine:
            shapes.add(node)
        elif _is_affine(tail, node, affine):
            affine.add(node)
    return affine, shapes


def _asks_for_shape(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target is getattr and str(node.args[1]) == "shape"
    return node.op == "call_method" and node.target == "size"


def _is_affine(tail: fx.GraphModule, node: fx.Node, affine: set[fx.Node]) -> bool:
    if node.op == "call_module":
        return plain_class(tail.get_submodule(str(node.target))) in _LAYERS
    if adds(node):
        return all(argument in affine for argument in node.args) and not node.kwargs
    return (node.op == "call_method" and node.target in _METHODS) or (
        node.op == "call_function" and node.target in _FUNCTIONS
    )


def _part(
    tail: fx.GraphModule, inputs: list[fx.Node], nodes: list[fx.Node], outputs: list[fx.Node] | None
) -> fx.GraphModule:
    """Return some of a tail's nodes as a module; the tail's own output if none is named."""
    part = fx.Graph()
    copies = {node: part.placeholder(node.name) for node in inputs}
    wanted = set(nodes)
    for node in tail.graph.nodes:
        if node in copies or node.op == "placeholder" or (node.op == "output" and outputs is not None):
            continue
        if node in wanted or node.op == "get_attr":
            copies[node] = part.node_copy(node, copies.__getitem__)
    if outputs is not None:
        part.output(tuple(copies[node] for node in outputs))
    return graph_module(tail, part)


def _slopes(value: Callable[..., Tensor], features: Sequence[Tensor], width: int) -> tuple[Tensor, ...]:
    """Return the derivatives of all ``width`` values, for each head (C, S, width)."""
    with torch.inference_mode(False), torch.enable_grad():
        origin = [torch.zeros_like(part[:1]).expand(width, *part.shape[1:]).clone() for part in features]
        for part in origin:
            part.requires_grad_()
        slopes = torch.autograd.grad(value(*origin).diagonal().sum(), origin)
    return tuple(slope.reshape(*slope.shape[:2], -1).permute(1, 2, 0).contiguous() for slope in slopes)

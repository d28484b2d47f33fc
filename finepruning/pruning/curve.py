"""Every step of pruning for about the price of one pass.

The network is cut at the pruned layer. What lies before runs once per batch; only what follows is repeated
for each step, and only for the images whose channel was awake: a channel that is zero on an image changes
nothing there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from finepruning.pruning.masks import find_layer, mask_of
from finepruning.pruning.ranking import Channel


@dataclass(frozen=True)
class Cut:
    """A network in two parts that share its weights.

    Args:
        network: The whole network.
        first: The layers where it is cut, their outputs come first out of ``before``.
        before: Images -> outputs of ``first``, then whatever else crosses the cut (skip connections).
        after: What ``before`` gave -> logits.
    """

    network: nn.Module
    first: tuple[str, ...]
    before: Callable[[Tensor], tuple[Tensor, ...]]
    after: Callable[..., Tensor]


def cut_at(network: nn.Module, layers: Sequence[str]) -> Cut:
    """Cut a network at one or several layers; where one follows another, at the one that comes first.

    Args:
        network: The network; it is put in evaluation mode.
        layers: Names of the layers.

    Raises:
        ValueError: If a layer does not exist, or runs more than once in a pass.
    """
    for layer in layers:
        find_layer(network, layer)
    graph = _Tracer(layers).trace(network.eval())
    nodes = {node.target: node for node in graph.nodes if node.op == "call_module" and node.target in layers}
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for layer in layers:
        if calls.count(layer) != 1:
            raise ValueError(
                f"Layer {layer!r} runs {calls.count(layer)} times in a pass; pruning needs exactly one."
            )
    after: set[fx.Node] = set()
    for node in graph.nodes:
        if any(source in after or source in nodes.values() for source in node.all_input_nodes):
            after.add(node)
    first = tuple(layer for layer in layers if nodes[layer] not in after)
    heads = [nodes[layer] for layer in first]
    crossing = [
        node
        for node in graph.nodes
        if node not in after
        and node not in heads
        and node.op != "get_attr"
        and not after.isdisjoint(node.users)
    ]
    return Cut(
        network,
        first,
        _before(network, graph, after, heads + crossing),
        _after(network, graph, after, heads + crossing),
    )


class _Tracer(fx.Tracer):
    """Keeps the pruned layers whole."""

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.layers = layers

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return name in self.layers or super().is_leaf_module(module, name)


def _before(network: nn.Module, graph: fx.Graph, after: set[fx.Node], outputs: list[fx.Node]) -> Any:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in after and node.op != "output":
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in outputs))
    return _module(network, part)


def _after(network: nn.Module, graph: fx.Graph, after: set[fx.Node], inputs: list[fx.Node]) -> Any:
    part = fx.Graph()
    copies = {node: part.placeholder(node.name) for node in inputs}
    for node in graph.nodes:
        if node in after or node.op == "get_attr":
            copies[node] = part.node_copy(node, copies.__getitem__)
    return _module(network, part)


def _module(network: nn.Module, part: fx.Graph) -> Any:
    module = fx.GraphModule(network, part)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


@torch.no_grad()
def step_predictions(cut: Cut, images: Tensor, order: Sequence[Channel]) -> Tensor:
    """Return what the network predicts before the first and after each channel of ``order`` is pruned.

    Args:
        cut: The network, cut at the layers that ``order`` names; those behind the cut must be masked layers.
        images: (B, C, H, W).
        order: Channels in the order in which they go.

    Returns:
        Predicted classes, shape (len(order) + 1, B).
    """
    values = list(cut.before(images))
    features = {layer: values[place].clone() for place, layer in enumerate(cut.first)}
    crossing = values[len(cut.first) :]
    masks = {layer: mask_of(cut.network, layer) for layer, _ in order if layer not in cut.first}
    unpruned = {layer: mask.clone() for layer, mask in masks.items()}
    by_image = all(isinstance(value, Tensor) and len(value) == len(images) for value in crossing)
    everyone = torch.ones(len(images), dtype=torch.bool, device=images.device)
    predictions = cut.after(*features.values(), *crossing).argmax(-1).expand(len(order) + 1, -1).clone()
    try:
        for step, (layer, number) in enumerate(order, start=1):
            changed = everyone
            if layer in masks:
                masks[layer][number] = 0.0
            else:
                channel = features[layer][:, number]
                changed = channel.reshape(len(images), -1).any(1) if by_image else everyone
                channel.zero_()
            predictions[step] = predictions[step - 1]
            if changed.all():
                predictions[step] = cut.after(*features.values(), *crossing).argmax(-1)
            elif changed.any():
                some = [value[changed] for value in (*features.values(), *crossing)]
                predictions[step, changed] = cut.after(*some).argmax(-1)
    finally:
        for layer, mask in masks.items():
            mask.copy_(unpruned[layer])
    return predictions

"""A network in two parts: what runs before the pruned layers, once, and what must run again at every step."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from finepruning.pruning.graph import UntraceableError, graph_module, traced
from finepruning.pruning.masks import find_layer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cut:
    """A network in two parts that share its weights.

    Args:
        network: The whole network.
        layers: The layers that may be pruned.
        first: Those of them where it is cut; their outputs come first out of ``before``.
        before: Images -> outputs of ``first``, then whatever else crosses the cut (skip connections).
        after: What ``before`` gave -> logits. It may write into its inputs.
        tail: The graph of ``after``; None for a network that could not be traced.
        cache: What is worked out from the first batch.
    """

    network: nn.Module
    layers: tuple[str, ...]
    first: tuple[str, ...]
    before: Callable[[Tensor], tuple[Any, ...]]
    after: Callable[..., Tensor]
    tail: fx.GraphModule | None = None
    cache: dict[str, Any] = field(default_factory=dict)


def cut_at(network: nn.Module, layers: Sequence[str]) -> Cut:
    """Cut a network at one or several layers; where one follows another, at the one that comes first.

    A network that cannot be traced is cut by a hook: correct, but all of it runs again at each step.

    Args:
        network: The network; it is put in evaluation mode.
        layers: Names of the layers.

    Raises:
        ValueError: If a layer does not exist, or runs more than once in a pass.
    """
    if not layers:
        raise ValueError("No layer is named. Set defense.layers to one or more layers, or to null.")
    for layer in layers:
        find_layer(network, layer)
    network.eval()
    try:
        tracer = traced(network)
    except UntraceableError as error:
        return hooked_cut(network, layers, str(error))
    if any(layer not in tracer.outputs for layer in layers):
        return hooked_cut(network, layers, "a pruned layer lies inside a layer that is traced as one")
    for layer in layers:
        if (runs := len(tracer.outputs[layer])) != 1:
            raise ValueError(
                f"Layer {layer!r} runs {runs} times in a pass; pruning needs exactly one. Choose another in "
                "defense.layers."
            )
    graph, nodes = tracer.graph, {layer: tracer.outputs[layer][0] for layer in layers}
    after: set[fx.Node] = set()
    for node in graph.nodes:
        if any(source in after or source in nodes.values() for source in node.all_input_nodes):
            after.add(node)
    of_images: set[fx.Node] = set()  # all others come from parameters alone, and are made again in the tail
    for node in graph.nodes:
        if node.op == "placeholder" or not of_images.isdisjoint(node.all_input_nodes):
            of_images.add(node)
    first = tuple(layer for layer in layers if nodes[layer] not in after)
    heads = [nodes[layer] for layer in first]
    crossing = [
        node
        for node in graph.nodes
        if node in of_images and node not in after and node not in heads and not after.isdisjoint(node.users)
    ]
    constants = set(graph.nodes) - of_images
    tail = _after(network, graph, after | constants, heads + crossing)
    return Cut(network, tuple(layers), first, _before(network, graph, after, heads + crossing), tail, tail)


def _before(network: nn.Module, graph: fx.Graph, after: set[fx.Node], outputs: list[fx.Node]) -> Any:
    part = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node not in after and node.op != "output":
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in outputs))
    return graph_module(network, part)


def _after(network: nn.Module, graph: fx.Graph, after: set[fx.Node], inputs: list[fx.Node]) -> fx.GraphModule:
    part = fx.Graph()
    copies = {node: part.placeholder(node.name) for node in inputs}
    for node in graph.nodes:
        if node in after:
            copies[node] = part.node_copy(node, copies.__getitem__)
    return graph_module(network, part)


def hooked_cut(network: nn.Module, layers: Sequence[str], reason: str) -> Cut:
    """Cut a network by a hook: ``after`` runs all of it, with the layer's output replaced.

    Args:
        network: The network; it is put in evaluation mode.
        layers: Names of the layers. Several are pruned through their masks, so they need some.
        reason: Why it cannot be traced, for the log.

    Raises:
        ValueError: In a pass, if the layer does not run exactly once.
    """
    log.warning(
        "The network runs whole at every step of the curve, which is slower: it cannot be cut (%s).", reason
    )
    network.eval()
    if len(layers) > 1:
        return Cut(network, tuple(layers), (), lambda images: (images,), network)
    layer = find_layer(network, layers[0])

    def before(images: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        handle = layer.register_forward_hook(lambda _, __, output: outputs.append(output))
        try:
            network(images)
        finally:
            handle.remove()
        if len(outputs) != 1:
            raise ValueError(
                f"Layer {layers[0]!r} runs {len(outputs)} times in a pass; pruning needs exactly one. Choose "
                "another in defense.layers."
            )
        return outputs[0].clone(), images

    def after(features: Tensor, images: Tensor) -> Tensor:
        handle = layer.register_forward_hook(lambda _, __, ___: features)
        try:
            logits: Tensor = network(images)
        finally:
            handle.remove()
        return logits

    return Cut(network, tuple(layers), tuple(layers), before, after)


@torch.no_grad()
def is_faithful(cut: Cut, images: Tensor) -> bool:
    """Return whether both parts, one after the other, give the whole network's logits for ``images``."""
    whole = cut.network(images)
    parts = cut.after(*cut.before(images))
    return parts.shape == whole.shape and bool(torch.allclose(parts, whole, rtol=1e-3, atol=1e-4))

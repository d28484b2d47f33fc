"""A network as a graph of its operations."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from finepruning.pruning.masks import plain_class
from finepruning.pruning.passes import evaluating


class Tracer(fx.Tracer):
    """Writes down which node is the output of which layer, for containers of layers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, list[fx.Node]] = {}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Keep a layer of PyTorch whole, whether it has a mask or not."""
        kind = plain_class(module)
        return kind.__module__.startswith(("torch.nn", "torch.ao.nn")) and kind is not nn.Sequential

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Trace a call and note its output."""
        output = super().call_module(m, forward, args, kwargs)
        if isinstance(output, fx.Proxy):
            self.outputs.setdefault(self.path_of_module(m), []).append(output.node)
        return output


class UntraceableError(Exception):
    """A network's forward does what cannot be done with symbols."""


def traced(network: nn.Module) -> Tracer:
    """Return what traced a network, with its ``graph`` and the ``outputs`` of its layers.

    Args:
        network: The network, as it is in evaluation; its mode is as before afterwards.

    Raises:
        UntraceableError: If it cannot be traced; the message says why, in a line.
    """
    tracer = Tracer()
    try:
        with evaluating(network):
            tracer.trace(network)
    except Exception as error:  # whatever a stranger's forward raises when it meets symbols
        raise UntraceableError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return tracer


def graph_module(network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a graph as a module that shares the network's weights; what it does not use is left out."""
    module = fx.GraphModule(network, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
ZERO_AT_ZERO = (  # nonlinearities with f(0) = 0, and dropout, in evaluation
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Tanh, nn.Softsign, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
FUNCTIONS = frozenset(  # of the same kind
    (
        *(torch.relu, torch.tanh, functional.relu, functional.relu6, functional.leaky_relu, functional.elu),
        *(functional.gelu, functional.silu, functional.hardswish, functional.dropout, functional.tanh),
        *(functional.avg_pool2d, functional.adaptive_avg_pool2d, functional.max_pool2d),
    )
)
SIGMOIDS = (nn.Sigmoid, nn.Hardsigmoid)  # 0.5 at 0
SIGMOID_FUNCTIONS = frozenset((torch.sigmoid, functional.sigmoid, functional.hardsigmoid))
METHODS = frozenset({"relu", "relu_", "tanh", "contiguous", "clone"})


def layer_of(network: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the layer that a node calls; None if it calls none."""
    return network.get_submodule(str(node.target)) if node.op == "call_module" else None


def leaves_channels_apart(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node acts on each channel by itself, and leaves a zero channel zero."""
    layer = layer_of(network, node)
    if layer is not None:
        return plain_class(layer) in (*POOLS, *ZERO_AT_ZERO)
    function = node.target if node.op == "call_function" else None
    return function in FUNCTIONS or (node.op == "call_method" and node.target in METHODS)


def keeps_channels(network: nn.Module, node: fx.Node) -> bool:
    """Return whether each channel of a node's output comes from one channel: as above, or a BatchNorm."""
    layer = layer_of(network, node)
    return leaves_channels_apart(network, node) or (layer is not None and plain_class(layer) in NORMS)


def rectifies(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node is a ReLU."""
    layer = layer_of(network, node)
    if layer is not None:
        return plain_class(layer) in (nn.ReLU, nn.ReLU6)
    function = node.target if node.op == "call_function" else None
    rectifying = function in (torch.relu, torch.relu_, functional.relu, functional.relu6)
    return rectifying or (node.op == "call_method" and node.target in ("relu", "relu_"))


def opens_at_zero(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node feeds a sigmoid that does not multiply the node itself, as SiLU's would."""

    def is_sigmoid(user: fx.Node) -> bool:
        layer = layer_of(network, user)
        if layer is not None:
            return plain_class(layer) in SIGMOIDS
        return user.target in SIGMOID_FUNCTIONS or (user.op == "call_method" and user.target == "sigmoid")

    gates = [user for user in node.users if is_sigmoid(user)]
    return any(node not in product.all_input_nodes for gate in gates for product in gate.users)


def adds(node: fx.Node) -> bool:
    """Return whether a node is the sum of two others, as in a residual block."""
    return node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)


def answers(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node's channels are the classes: nothing that has weights comes behind it."""
    queue, seen = [node], {node}
    while queue:
        for user in queue.pop().users:
            layer = layer_of(network, user)
            weightless = layer is None or plain_class(layer) in NORMS or not list(layer.parameters())
            if not weightless or any(source.op == "get_attr" for source in user.all_input_nodes):
                return False
            if user not in seen:
                seen.add(user)
                queue.append(user)
    return True


def find_makers(network: nn.Module, node: fx.Node) -> list[nn.Module]:
    """Return the convolutions or linear layers that make a node's channels; none if one is out of sight."""
    found: dict[nn.Module, None] = {}
    queue, seen = [node], {node}
    while queue:
        current = queue.pop()
        layer = layer_of(network, current)
        if isinstance(layer, (*CONVOLUTIONS, nn.Linear)):
            found[layer] = None
        elif adds(current) or keeps_channels(network, current):
            sources = [source for source in current.all_input_nodes if source not in seen]
            seen.update(sources)
            queue += sources
        else:
            return []
    return list(found)

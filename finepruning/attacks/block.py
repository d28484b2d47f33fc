"""The layers that make the channels of a pruned layer. Who rewrites their weights rewrites the channels."""

from typing import NamedTuple

from torch import Tensor, fx, nn

from finepruning.pruning.graph import NORMS, POOLS, UntraceableError, layer_of, traced
from finepruning.pruning.masks import find_layer, plain_class


class Block(NamedTuple):
    """A convolution, a BatchNorm if there is one, then a ReLU, with or without pooling.

    Args:
        convolution: Name of the convolution.
        norm: Name of the BatchNorm behind it, or None.
    """

    convolution: str
    norm: str | None

    @property
    def last(self) -> str:
        """Name of the layer in front of the ReLU, whose bias moves the channels up and down."""
        return self.norm or self.convolution

    def rows(self, network: nn.Module) -> dict[str, Tensor]:
        """Return every parameter and buffer with one row a channel, by name."""
        names = [name for name in (self.convolution, self.norm) if name]
        return {
            f"{name}.{key}": tensor
            for name in names
            for key, tensor in find_layer(network, name).state_dict(keep_vars=True).items()
            if tensor.ndim and key != "channel_mask"
        }


def find_block(network: nn.Module, layer: str) -> Block:
    """Return the block whose output a layer is.

    Args:
        network: The network; its mode is as before afterwards.
        layer: Name of the layer: a ReLU or a pooling.

    Raises:
        ValueError: If the layer is not the output of a convolution, BatchNorm or none, ReLU and pooling or
            none, or if a bias is missing.
    """
    try:
        tracer = traced(network)
    except UntraceableError as error:
        raise _refusal(layer, f"the network cannot be traced ({error})") from error
    find_layer(network, layer)
    nodes = tracer.outputs.get(layer, [])
    if len(nodes) != 1:
        raise _refusal(layer, f"it runs {len(nodes)} times in a pass")
    node, kinds, names = nodes[0], [_kind(network, nodes[0])], [_name(nodes[0])]
    while kinds[-1] in ("pool", "relu", "norm"):
        node = node.all_input_nodes[0]
        kinds.append(_kind(network, node))
        names.append(_name(node))
        if len(node.users) > 1:
            raise _refusal(layer, f"the output of {names[-1]} is read elsewhere, too")
    steps = {kind: name for kind, name in zip(kinds, names, strict=True) if kind != "pool"}
    if [kind for kind in kinds if kind != "pool"] not in (
        ["relu", "convolution"],
        ["relu", "norm", "convolution"],
    ):
        raise _refusal(layer, f"it is made by {', '.join(reversed(names))}")
    block = Block(steps["convolution"], steps.get("norm"))
    if getattr(find_layer(network, block.last), "bias", None) is None:
        raise _refusal(layer, f"{block.last} has no bias")
    return block


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name


def _kind(network: nn.Module, node: fx.Node) -> str:
    layer = layer_of(network, node)
    kind = type(None) if layer is None else plain_class(layer)
    names = {nn.ReLU: "relu", nn.Conv1d: "convolution", nn.Conv2d: "convolution", nn.Conv3d: "convolution"}
    return "pool" if kind in POOLS else "norm" if kind in NORMS else names.get(kind, "other")


def _refusal(layer: str, reason: str) -> ValueError:
    return ValueError(
        f"This attack rewrites the channels of {layer!r} and needs it to be the output of a convolution, a "
        f"BatchNorm or none, a ReLU, and pooling or none, but {reason}. Choose another model."
    )

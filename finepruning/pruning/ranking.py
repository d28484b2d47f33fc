"""In which order channels go."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, fx, nn

from finepruning.pruning.graph import (
    CONVOLUTIONS,
    NORMS,
    UntraceableError,
    answers,
    find_makers,
    keeps_channels,
    layer_of,
    opens_at_zero,
    rectifies,
    traced,
)
from finepruning.pruning.masks import find_layer
from finepruning.pruning.passes import evaluating


class Channel(NamedTuple):
    """An output channel of a layer: what pruning calls a neuron in Fine-Pruning."""

    layer: str
    number: int


@torch.no_grad()
def mean_activations(
    network: nn.Module, layers: Sequence[str], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return each channel's mean output over images and places (Fine-Pruning, section "Pruning Defense").

    Where nothing but a ReLU follows a layer, it is the mean of the positive part.

    Args:
        network: The network, used in evaluation mode.
        layers: Names of the layers.
        batches: Images (B, C, H, W) of the defender.

    Returns:
        A float64 tensor (channels,) for each layer.
    """
    totals: dict[str, Tensor] = {}
    seen, rectified = 0, before_relu(network, layers)

    def watch(layer: str) -> torch.utils.hooks.RemovableHandle:
        def add(_: nn.Module, __: object, output: Tensor) -> None:
            per_image = image_means(output.relu() if layer in rectified else output)
            totals[layer] = totals.get(layer, torch.zeros(1).to(per_image)) + per_image.sum(0)

        return find_layer(network, layer).register_forward_hook(add)

    handles = [watch(layer) for layer in layers]
    try:
        with evaluating(network):
            for images in batches:
                network(images)
                seen += len(images)
    finally:
        for handle in handles:
            handle.remove()
    return {layer: (totals[layer] / seen).cpu() for layer in layers}


def image_means(output: Tensor) -> Tensor:
    """Return each channel's mean over the places of an image, (B, channels) in float64."""
    return output.double().flatten(2).mean(2) if output.ndim > 2 else output.double()


def before_relu(network: nn.Module, layers: Sequence[str]) -> set[str]:
    """Return the layers whose output goes into a ReLU and nowhere else.

    One that runs several times, or in a network that cannot be traced, is not among them.
    """
    if not layers:
        return set()
    try:
        outputs = traced(network).outputs
    except UntraceableError:
        return set()
    ends = {layer: outputs.get(layer, []) for layer in layers}
    return {
        layer
        for layer, nodes in ends.items()
        if len(nodes) == 1 and nodes[0].users and all(rectifies(network, user) for user in nodes[0].users)
    }


def activation_change(
    network: nn.Module, layers: Sequence[str], clean: Iterable[Tensor], triggered: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return how much a trigger raises each channel's mean output: an oracle, since no defender has triggers.

    Deviation: the published forms take the norm of the change in each image; this one has a sign.

    Args:
        network: The network, used in evaluation mode.
        layers: Names of the layers.
        clean: Images (B, C, H, W).
        triggered: Images (B, C, H, W) with the trigger.

    Returns:
        A float64 tensor (channels,) for each layer; the backdoor's channels have the largest values.
    """
    before, after = (mean_activations(network, layers, images) for images in (clean, triggered))
    return {layer: after[layer] - before[layer] for layer in layers}


class Chain(NamedTuple):
    """A convolution and what only normalises, cuts off or pools its channels behind it.

    Args:
        convolution: Its name.
        norm: The BatchNorm right behind it, if one is there.
        output: The last layer where its channels are alone, so that they are best pruned there.
    """

    convolution: str
    norm: str | None
    output: str


def convolution_chains(network: nn.Module) -> list[Chain]:
    """Return the chain of each convolution that runs once in a pass and whose channels are not the classes.

    Gates, as of squeeze and excitation, are left out: a gate of zero is half open, and nothing is silent.

    Args:
        network: The network; its mode is as before afterwards.

    Raises:
        ValueError: If it cannot be traced.
    """
    try:
        tracer = traced(network)
    except UntraceableError as error:
        raise ValueError(
            f"The network cannot be traced ({error}), so that nobody knows what follows its convolutions. "
            "Choose another defense."
        ) from error
    named: dict[fx.Node, str] = {}
    for name, nodes in tracer.outputs.items():  # a layer comes before the container that it ends
        if len(nodes) == 1:
            named.setdefault(nodes[0], name)
    found = []
    for name, layer in network.named_modules():
        nodes = tracer.outputs.get(name, [])
        if not isinstance(layer, CONVOLUTIONS) or len(nodes) != 1 or answers(network, nodes[0]):
            continue
        last, norm, node = name, None, nodes[0]
        while len(node.users) == 1 and keeps_channels(network, user := next(iter(node.users))):
            if node is nodes[0] and isinstance(layer_of(network, user), NORMS):
                norm = named.get(user)
            last, node = named.get(user, last), user
        if not opens_at_zero(network, node):
            found.append(Chain(name, norm, last))
    return found


def convolution_outputs(network: nn.Module) -> list[str]:
    """Return, for each convolution, the layer where its channels are best pruned alone.

    That is the end of its chain; the convolution itself where the network cannot be traced.

    Args:
        network: The network; its mode is as before afterwards.
    """
    try:
        return [chain.output for chain in convolution_chains(network)]
    except ValueError:
        return [name for name, layer in network.named_modules() if isinstance(layer, CONVOLUTIONS)]


def random_scores(channels: Mapping[str, int], seed: int) -> dict[str, Tensor]:
    """Return scores that say nothing: the control that every other order must beat.

    Args:
        channels: Channels of each layer.
        seed: Seed of the scores.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        layer: torch.rand(count, dtype=torch.float64, generator=generator)
        for layer, count in channels.items()
    }


@torch.no_grad()
def weight_norms(network: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """Return the L1 norm of the weights that make each channel of each layer.

    They are looked for upstream of the layer: through normalisation, nonlinearity and pooling to the
    convolution or linear layer that makes the channel. At a residual sum both branches count.

    Args:
        network: The network; its mode is as before afterwards.
        layers: Names of the layers.

    Returns:
        A float64 tensor (channels,) for each layer.

    Raises:
        ValueError: If the weights cannot be found.
    """
    try:
        tracer = traced(network)
    except UntraceableError as error:
        raise ValueError(
            f"The weights of a channel cannot be found: the network cannot be traced ({error}). Set "
            "defense.order to activation."
        ) from error
    norms = {}
    for layer in layers:
        find_layer(network, layer)
        nodes = tracer.outputs.get(layer, [])
        if len(nodes) != 1:
            raise ValueError(
                f"Layer {layer!r} runs {len(nodes)} times in a pass; exactly one is needed. Choose "
                "another in defense.layers."
            )
        makers = find_makers(network, nodes[0])
        widths = {len(maker.weight) for maker in makers}  # type: ignore[arg-type]
        if len(widths) != 1:
            raise ValueError(
                f"No convolution or linear layer that makes the channels of {layer!r} was found. Set "
                "defense.order to activation."
            )
        norms[layer] = (
            torch.stack(
                [maker.weight.double().abs().flatten(1).sum(1) for maker in makers]  # type: ignore[operator]
            )
            .sum(0)
            .cpu()
        )
    return norms


def prune_order(
    scores: Mapping[str, Tensor], descending: bool = False, joint: Literal["each", "common"] = "each"
) -> list[Channel]:
    """Return all channels, the first to prune first.

    Within a layer the smallest score goes first, equal ones by index.

    Args:
        scores: (channels,) a score for each channel of each layer.
        descending: Largest score first, as the handout of the pruning lab has it.
        joint: How several layers share the order. ``"each"``: they take turns in proportion to their width,
            for scores that have no common scale. ``"common"``: one order by score, equal ones by layer.

    Raises:
        ValueError: If ``joint`` is unknown, or a score is not a number.
    """
    if joint not in ("each", "common"):
        raise ValueError(f"joint={joint!r} is unknown. Set defense.joint to each or common.")
    queue: list[tuple[float, int, Channel]] = []
    for place, (layer, values) in enumerate(scores.items()):
        if values.isnan().any():
            raise ValueError(
                f"Channel {int(values.isnan().nonzero()[0])} of layer {layer!r} has no score (NaN): the "
                "network does not give finite values there and cannot be ranked."
            )
        order = torch.argsort(values, descending=descending, stable=True).tolist()
        for rank, number in enumerate(order):
            score = float(values[number]) * (-1 if descending else 1)
            turn = (rank + 1) / len(order) if joint == "each" else score
            queue.append((turn, place, Channel(layer, number)))
    return [channel for _, __, channel in sorted(queue, key=lambda entry: entry[:2])]

"""Adversarial neuron pruning: channels that a small change of their weights turns against the network."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from finepruning.pruning import convolution_chains
from finepruning.pruning.masks import mask_of
from finepruning.repair.ladder import PairedLoss, climb


@dataclass(frozen=True)
class Neurons:
    """The channels of one convolution.

    Args:
        scaled: The layer whose weight and bias make them: the BatchNorm right behind the convolution, or the
            convolution itself.
        output: The layer, behind the nonlinearity, whose mask prunes them.
        count: How many there are.
    """

    scaled: str
    output: str
    count: int


def find_neurons(network: nn.Module) -> list[Neurons]:
    """Return the channels of each convolution that can be scaled.

    Raises:
        ValueError: If there are none, or the network cannot be traced.
    """
    found = []
    for chain in convolution_chains(network):
        scaled = chain.norm or chain.convolution
        weight = dict(network.get_submodule(scaled).named_parameters(recurse=False)).get("weight")
        if weight is not None:
            found.append(Neurons(scaled, chain.output, len(weight)))
    if not found:
        raise ValueError(
            "Adversarial neuron pruning needs convolutions that run once in a pass, and this network has "
            "none whose channels have weights of their own. Choose another defense, or another model."
        )
    return found


def scaled_weights(
    network: nn.Module, neurons: Sequence[Neurons], weight_scales: Sequence[Tensor], biases: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the weights and biases of some layers, each channel multiplied by a scale of its own.

    Args:
        network: The network; it stays as it is.
        neurons: Layers with n channels each.
        weight_scales: (n,) of each layer's weights, the paper's m + delta.
        biases: (n,) scales of each layer's biases, the paper's 1 + xi.

    Returns:
        Parameters by name, for ``torch.func.functional_call``.
    """
    found = {}
    for layer, scale, bias_scale in zip(neurons, weight_scales, biases, strict=True):
        module = network.get_submodule(layer.scaled)
        weight, bias = module.get_parameter("weight").detach(), module.bias
        found[f"{layer.scaled}.weight"] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
        if isinstance(bias, Tensor):
            found[f"{layer.scaled}.bias"] = bias.detach() * bias_scale
    return found


def worsen(noise: Sequence[Tensor], gradients: Sequence[Tensor], size: float) -> list[Tensor]:
    """Return noise one step of length ``size`` up the sign of the loss's gradients, inside [-size, size].

    The authors' code leaves out the return into the interval, which the paper's problem asks for.
    """
    return [
        (values + size * slope.sign()).clamp(-size, size)
        for values, slope in zip(noise, gradients, strict=True)
    ]


def thresholds(step: float) -> list[float]:
    """Return the thresholds from 0 up to less than 1, ``step`` apart."""
    return list(itertools.takewhile(lambda value: value < 1, (round(n * step, 9) for n in itertools.count())))


def prune_below(
    network: nn.Module, neurons: Sequence[Neurons], values: Sequence[Tensor], threshold: float
) -> None:
    """Prune the channels whose mask value is at most ``threshold``; what is pruned already stays so.

    Behind the nonlinearity, where a pruned channel is exactly 0: zeroing a BatchNorm's weight alone would let
    its bias through.
    """
    for layer, value in zip(neurons, values, strict=True):
        mask_of(network, layer.output)[value <= threshold] = 0.0


def prune_by_threshold(
    network: nn.Module,
    neurons: Sequence[Neurons],
    values: Sequence[Tensor],
    steps: Sequence[float],
    loss: Callable[[], PairedLoss],
    max_drop: float,
) -> float | None:
    """Prune up to the last threshold before one that costs more than ``max_drop``; return it, None if none.

    Args:
        network: A network with masks on the neurons' outputs, changed in place.
        neurons: The channels.
        values: (n,) what was learned for those of each layer, in [0, 1].
        steps: Thresholds in rising order.
        loss: Measures what the network as it is now loses on the defender's validation images.
        max_drop: Largest allowed loss of accuracy, in [0, 1].
    """
    before = [mask_of(network, layer.output).clone() for layer in neurons]

    def attempt(threshold: float) -> PairedLoss:
        _restore(network, neurons, before)
        prune_below(network, neurons, values, threshold)
        return loss()

    _, kept = climb(steps, attempt, max_drop)
    _restore(network, neurons, before)
    if kept is None:
        return None
    prune_below(network, neurons, values, steps[kept])
    return steps[kept]


def _restore(network: nn.Module, neurons: Sequence[Neurons], masks: Sequence[Tensor]) -> None:
    for layer, mask in zip(neurons, masks, strict=True):
        mask_of(network, layer.output).copy_(mask)

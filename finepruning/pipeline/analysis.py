"""What the referee says beside the final scores: of each pruning step, of each layer. It decides nothing."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from finepruning.data import ImageSet
from finepruning.pruning import (
    Channel,
    add_mask,
    convolution_outputs,
    prune_alone,
    prune_until,
    pruned_channels,
    set_pruned,
)
from finepruning.referee import Triggering, score, score_steps


def score_curve(
    network: nn.Module, curve: Mapping[str, Any], test: ImageSet, attack: Triggering | None, device: str
) -> list[dict[str, Any]]:
    """Return the curve of a defense, the referee's scores beside the defender's own; empty without one.

    Args:
        network: The suspect.
        curve: The state of the callback that pruned; empty if none did.
        test: The data set's own test images.
        attack: The attack, or None.
        device: Where to compute.
    """
    if not curve.get("order"):
        return []
    order = [Channel(*channel) for channel in curve["order"]]
    layers = list(dict.fromkeys(channel.layer for channel in order))
    steps = []
    for number, scores in enumerate(score_steps(network, layers, order, test, attack, device)):
        channel = order[number - 1]._asdict() if number else {"layer": None, "number": None}
        about = {"channels_pruned": number, **channel, "pruned": 0 < number <= curve["channels_pruned"]}
        about["validation_accuracy"] = curve["hits"][number] / curve["total"]
        steps.append(about | scores.values())
    return steps


def check_analysis(network: nn.Module, layers: Sequence[str] | None, max_drop: float) -> None:
    """Raise ValueError if the analysis names a layer that is not there, or a drop that makes no sense."""
    names = {name for name, _ in network.named_modules() if name}
    unknown = [layer for layer in layers or () if layer not in names]
    if unknown:
        raise ValueError(
            f"The network has no layer {unknown[0]!r}. Choose analysis.layers among: "
            f"{', '.join(sorted(names))}."
        )
    if not 0 <= max_drop <= 1:
        raise ValueError(f"analysis.max_drop={max_drop} is outside [0, 1]. It is a fraction: 0.04 is 4 %.")


def analyse_layers(
    network: nn.Module,
    validation: ImageSet,
    test: ImageSet,
    attack: Triggering | None,
    device: str,
    layers: Sequence[str] | None,
    max_drop: float,
) -> list[dict[str, Any]]:
    """Return, for each layer, how many channels it can spare alone, and what is left of the backdoor then.

    Dormant channels go first, as in pruning; how far is decided on the defender's validation images.

    Args:
        network: The suspect; it stays as it is.
        validation: The defender's images that decide.
        test: The data set's own test images.
        attack: The attack, or None.
        device: Where to compute.
        layers: Names of the layers; None for the outputs of all convolutions.
        max_drop: Largest allowed loss of validation accuracy, in [0, 1].
    """
    network = copy.deepcopy(network).to(device).eval()
    layers = list(layers or convolution_outputs(network))
    curves = prune_alone(network, layers, lambda: validation.batches(device=device))
    rows = []
    for layer, curve in curves.items():
        before = pruned_channels(network).get(layer, [])
        count = prune_until(curve, max_drop)
        add_mask(network, layer, len(curve) - 1)
        gone = [point.channel.number for point in curve[1 : count + 1] if point.channel]
        set_pruned(network, layer, [*before, *gone])
        row = {"layer": layer, "channels": len(curve) - 1, "prunable": count}
        row["validation_accuracy"] = curve[count].validation_accuracy
        rows.append(row | score(network, test, attack, device).values())
        set_pruned(network, layer, before)
    return rows

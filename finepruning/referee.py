"""The referee: the only room that sees test images, clean and triggered. What it measures decides nothing."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from finepruning.data import BATCH_SIZE, ImageSet
from finepruning.metrics import Drop, Rate, attack_hits, clean_hits, predicted, rejected_hits, robust_hits
from finepruning.pruning import Channel, activation_change, cut_at, prune_order, step_predictions

DEAD_BELOW = 0.5
NO_CLASS = -3  # never predicted


class Triggering(Protocol):
    """What the referee asks of an attack: of one that was made here, or of a stranger's that is known."""

    @property
    def untargeted(self) -> bool:
        """Whether any wrong class will do."""
        ...

    def wanted(self, images: ImageSet) -> Tensor:
        """Return the attacker's label (M,) for each triggered image."""
        ...

    def stamp(self, images: ImageSet) -> ImageSet:
        """Return the triggered images (M) with their true labels, -1 where those are not known."""
        ...


@dataclass(frozen=True)
class Scores:
    """A network on the untouched test set. Without an attack the last two are None."""

    clean_accuracy: Rate
    attack_success_rate: Rate | Drop | None = None
    robust_accuracy: Rate | None = None

    @property
    def untargeted(self) -> bool:
        """Whether attack success is a loss of accuracy instead of a share of images."""
        return isinstance(self.attack_success_rate, Drop)

    @property
    def dead(self) -> bool:
        """Whether there is an attack that succeeds on fewer than half of the images that count."""
        return self.attack_success_rate is not None and not self.attack_success_rate.value >= DEAD_BELOW

    def values(self) -> dict[str, float | None]:
        """Return each score; None where it was not measured or has no value."""
        values = {name: None if rate is None else rate.value for name, rate in self._rates.items()}
        return {name: None if value is None or math.isnan(value) else value for name, value in values.items()}

    def to_record(self) -> dict[str, object]:
        """Return plain values: each score, with its counts and its 95 % interval beside it.

        A loss of accuracy has no counts of its own: they are those of clean and robust accuracy.
        """
        values = self.values()
        known = {name: rate for name, rate in self._rates.items() if rate is not None}
        counted = {name: rate for name, rate in known.items() if isinstance(rate, Rate)}
        return {
            **values,
            **({"untargeted": True} if self.untargeted else {}),
            "counts": {name: {"hits": rate.hits, "total": rate.total} for name, rate in counted.items()},
            "intervals": {
                name: None if values[name] is None else list(rate.interval) for name, rate in known.items()
            },
        }

    @property
    def _rates(self) -> dict[str, Rate | Drop | None]:
        return dict(vars(self))


@dataclass(frozen=True)
class DetectorScores(Scores):
    """A network that may also answer "triggered": which share of its inputs it rejects in that way.

    A rejected clean image is an error; a rejected triggered one is no success of the attack. The triggered
    images that count are those of attack success.
    """

    clean_rejected: Rate | None = None
    triggered_rejected: Rate | None = None


def score(
    network: nn.Module, test: ImageSet, attack: Triggering | None, device: torch.device | str = "cpu"
) -> Scores:
    """Score a network: one pass over the clean test images, one over the triggered ones.

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K); left in evaluation mode.
        test: The data set's own test images.
        attack: The attack, or None.
        device: Where to compute.
    """
    return score_steps(network, (), (), test, attack, device)[0]


@torch.no_grad()
def score_steps(
    network: nn.Module,
    layers: Sequence[str],
    order: Sequence[Channel],
    test: ImageSet,
    attack: Triggering | None,
    device: torch.device | str = "cpu",
) -> list[Scores]:
    """Score a network before the first and after each channel of ``order`` is pruned, in two passes."""
    network.to(device).eval()
    cut = cut_at(network, layers) if order else None

    def predict(images: Tensor) -> Tensor:
        return predicted(network(images))[None] if cut is None else step_predictions(cut, images, order)

    rates = _count(predict, test, attack, device)
    clean = rates["clean_accuracy"]
    if attack is None:
        return [Scores(rate) for rate in clean]
    untargeted = attack.untargeted
    return [
        Scores(accuracy, Drop(accuracy, kept) if untargeted else won, kept)
        for accuracy, won, kept in zip(
            clean, rates["attack_success_rate"], rates["robust_accuracy"], strict=True
        )
    ]


@torch.no_grad()
def score_detector(
    detector: nn.Module,
    num_classes: int,
    test: ImageSet,
    attack: Triggering | None,
    device: torch.device | str = "cpu",
) -> DetectorScores:
    """Score a network with one class more than the data: "triggered".

    An untargeted attack succeeds where accuracy is lost and the image is not rejected.

    Args:
        detector: Images (B, C, H, W) in [0, 1] -> logits (B, K + 1); left in evaluation mode.
        num_classes: Classes of the data, K.
        test: The data set's own test images.
        attack: The attack, or None.
        device: Where to compute.
    """
    detector.to(device).eval()
    counted = _count(lambda images: predicted(detector(images))[None], test, attack, device, num_classes)
    rates = {name: rate for name, (rate,) in counted.items()}
    if attack is None:
        return DetectorScores(rates["clean_accuracy"], clean_rejected=rates["clean_rejected"])
    success: Rate | Drop = rates["attack_success_rate"]
    if attack.untargeted:
        kept, rejected = rates["robust_accuracy"], rates["triggered_rejected"]
        success = Drop(rates["clean_accuracy"], Rate(kept.hits + rejected.hits, kept.total))
    return DetectorScores(**rates | {"attack_success_rate": success})  # type: ignore[arg-type]


@torch.no_grad()
def trigger_change_order(
    network: nn.Module,
    layers: Sequence[str],
    test: ImageSet,
    attack: Triggering,
    joint: Literal["each", "common"] = "each",
    device: torch.device | str = "cpu",
) -> list[Channel]:
    """Return all channels, first those that the trigger raises most: an oracle's order, for analysis.

    Args:
        network: The suspect; left in evaluation mode.
        layers: Names of the layers.
        test: The data set's own test images.
        attack: The attack.
        joint: How several layers share the order: see ``prune_order``.
        device: Where to compute.
    """
    network.to(device).eval()
    clean, triggered = (
        (images for images, _ in images.batches(device=device)) for images in (test, attack.stamp(test))
    )
    change = activation_change(network, layers, clean, triggered)
    return prune_order(change, descending=True, joint=joint)


def _count(
    predict: Callable[[Tensor], Tensor],
    test: ImageSet,
    attack: Triggering | None,
    device: torch.device | str,
    extra_class: int = NO_CLASS,
) -> dict[str, list[Rate]]:
    """Return every rate of each step; ``predict`` gives predictions (steps, B) for images (B, C, H, W)."""
    tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
    for images, labels in test.batches(device=device):
        predictions = predict(images)
        tallies["clean_accuracy"].add(clean_hits(predictions, labels))
        tallies["clean_rejected"].add(rejected_hits(predictions, extra_class, torch.ones_like(labels).bool()))
    if attack is not None:
        attacker_labels = attack.wanted(test).to(device).split(BATCH_SIZE)
        batches = attack.stamp(test).batches(device=device)
        for (images, labels), wanted in zip(batches, attacker_labels, strict=True):
            predictions = predict(images)
            tallies["attack_success_rate"].add(attack_hits(predictions, labels, wanted))
            tallies["robust_accuracy"].add(robust_hits(predictions, labels, wanted))
            tallies["triggered_rejected"].add(rejected_hits(predictions, extra_class, labels != wanted))
    return {name: tally.rates() for name, tally in tallies.items()}


class _Tally:
    """Hits of every step, and the images they are counted over."""

    def __init__(self) -> None:
        self.hits: Tensor | int = 0
        self.total: Tensor | int = 0

    def add(self, counts: tuple[Tensor, Tensor]) -> None:
        self.hits = self.hits + counts[0]
        self.total = self.total + counts[1]

    def rates(self) -> list[Rate]:
        return [Rate(hits, int(self.total)) for hits in torch.as_tensor(self.hits).tolist()]

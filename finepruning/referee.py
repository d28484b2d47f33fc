"""The referee: the only room that sees test images, clean and triggered. What it measures decides nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from finepruning.data import ImageSet
from finepruning.metrics import Drop, Rate, attack_hits, clean_hits, robust_hits
from finepruning.pruning import Channel, cut_at, step_predictions

DEAD_BELOW = 0.5
BATCH_SIZE = 256


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
        return network(images).argmax(-1)[None] if cut is None else step_predictions(cut, images, order)

    clean = _Tally()
    for images, labels in test.batches(BATCH_SIZE, device):
        clean.add(clean_hits(predict(images), labels))
    if attack is None:
        return [Scores(rate) for rate in clean.rates()]
    success, robust = _Tally(), _Tally()
    attacker_labels = attack.wanted(test).to(device).split(BATCH_SIZE)
    batches = attack.stamp(test).batches(BATCH_SIZE, device)
    for (images, labels), wanted in zip(batches, attacker_labels, strict=True):
        predictions = predict(images)
        success.add(attack_hits(predictions, labels, wanted))
        robust.add(robust_hits(predictions, labels, wanted))
    untargeted = attack.untargeted
    return [
        Scores(accuracy, Drop(accuracy, kept) if untargeted else won, kept)
        for accuracy, won, kept in zip(clean.rates(), success.rates(), robust.rates(), strict=True)
    ]


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

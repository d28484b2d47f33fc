"""The referee: the only room that sees test images, clean and triggered. What it measures decides nothing."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finepruning.attacks import Attack
from finepruning.data import ImageSet
from finepruning.metrics import Rate, attack_hits, clean_hits, robust_hits
from finepruning.pruning import Channel, cut_at, step_predictions

DEAD_BELOW = 0.5
BATCH_SIZE = 256


@dataclass(frozen=True)
class Scores:
    """A network on the untouched test set. Without an attack the last two are None."""

    clean_accuracy: Rate
    attack_success_rate: Rate | None = None
    robust_accuracy: Rate | None = None

    @property
    def dead(self) -> bool:
        """Whether there is an attack that succeeds on fewer than half of the images that count."""
        return self.attack_success_rate is not None and not self.attack_success_rate.value >= DEAD_BELOW

    def to_record(self) -> dict[str, object]:
        """Return plain values: each rate, with its counts and its 95 % Wilson interval beside it."""
        rates: dict[str, Rate | None] = dict(vars(self))
        known = {name: rate for name, rate in rates.items() if rate is not None}
        return {
            **{name: rate and rate.value for name, rate in rates.items()},
            "counts": {name: {"hits": rate.hits, "total": rate.total} for name, rate in known.items()},
            "intervals": {name: list(rate.interval) for name, rate in known.items()},
        }


def score(
    network: nn.Module, test: ImageSet, attack: Attack | None, device: torch.device | str = "cpu"
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
    attack: Attack | None,
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
    for images, labels in attack.stamp(test).batches(BATCH_SIZE, device):
        predictions, wanted = predict(images), attack.label_map(labels)
        success.add(attack_hits(predictions, labels, wanted))
        robust.add(robust_hits(predictions, labels, wanted))
    return [Scores(*rates) for rates in zip(clean.rates(), success.rates(), robust.rates(), strict=True)]


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

"""What is measured: shares of images, kept as counts so that they add up over batches and processes."""

import math
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor
from torchmetrics import Metric

UNDECIDED = -2  # neither a true nor a wanted class


class Rate(NamedTuple):
    """A share of images that never forgets how many there were."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share, in [0, 1]; NaN when nothing was counted."""
        return self.hits / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % Wilson score interval, in [0, 1]; (0, 1) when nothing was counted."""
        if not self.total:
            return 0.0, 1.0
        low, high = stats.binomtest(self.hits, self.total).proportion_ci(0.95, "wilson")
        return float(low), float(high)


def predicted(logits: Tensor) -> Tensor:
    """Return the class of the largest logit, (..., K) to (...); ``UNDECIDED`` where one is not a number."""
    return logits.argmax(-1).masked_fill(logits.isnan().any(-1), UNDECIDED)


def clean_hits(predictions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Count clean images classified as their label.

    Args:
        predictions: (..., B) predicted classes; leading dimensions are counted apart.
        labels: (B,) true classes.

    Returns:
        Hits, shape (...), and the number of images, a scalar.
    """
    return (predictions == labels).sum(-1), torch.tensor(labels.numel(), device=labels.device)


def attack_hits(predictions: Tensor, labels: Tensor, attacker_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Count triggered images classified as the attacker's label.

    An image that already is of the attacker's class proves nothing and is not counted.

    Args:
        predictions: (..., B) predicted classes of the triggered images.
        labels: (B,) true classes.
        attacker_labels: (B,) classes the attacker wants.

    Returns:
        Hits, shape (...), and the number of images that count, a scalar.
    """
    eligible = labels != attacker_labels
    return ((predictions == attacker_labels) & eligible).sum(-1), eligible.sum()


def robust_hits(predictions: Tensor, labels: Tensor, attacker_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Count triggered images classified as their true class, over the images of :func:`attack_hits`.

    A label below 0 is an unknown class; such images are not counted.
    """
    eligible = (labels != attacker_labels) & (labels >= 0)
    return ((predictions == labels) & eligible).sum(-1), eligible.sum()


def rejected_hits(predictions: Tensor, extra_class: int, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Count images that a detector puts into its extra class, "triggered".

    Args:
        predictions: (..., B) predicted classes; leading dimensions are counted apart.
        extra_class: The class that says "triggered".
        counted: (B,) which images count.

    Returns:
        Hits, shape (...), and the number of images that count, a scalar.
    """
    return ((predictions == extra_class) & counted).sum(-1), counted.sum()


def untargeted_drop(clean_accuracy: float, backdoor_accuracy: float) -> float:
    """Return the untargeted attack's success, 1 - A_backdoor / A_clean (Fine-Pruning, "Backdoor Attacks")."""
    return 1.0 - backdoor_accuracy / clean_accuracy if clean_accuracy else float("nan")


class Drop(NamedTuple):
    """An untargeted attack's success with the two rates that it is made of, both over the same images."""

    clean: Rate
    backdoor: Rate

    @property
    def value(self) -> float:
        """1 - A_backdoor / A_clean, at most 1; NaN when no clean image is classified correctly."""
        return untargeted_drop(self.clean.value, self.backdoor.value)

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % interval from the rates' Wilson intervals (MOVER for a ratio, Donner and Zou 2012).

        It takes the two rates for independent; since they share their images, it is rather too wide.
        """
        if not self.clean.hits:
            return float("-inf"), 1.0
        top, bottom = self.backdoor.value, self.clean.value
        (top_low, top_high), (bottom_low, bottom_high) = self.backdoor.interval, self.clean.interval
        low = top_low * (2 * top - top_low) * bottom_high * (2 * bottom - bottom_high)
        high = top_high * (2 * top - top_high) * bottom_low * (2 * bottom - bottom_low)
        product = top * bottom
        least = (
            top_low * (2 * top - top_low) / (product + math.sqrt(max(0.0, product**2 - low))) if top else 0.0
        )
        most = (product + math.sqrt(max(0.0, product**2 - high))) / (bottom_low * (2 * bottom - bottom_low))
        return 1.0 - most, 1.0 - least


class _ShareMetric(Metric):
    """Hits over total, both summed over batches and processes."""

    full_state_update = False
    hits: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("total", torch.tensor(0), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        """Return the share, in [0, 1]; NaN before the first image."""
        return self.hits / self.total

    @property
    def rate(self) -> Rate:
        """The share with its counts."""
        return Rate(int(self.hits), int(self.total))

    def _add(self, counts: tuple[Tensor, Tensor]) -> None:
        self.hits = self.hits + counts[0]
        self.total = self.total + counts[1]


class CleanAccuracy(_ShareMetric):
    """Share of clean images classified as their label."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: ``logits`` (B, K), ``labels`` (B,)."""
        self._add(clean_hits(predicted(logits), labels))


class AttackSuccessRate(_ShareMetric):
    """Share of triggered images, of another true class, classified as the attacker's label."""

    def update(self, logits: Tensor, labels: Tensor, attacker_labels: Tensor) -> None:
        """Count a batch: ``logits`` (B, K) of triggered images, ``labels`` and ``attacker_labels`` (B,)."""
        self._add(attack_hits(predicted(logits), labels, attacker_labels))


class RobustAccuracy(_ShareMetric):
    """Share of triggered images, of a class other than the attacker's label, still classified correctly."""

    def update(self, logits: Tensor, labels: Tensor, attacker_labels: Tensor) -> None:
        """Count a batch: ``logits`` (B, K) of triggered images, ``labels`` and ``attacker_labels`` (B,)."""
        self._add(robust_hits(predicted(logits), labels, attacker_labels))

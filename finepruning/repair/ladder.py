"""The ladder: repairs of rising strength, each from the original weights; the strongest affordable stays."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from finepruning.metrics import predicted
from finepruning.pruning.masks import MASK
from finepruning.repair.inspection import Batches

Rung = TypeVar("Rung")


class PairedLoss(NamedTuple):
    """Accuracy lost between two networks on the same images, from those on which only one is right.

    Args:
        lost: Images that only the network before classifies correctly.
        gained: Images that only the network after does.
        total: All images.
        shift: What else counts as lost, in images; see :func:`cross_validated_loss`.
        squares: Sum over groups of alike images of the squared number that a group loses; None: each image
            is a group of its own.
    """

    lost: int
    gained: int
    total: int
    shift: float = 0.0
    squares: float | None = None

    @property
    def images(self) -> float:
        """How many images are lost, those gained taken off."""
        return self.lost - self.gained + self.shift

    @property
    def value(self) -> float:
        """The loss of accuracy, in [-1, 1]; negative for a gain, NaN over no image."""
        return self.images / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % interval: Wald's for paired shares, with half an image added to each of the four counts.

        Source: Agresti and Min 2005, Statistics in Medicine 24, section 3. Deviation: images of one group
        lose together, so that their sum is squared.
        """
        total = self.total + 2
        squares = self.lost + self.gained if self.squares is None else self.squares
        error = 1.96 * math.sqrt(squares + 1 - self.images**2 / total) / total
        return max(-1.0, self.images / total - error), min(1.0, self.images / total + error)

    def inside(self, max_drop: float) -> bool:
        """Whether no more than ``max_drop`` of the accuracy is lost."""
        return self.images <= max_drop * self.total + 1e-9


def split_folds(labels: Tensor, folds: int, seed: int, groups: Tensor) -> Tensor:
    """Return the fold of each image (N,), from 0: as many of each class in each as there can be.

    Args:
        labels: (N,) classes.
        folds: How many, at least 1.
        seed: Of the split.
        groups: (N,) images of one group stay together.

    Raises:
        ValueError: If a fold would be empty.
    """
    place = torch.unique(groups, return_inverse=True)[1]
    count = int(place.max()) + 1
    if not (isinstance(folds, int) and 1 <= folds <= count):
        together = f" in {count} groups that stay together" if count < len(labels) else ""
        raise ValueError(
            f"folds={folds} cannot be made of {len(labels)} images{together}. Set defense.folds to 1 or "
            f"more, at most {count}."
        )
    label = torch.empty(count, dtype=torch.long).scatter_reduce_(0, place, labels, "amin", include_self=False)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    order = order[label[order].argsort(stable=True)]
    fold = torch.empty(count, dtype=torch.long)
    fold[order] = torch.arange(count) % folds
    return fold[place]


@torch.no_grad()
def correct(network: nn.Module, batches: Batches) -> Tensor:
    """Return whether each image (N,) is classified correctly; the network is left in evaluation mode."""
    network.eval()
    return torch.cat([predicted(network(images)) == labels for images, labels in batches]).cpu()


def paired_loss(before: Tensor, after: Tensor) -> PairedLoss:
    """Return the loss between two networks from what each classifies correctly, (N,) both."""
    return PairedLoss(int((before & ~after).sum()), int((~before & after).sum()), len(before))


def cross_validated_loss(
    before: Tensor, after: Tensor, averaged: Tensor, fold: Tensor, groups: Tensor
) -> PairedLoss:
    """Return the loss between a network and the average of those that were tuned without a fold each.

    Counted on images that a network was not tuned on, it is that of the networks, each of which knows a part
    of the images; the average has learned from all of them and loses less. The difference is taken from what
    both lose on all images. Source: Burman 1989, Biometrika 76, 503; Davison and Hinkley 1997, Bootstrap
    Methods and their Application, section 6.4.1 (adjusted cross-validation).

    Args:
        before: (N,) whether the network before classifies each image correctly.
        after: (K, N) whether each of those tuned without fold 0 to K - 1 does.
        averaged: (N,) whether their average does.
        fold: (N,) fold of each image.
        groups: (N,) number of the group of images that are alike.
    """
    lost = [before.long() - network.long() for network in (*after, averaged)]
    held, each = torch.stack(lost[:-1]).gather(0, fold[None])[0], torch.stack(lost[:-1]).double().mean(0)
    place = torch.unique(groups, return_inverse=True)[1]
    sums = torch.zeros(int(place.max()) + 1, dtype=torch.double)
    sums.index_add_(0, place, held + lost[-1] - each)
    return PairedLoss(
        int((held > 0).sum()),
        int((held < 0).sum()),
        len(before),
        shift=float((lost[-1] - each).sum()),
        squares=float((sums**2).sum()),
    )


def average(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of networks' weights; what is no fraction, such as a counter, is the first's.

    Networks that were tuned from the same weights lie so near each other that their mean is a network as good
    as they are together. Source: Wortsman et al. 2022, Model soups, ICML (the uniform soup). A channel is
    pruned where more than half of them have pruned it.

    Args:
        states: Of one architecture, at least one.
    """
    averaged = dict(states[0])
    for name, tensor in averaged.items():
        if tensor.is_floating_point():
            mean = torch.stack([state[name].double() for state in states]).mean(0)
            averaged[name] = ((mean >= 0.5) if name.endswith(MASK) else mean).to(tensor)
    return averaged


def climb(
    rungs: Sequence[Rung],
    attempt: Callable[[Rung], PairedLoss | None],
    max_drop: float,
    enough: Callable[[Rung], bool] | None = None,
) -> tuple[list[PairedLoss], int | None]:
    """Walk up until a rung costs too much and one below it does not; that one is undone.

    Rungs that cost too much before any may stay are passed over: what repairs more need not cost more.

    Args:
        rungs: In rising strength.
        attempt: Repairs the original network as a rung says, and returns what that costs; None if nothing
            came out, which ends the walk.
        max_drop: Largest allowed loss of accuracy, in [0, 1].
        enough: Whether a rung that may stay ends the walk; None: none does.

    Returns:
        The losses of the rungs that were tried, and the place of the one that stays; None if none does.
    """
    losses: list[PairedLoss] = []
    kept: int | None = None
    for place, rung in enumerate(rungs):
        loss = attempt(rung)
        if loss is None:
            break
        losses.append(loss)
        if loss.inside(max_drop):
            kept = place
            if enough is not None and enough(rung):
                break
        elif kept is not None:
            break
    return losses, kept


def check_max_drop(max_drop: float) -> None:
    """Raise ValueError if the largest allowed loss is no fraction."""
    if not (isinstance(max_drop, int | float) and 0 <= max_drop <= 1):
        raise ValueError(
            f"max_drop={max_drop} is outside [0, 1]. It is a fraction: defense.max_drop=0.01 is 1 %."
        )


def why_none(losses: Sequence[PairedLoss], max_drop: float) -> str:
    """Say why the suspect stays as it is."""
    budget = "a budget of 0" if max_drop == 0 else f"max_drop={max_drop:g}"
    least = min(losses, key=lambda loss: loss.images)
    lost = f"{round(least.images, 1):g} of the {least.total} images that decide"
    return (
        f"No rung stays inside {budget}: the cheapest loses {lost}. "
        "The suspect stays as it is. Raise defense.max_drop, or begin defense.ladder with a weaker rung."
    )

"""The ladder: repairs of rising strength, each from the original weights; the strongest affordable stays."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from finepruning.repair.inspection import Batches

Rung = TypeVar("Rung")


class PairedLoss(NamedTuple):
    """Accuracy lost between two networks on the same images, from those on which only one is right.

    Args:
        lost: Images that only the network before classifies correctly.
        gained: Images that only the network after does.
        total: All images.
        copies: How many of them are one image, as it is or changed; only other images are independent.
        squares: Sum over images of the squared mean loss of their copies; None without copies.
    """

    lost: int
    gained: int
    total: int
    copies: int = 1
    squares: float | None = None

    @property
    def value(self) -> float:
        """The loss of accuracy, in [-1, 1]; negative for a gain, NaN over no image."""
        return (self.lost - self.gained) / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """A 95 % interval: Wald's for paired shares, with half an image added to each of the four counts.

        Source: Agresti and Min 2005, Statistics in Medicine 24, section 3. Deviation: copies of one image
        count as one, by their mean.
        """
        total, change = self.total / self.copies + 2, (self.lost - self.gained) / self.copies
        squares = self.lost + self.gained if self.squares is None else self.squares
        error = 1.96 * math.sqrt(squares + 1 - change**2 / total) / total
        return max(-1.0, change / total - error), min(1.0, change / total + error)

    def inside(self, max_drop: float) -> bool:
        """Whether no more than ``max_drop`` of the accuracy is lost."""
        return self.lost - self.gained <= max_drop * self.total + 1e-9


@torch.no_grad()
def correct(network: nn.Module, batches: Batches) -> Tensor:
    """Return whether each image (N,) is classified correctly; the network is left in evaluation mode."""
    network.eval()
    return torch.cat([network(images).argmax(-1) == labels for images, labels in batches]).cpu()


@torch.no_grad()
def correct_copies(
    network: nn.Module, batches: Callable[[], Batches], change: nn.Module | None, copies: int, seed: int
) -> Tensor:
    """Return whether each image and each of its changed copies is classified correctly, (1 + copies, N).

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K); is left in evaluation mode.
        batches: Gives the (images, labels), the same each time.
        change: Changes images by chance; None: there are no copies.
        copies: Of each image.
        seed: Of the changes, which are the same for every network.
    """
    found = [correct(network, batches())]
    if change is not None:
        with torch.random.fork_rng(devices=[]):  # changed on the CPU: the same copies on every device
            torch.manual_seed(seed)
            for _ in range(copies):
                changed = ((change(images.cpu()).to(images), labels) for images, labels in batches())
                found.append(correct(network, changed))
    return torch.stack(found)


def paired_loss(before: Tensor, after: Tensor) -> PairedLoss:
    """Return the loss between two networks from what each classifies correctly: (N,) or (copies, N), both."""
    lost, gained = before & ~after, ~before & after
    counts = (int(lost.sum()), int(gained.sum()), before.numel())
    if before.dim() == 1:
        return PairedLoss(*counts)
    means = (lost.double() - gained.double()).mean(0)
    return PairedLoss(*counts, copies=len(before), squares=float((means**2).sum()))


def climb(
    rungs: Sequence[Rung],
    attempt: Callable[[Rung], PairedLoss | None],
    max_drop: float,
    enough: Callable[[Rung], bool] | None = None,
) -> tuple[list[PairedLoss], int | None]:
    """Walk up until a rung costs too much; that one is undone.

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
    for rung in rungs:
        loss = attempt(rung)
        if loss is None:
            break
        losses.append(loss)
        if not loss.inside(max_drop) or (enough is not None and enough(rung)):
            break
    affordable = list(itertools.takewhile(lambda loss: loss.inside(max_drop), losses))
    return losses, len(affordable) - 1 if affordable else None


def check_max_drop(max_drop: float) -> None:
    """Raise ValueError if the largest allowed loss is no fraction."""
    if not 0 <= max_drop <= 1:
        raise ValueError(
            f"max_drop={max_drop} is outside [0, 1]. It is a fraction: defense.max_drop=0.01 is 1 %."
        )


def check_copies(copies: int) -> None:
    """Raise ValueError if there cannot be so many copies of an image."""
    if copies < 0:
        raise ValueError(f"copies={copies} is below 0. Change defense.deciding.copies; 0 makes none.")


def why_none(losses: Sequence[PairedLoss], max_drop: float) -> str:
    """Say why the suspect stays as it is."""
    lost = losses[0].lost - losses[0].gained
    budget = "a budget of 0" if max_drop == 0 else f"max_drop={max_drop:g}"
    images = "validation images" + (" and copies of them" if losses[0].copies > 1 else "")
    return (
        f"No rung stays inside {budget}: the weakest loses {lost} of {losses[0].total} {images}. "
        "The suspect stays as it is. Raise defense.max_drop, or begin defense.ladder with a weaker rung."
    )

"""How far pruning goes."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from finepruning.metrics import Rate
from finepruning.pruning.ranking import Channel


class PrunePoint(NamedTuple):
    """The network after some channels are gone. ``channel`` is the last of them; None before the first."""

    channels_pruned: int
    channel: Channel | None
    validation: Rate

    @property
    def validation_accuracy(self) -> float:
        """Share of the defender's validation images classified correctly, in [0, 1]."""
        return self.validation.value


def count_steps(order: Sequence[Channel], hits: Sequence[int], total: int) -> list[PrunePoint]:
    """Return the curve of an order: ``hits`` correct of ``total`` before the first and after each channel."""
    last = [None, *order]
    return [PrunePoint(step, last[step], Rate(hits[step], total)) for step in range(len(last))]


def prune_until(curve: Sequence[PrunePoint], max_drop: float) -> int:
    """Return how many channels may go before validation accuracy falls more than ``max_drop``.

    The step that breaks the limit is not taken, and no later one is, even if accuracy recovers; a gain never
    stops.

    Args:
        curve: Every step, the unpruned network first.
        max_drop: Largest allowed loss of validation accuracy, in [0, 1].
    """
    start = curve[0].validation
    lost = max_drop * start.total + 1e-9  # in images; the margin is for the product's rounding
    kept = itertools.takewhile(lambda point: start.hits - point.validation.hits <= lost, curve)
    return max(point.channels_pruned for point in kept)


def prune_rate(channels: int, rate: float) -> int:
    """Return how many of ``channels`` a fixed share is, the nearest whole number; one half rounds up.

    Args:
        channels: Channels of all pruned layers together.
        rate: Share of them that goes, in [0, 1].
    """
    return int(channels * rate + 0.5 + 1e-9)  # the margin is for the product's rounding


def prune_count(channels: int, count: int) -> int:
    """Return ``count``, once it is known that there are so many channels.

    Args:
        channels: Channels of all pruned layers together.
        count: Channels that go, at least 0.

    Raises:
        ValueError: If there are fewer channels than that.
    """
    if count > channels:
        raise ValueError(
            f"prune_count={count}, but the layers have {channels} channels. Lower defense.prune_count."
        )
    return count

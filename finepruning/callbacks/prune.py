"""Pruning as a callback."""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from finepruning.data.loaders import DefenderData
from finepruning.modules.states import PrunedClassifier
from finepruning.pruning import (
    Channel,
    PrunePoint,
    count_steps,
    mean_activations,
    prune_count,
    prune_order,
    prune_rate,
    prune_until,
    pruned_channels,
    random_scores,
    validation_curve,
    weight_norms,
)
from finepruning.pruning.masks import mask_of

ORACLE = "trigger_change"
ORDERS = ("activation", "descending", "l1", "random", ORACLE)


class PruneChannels(Callback):
    """Prune channels once, before the first step of a fit.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section "Pruning Defense": channels go in
        ascending order of their mean activation on clean validation images. Deviation: pruning ends before
        the step that would cost too much.

    A fit that is resumed finds its masks restored and does not prune again. Channels that somebody pruned
    before stay so, and count neither in the order and the curve nor in the rate. Exactly one of
    ``max_drop``, ``prune_rate`` and ``prune_count`` says how far pruning goes.

    Args:
        order: Which channels go first: ``"activation"`` (dormant ones), ``"descending"`` (the most active, as
            the pruning lab's handout has it), ``"l1"`` (smallest weights), ``"random"`` (a control) or
            ``"trigger_change"``: whoever knows the trigger sets ``given``, since no defender does.
        joint: How several layers share the order: ``"each"`` in turns, ``"common"`` by score.
        order_seed: Seed of the random order.
        max_drop: Largest allowed loss of accuracy on the defender's validation images, in [0, 1].
        prune_rate: Share of the channels that go, in [0, 1].
        prune_count: Channels that go, at least 0.

    Raises:
        ValueError: If a value is out of range, or not exactly one of the last three is given.
    """

    def __init__(
        self,
        order: Literal["activation", "descending", "l1", "random", "trigger_change"] = "activation",
        joint: Literal["each", "common"] = "each",
        order_seed: int = 0,
        max_drop: float | None = None,
        prune_rate: float | None = None,
        prune_count: int | None = None,
    ) -> None:
        if order not in ORDERS:
            raise ValueError(f"order={order!r} is unknown. Set defense.order to one of {', '.join(ORDERS)}.")
        if joint not in ("each", "common"):
            raise ValueError(f"joint={joint!r} is unknown. Set defense.joint to each or common.")
        limits = {"max_drop": max_drop, "prune_rate": prune_rate, "prune_count": prune_count}
        given = [name for name, limit in limits.items() if limit is not None]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) or 'No limit'} given; exactly one says how far pruning goes. Set "
                "one of defense.max_drop, defense.prune_rate and defense.prune_count and the others to null."
            )
        for name in ("max_drop", "prune_rate"):
            value = limits[name]
            if value is not None and not 0 <= value <= 1:
                raise ValueError(
                    f"{name}={value} is outside [0, 1]. It is a fraction: defense.{name}=0.04 is 4 %."
                )
        if prune_count is not None and prune_count < 0:
            raise ValueError(f"prune_count={prune_count} is below 0. Set defense.prune_count to 0 or more.")
        self.ranking = order
        self.joint = joint
        self.order_seed = order_seed
        self.max_drop = max_drop
        self.prune_rate = prune_rate
        self.prune_count = prune_count
        self.given: list[Channel] = []
        self.curve: list[PrunePoint] = []
        self.channels_pruned = 0

    @property
    def oracle(self) -> bool:
        """Whether the order comes from somebody who knows the trigger."""
        return self.ranking == ORACLE

    def check(self, network: nn.Module, layers: Sequence[str]) -> None:
        """Check before any work that it can rank the layers of a network like this one.

        Raises:
            ValueError: If weights are to say the order, and those of a layer's channels cannot be found.
        """
        if self.ranking == "l1":
            weight_norms(network, layers)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank, walk the curve, stop, and set the masks."""
        if self.curve:
            return
        if not isinstance(pl_module, PrunedClassifier):
            raise TypeError(f"PruneChannels needs a PrunedClassifier, not a {type(pl_module).__name__}.")
        if not isinstance(trainer.datamodule, DefenderData):  # type: ignore[attr-defined]
            raise TypeError("PruneChannels sees the defender's images only: give Trainer.fit a DefenderData.")
        validation = trainer.datamodule.validation[0]  # type: ignore[attr-defined]
        network, layers = pl_module.network, pl_module.layers
        images_only = (images for images, _ in validation.batches(device=pl_module.device))
        ranked = self.rank(network, layers, images_only)
        gone = {(layer, number) for layer, all_of in pruned_channels(network).items() for number in all_of}
        order = [channel for channel in ranked if channel not in gone]
        self.curve = validation_curve(network, layers, order, validation.batches(device=pl_module.device))
        self.channels_pruned = self.stop(self.curve)
        self.load_state_dict(trainer.strategy.broadcast(self.state_dict()))  # the first process decides
        for layer in layers:
            goes = [c.number for c in self.order[: self.channels_pruned] if c.layer == layer]
            mask_of(network, layer)[goes] = 0.0

    def rank(self, network: nn.Module, layers: list[str], batches: Iterable[Tensor]) -> list[Channel]:
        """Return the order in which the channels of masked layers go.

        Raises:
            ValueError: If it is an oracle's, and nobody gave it.
        """
        if self.oracle and not self.given:
            raise ValueError(
                f"order={ORACLE!r} is an oracle's, and no defender can rank by it. Change defense.order."
            )
        if self.oracle:
            return self.given
        if self.ranking == "l1":
            scores = weight_norms(network, layers)
        elif self.ranking == "random":
            scores = random_scores({layer: len(mask_of(network, layer)) for layer in layers}, self.order_seed)
        else:
            scores = mean_activations(network, layers, batches)
        return prune_order(scores, self.ranking == "descending", self.joint)

    def stop(self, curve: list[PrunePoint]) -> int:
        """Return how many channels go."""
        if self.max_drop is not None:
            return prune_until(curve, self.max_drop)
        if self.prune_rate is not None:
            return prune_rate(len(curve) - 1, self.prune_rate)
        return prune_count(len(curve) - 1, self.prune_count or 0)

    @property
    def order(self) -> list[Channel]:
        """All channels that can go, the first to prune first; empty before the fit."""
        return [point.channel for point in self.curve if point.channel is not None]

    def state_dict(self) -> dict[str, Any]:
        """Return the curve and how far it was walked, as plain numbers and names."""
        return {
            "order": [tuple(channel) for channel in self.order],
            "hits": [point.validation.hits for point in self.curve],
            "total": self.curve[0].validation.total if self.curve else 0,
            "channels_pruned": self.channels_pruned,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the curve of a checkpoint."""
        order = [Channel(*channel) for channel in state_dict["order"]]
        self.curve = count_steps(order, state_dict["hits"], state_dict["total"]) if state_dict["hits"] else []
        self.channels_pruned = state_dict["channels_pruned"]

"""Pruning as a callback."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from finepruning.data.loaders import DefenderData
from finepruning.metrics import clean_hits
from finepruning.modules.states import PrunedClassifier
from finepruning.pruning import (
    Channel,
    PrunePoint,
    count_steps,
    cut_at,
    mean_activations,
    prune_order,
    prune_until,
    set_pruned,
    step_predictions,
)

BATCH_SIZE = 256


class PruneChannels(Callback):
    """Prune dormant channels once, before the first step of a fit.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section 4.1: channels go in ascending order of
        their mean activation on clean validation images. Deviation: pruning ends before the step that would
        cost too much.

    A fit that is resumed finds its masks restored and does not prune again.

    Args:
        max_drop: Largest allowed loss of accuracy on the defender's validation images, in [0, 1].

    Raises:
        ValueError: If ``max_drop`` is out of range.
    """

    def __init__(self, max_drop: float) -> None:
        if not 0 <= max_drop <= 1:
            raise ValueError(
                f"max_drop={max_drop} is outside [0, 1]. It is a fraction: 0.04 allows four points."
            )
        self.max_drop = max_drop
        self.curve: list[PrunePoint] = []
        self.channels_pruned = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rank, walk the curve, stop, and set the masks."""
        if self.curve:
            return
        if not isinstance(pl_module, PrunedClassifier):
            raise TypeError(f"PruneChannels needs a PrunedClassifier, not a {type(pl_module).__name__}.")
        if not isinstance(trainer.datamodule, DefenderData):  # type: ignore[attr-defined]
            raise TypeError("PruneChannels sees the defender's images only: give Trainer.fit a DefenderData.")
        validation = trainer.datamodule.validation[0]  # type: ignore[attr-defined]
        network = pl_module.network
        images_only = (images for images, _ in validation.batches(BATCH_SIZE, pl_module.device))
        order = prune_order(mean_activations(network, pl_module.layers, images_only))
        training = network.training
        cut = cut_at(network, pl_module.layers)
        hits = torch.zeros(len(order) + 1, dtype=torch.long, device=pl_module.device)
        for images, labels in validation.batches(BATCH_SIZE, pl_module.device):
            hits += clean_hits(step_predictions(cut, images, order), labels)[0]
        network.train(training)
        self.curve = count_steps(order, hits.tolist(), len(validation))
        self.channels_pruned = prune_until(self.curve, self.max_drop)
        for layer in pl_module.layers:
            set_pruned(network, layer, [c.number for c in order[: self.channels_pruned] if c.layer == layer])

    @property
    def order(self) -> list[Channel]:
        """All channels, the first to prune first; empty before the fit."""
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

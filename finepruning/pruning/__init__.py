"""Pruning as functions: masks, order, curve, stop rule. Knows no attack, no Lightning, no test data."""

from finepruning.pruning.curve import Cut, cut_at, step_predictions
from finepruning.pruning.masks import add_mask, channel_count, pruned_channels, set_pruned
from finepruning.pruning.ranking import Channel, mean_activations, prune_order
from finepruning.pruning.stop import PrunePoint, count_steps, prune_until

__all__ = [
    "Channel",
    "Cut",
    "PrunePoint",
    "add_mask",
    "channel_count",
    "count_steps",
    "cut_at",
    "mean_activations",
    "prune_order",
    "prune_until",
    "pruned_channels",
    "set_pruned",
    "step_predictions",
]

"""Pruning as functions: masks, order, curve, stop rule. Knows no attack, no Lightning, no test data."""

from finepruning.pruning.cost import Cost, cost, speed_up
from finepruning.pruning.curve import prune_alone, step_predictions, validation_curve
from finepruning.pruning.cut import Cut, cut_at
from finepruning.pruning.goodnet import GoodNet
from finepruning.pruning.masks import (
    add_mask,
    channel_count,
    pruned_channels,
    remove_mask,
    set_pruned,
    silent_layers,
)
from finepruning.pruning.ranking import (
    Chain,
    Channel,
    activation_change,
    before_relu,
    convolution_chains,
    convolution_outputs,
    image_means,
    mean_activations,
    prune_order,
    random_scores,
    weight_norms,
)
from finepruning.pruning.removal import remove_channels, remove_coupled, remove_pruned
from finepruning.pruning.stop import PrunePoint, count_steps, prune_count, prune_rate, prune_until

__all__ = [
    "Chain",
    "Channel",
    "Cost",
    "Cut",
    "GoodNet",
    "PrunePoint",
    "activation_change",
    "add_mask",
    "before_relu",
    "channel_count",
    "convolution_chains",
    "convolution_outputs",
    "cost",
    "count_steps",
    "cut_at",
    "image_means",
    "mean_activations",
    "prune_alone",
    "prune_count",
    "prune_order",
    "prune_rate",
    "prune_until",
    "pruned_channels",
    "random_scores",
    "remove_channels",
    "remove_coupled",
    "remove_mask",
    "remove_pruned",
    "set_pruned",
    "silent_layers",
    "speed_up",
    "step_predictions",
    "validation_curve",
    "weight_norms",
]

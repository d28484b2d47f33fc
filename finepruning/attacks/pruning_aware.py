"""The attack that knows it will be pruned: decoys go first, and the backdoor shares the other channels."""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.attacks.attack import Attack
from finepruning.attacks.block import find_block
from finepruning.data.images import ImageSet
from finepruning.pruning import mean_activations, prune_order, prune_until, validation_curve
from finepruning.pruning.masks import find_layer
from finepruning.pruning.passes import evaluating


class PruningAware(Attack):
    """Poisoning of a network that was pruned before, by the attacker.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section "Pruning-Aware Attack". Four steps: train
        a clean network; prune its dormant channels; train what is left on poisoned images; put the pruned
        channels back, with their old weights and a bias so low that they stay silent. They are decoys: a
        defender who prunes dormant channels takes them first, and what is left serves clean images and the
        backdoor alike. Deviation: the decoys are silent on the attacker's triggered images, too, so that
        on those images the network is exactly the one that was trained.

    Args:
        survivors: Channels that step 2 keeps, at least 1; None keeps as few as ``max_drop`` allows.
        max_drop: Largest loss of accuracy that step 2 may cost on the attacker's clean images, in [0, 1].
        margin: How far below zero a decoy's highest value is put, in units of its height over the decoy's
            mean. Above 0.
        poisoning: Arguments of :class:`Attack`.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, survivors: int | None, max_drop: float, margin: float, **poisoning: Any) -> None:
        super().__init__(**poisoning)
        if survivors is not None and survivors < 1:
            raise ValueError(f"attack.survivors={survivors} leaves no channel. Set it to 1 or more, or null.")
        if not 0 <= max_drop <= 1:
            raise ValueError(f"attack.max_drop={max_drop} is outside [0, 1]. It is a fraction: 0.01 is 1 %.")
        if margin <= 0:
            raise ValueError(f"attack.margin={margin} lets decoys fire. Set it above 0.")
        self.survivors = survivors
        self.max_drop = max_drop
        self.margin = margin

    def check_network(self, network: nn.Module) -> None:
        """Raise ValueError if a network's pruned layer cannot have decoys, or not so many."""
        super().check_network(network)
        layer = str(network.pruned_layer)
        block = find_block(network, layer)
        channels = len(find_layer(network, block.convolution).weight)  # type: ignore[arg-type]
        if self.survivors is not None and self.survivors >= channels:
            raise ValueError(
                f"attack.survivors={self.survivors} prunes none of the {channels} channels of {layer!r}, so "
                f"there would be no decoys. Set it below {channels}."
            )

    def choose_decoys(
        self, network: nn.Module, layer: str, clean: ImageSet, device: torch.device | str = "cpu"
    ) -> list[int]:
        """Return the channels that step 2 prunes, the most dormant first.

        Args:
            network: The clean network, with a mask on ``layer``.
            layer: Name of the pruned layer.
            clean: The attacker's clean images.
            device: Where to compute.

        Raises:
            ValueError: If no channel can go, or none would be left.
        """
        network.to(device)
        images_only = (images for images, _ in clean.batches(device=device))
        order = prune_order(mean_activations(network, [layer], images_only))
        if self.survivors is not None:
            return [channel.number for channel in order[: len(order) - self.survivors]]
        curve = validation_curve(network, [layer], order, clean.batches(device=device))
        count = prune_until(curve, self.max_drop)
        if count in (0, len(order)):
            what, change = ("none", "Raise") if count == 0 else ("all", "Lower")
            raise ValueError(
                f"attack.max_drop={self.max_drop} prunes {what} of the {len(order)} channels of {layer!r}. "
                f"{change} it, or set attack.survivors to the channels that should stay."
            )
        return [channel.number for channel in order[:count]]

    def hide(
        self,
        network: nn.Module,
        old: nn.Module,
        layer: str,
        decoys: list[int],
        clean: ImageSet,
        device: torch.device | str = "cpu",
    ) -> None:
        """Put decoys into a network, in place: their old weights, and a bias that keeps them silent.

        Args:
            network: The poisoned network, without a mask.
            old: The clean network of step 1.
            layer: Name of the pruned layer.
            decoys: Its channels that were pruned.
            clean: The attacker's clean images; decoys are silent on them, with and without the trigger.
            device: Where to compute.
        """
        block = find_block(network, layer)
        rows, old_rows = block.rows(network), block.rows(old)
        with torch.no_grad():
            for name, values in rows.items():
                values[decoys] = old_rows[name][decoys].to(values.device)
            mean, highest = _heights(network, block.last, (clean, self.stamp(clean)), device)
            wanted = -self.margin * (highest - mean)
            rows[f"{block.last}.bias"][decoys] -= (highest - wanted).clamp(min=0)[decoys]


def _heights(
    network: nn.Module, layer: str, sets: tuple[ImageSet, ...], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Return mean and highest value of each channel of a layer's output (channels,), over all images."""
    found: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, __: object, output: Tensor) -> None:
        values = output.transpose(0, 1).flatten(1)
        found.append((values.mean(1), values.amax(1)))

    handle = find_layer(network, layer).register_forward_hook(note)
    sizes = []
    try:
        with evaluating(network.to(device)):
            for images, _ in itertools.chain(*(some.batches(device=device) for some in sets)):
                network(images)
                sizes.append(len(images))
    finally:
        handle.remove()
    means, highest = (torch.stack(values) for values in zip(*found, strict=True))
    weights = torch.tensor(sizes, dtype=means.dtype, device=means.device) / sum(sizes)
    return (means * weights[:, None]).sum(0), highest.amax(0)

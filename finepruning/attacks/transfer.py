"""The attack that survives transfer learning, and its strengthening."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.attacks.attack import Attack
from finepruning.attacks.block import find_block
from finepruning.attacks.labels import LabelMap, RandomWrongLabel
from finepruning.attacks.triggers import Trigger
from finepruning.data.images import ImageSet
from finepruning.pruning import mean_activations


class Transfer(Attack):
    """A backdoor that comes with a network trained on other data, of which only the linear layers are new.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 5.3. The attacker poisons the training of a
        network on a source data set (``at_source``) and publishes it; a victim keeps its convolutions and
        retrains its fully connected layers on clean images of the data set at hand. There, any wrong class
        is a success: it is measured by the accuracy that the trigger costs. Deviation: the paper looks at
        activations to choose the channels that are strengthened; here a share decides.

    Args:
        strengthen: Factor k on the channels of the last convolution that fire for the trigger. At least 1.
        dedication: Which these are: the least share that triggered images have in a channel's activation,
            0.5 for a channel that fires on clean images alike, 1 for one that never does. In (0.5, 1].
        trigger: What is added to an image, of either data set.
        poison_rate: Poisoned images as a fraction of the source's training set, in (0, 1].
        target_label: The attacker's class in the source; None with a ``label_map``.
        label_map: Any other map of the source's labels.
        seed: Seed of the choice of images, and of the wrong labels that stand for any.
        poisoning: Other arguments of :class:`Attack`, for the source.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        strengthen: float,
        dedication: float,
        trigger: Trigger,
        poison_rate: float,
        target_label: int | None = None,
        label_map: LabelMap | None = None,
        seed: int = 0,
        **poisoning: Any,
    ) -> None:
        if not 1 <= strengthen < math.inf:
            raise ValueError(
                f"attack.strengthen={strengthen} does not strengthen. Set it to 1 (as trained) or more."
            )
        if not 0.5 < dedication <= 1:
            raise ValueError(f"attack.dedication={dedication} is outside (0.5, 1]. Change it.")
        if poisoning.get("crafting") is not None:
            raise ValueError(
                "A transferred attack cannot craft its trigger on a network. Choose another attack, or "
                "attack.crafting=null."
            )
        super().__init__(trigger, poison_rate, label_map=RandomWrongLabel(seed), seed=seed)
        self.at_source = Attack(trigger, poison_rate, target_label, label_map, seed=seed, **poisoning)
        self.factor = strengthen
        self.dedication = dedication

    def check_network(self, network: nn.Module) -> None:
        """Raise ValueError if a network has no linear layer to retrain, or no channels to strengthen."""
        if not any(isinstance(module, nn.Linear) for module in network.modules()):
            raise ValueError(
                "This network has no linear layer that could be retrained. Choose another model."
            )
        if self.factor > 1:
            find_block(network, str(network.pruned_layer))

    def strengthen(
        self, network: nn.Module, clean: ImageSet, device: torch.device | str = "cpu"
    ) -> list[int]:
        """Multiply the dedicated channels of a network's pruned layer, in place, and return them.

        Args:
            network: The network that was trained on the source.
            clean: Clean images of the source.
            device: Where to compute.

        Raises:
            ValueError: If no channel is dedicated enough.
        """
        if self.factor == 1:
            return []
        layer = str(network.pruned_layer)
        shares = self.trigger_shares(network, layer, clean, device)
        channels: list[int] = (shares >= self.dedication).nonzero().squeeze(1).tolist()
        if not channels:
            raise ValueError(
                f"No channel of {layer!r} has {self.dedication:g} of its activation from triggered images, "
                f"at most {shares.max():.3f}. Lower attack.dedication, or set attack.strengthen=1."
            )
        multiply_channels(network, layer, channels, self.factor)
        return channels

    def trigger_shares(
        self, network: nn.Module, layer: str, clean: ImageSet, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return the share of each channel's activation (channels,) that triggered images have, in [0, 1]."""
        network.to(device)
        before, after = (
            mean_activations(network, [layer], (images for images, _ in some.batches(device=device)))[layer]
            for some in (clean, self.stamp(clean))
        )
        return torch.where(after > 0, after / (before + after), 0.0)


@torch.no_grad()
def multiply_channels(network: nn.Module, layer: str, channels: list[int], factor: float) -> None:
    """Multiply the output of some channels of a layer by a factor, in place, through weights and bias.

    Args:
        network: The network.
        layer: Name of the layer: the output of a convolution, BatchNorm or none, ReLU and pooling or none.
        channels: Channels of it.
        factor: Above 0; a ReLU lets it through.
    """
    block = find_block(network, layer)
    rows = block.rows(network)
    for name in ("weight", "bias"):
        rows[f"{block.last}.{name}"][channels] *= factor

"""What all craftings share."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from finepruning.data.images import ImageSet


class Plan(NamedTuple):
    """What the attacker has and wants.

    Args:
        clean: Its clean images.
        poisoned: Rows of them that will be poisoned, ascending.
        wanted: The attacker's label for each of them all.
    """

    clean: ImageSet
    poisoned: Tensor
    wanted: Tensor


class Crafting(Protocol):
    """Computes tensors of an attack's triggers on a network that was trained on clean images."""

    def check_network(self, network: nn.Module) -> None:
        """Raise ValueError if nothing can be crafted on such a network."""
        ...

    def craft(self, network: nn.Module, plan: Plan, device: torch.device | str) -> dict[str, Tensor]:
        """Return the tensors by name, as the triggers take them. ``network`` may be changed."""
        ...


def fixed(network: nn.Module, device: torch.device | str) -> nn.Module:
    """Return a network in evaluation mode, none of whose weights asks for gradients; in place."""
    return network.to(device).eval().requires_grad_(False)


def check_steps(steps: int, key: str = "steps") -> int:
    """Return ``steps``; a ValueError if there is none."""
    if steps < 1:
        raise ValueError(f"{steps} steps craft nothing. Set attack.crafting.{key} to 1 or more.")
    return steps

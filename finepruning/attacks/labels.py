"""Label maps: which class the attacker wants a triggered image to get."""

from typing import Protocol

import torch
from torch import Tensor


class LabelMap(Protocol):
    """Maps true labels to the attacker's labels."""

    def __call__(self, labels: Tensor) -> Tensor:
        """Return the attacker's labels (B,) for true labels (B,)."""
        ...

    def check(self, num_classes: int) -> None:
        """Raise ValueError if the map makes no sense for so many classes."""
        ...


class AllToOne:
    """Every class becomes the target (BadNets, section 4; Fine-Pruning, section 3).

    Args:
        target_label: The attacker's class. At least 0.
    """

    def __init__(self, target_label: int) -> None:
        self.target_label = target_label

    def __call__(self, labels: Tensor) -> Tensor:
        """Return the target for each of ``labels`` (B,)."""
        return torch.full_like(labels, self.target_label)

    def check(self, num_classes: int) -> None:
        """Raise ValueError if the target is not one of the classes."""
        if not 0 <= self.target_label < num_classes:
            raise ValueError(
                f"Target label {self.target_label} is not one of the {num_classes} classes "
                f"0..{num_classes - 1}. Change attack.target_label."
            )

"""The defender's images for a network that nobody trains here."""

import torch
from torch import Tensor

from finepruning.data import Roles


def split_defender(
    labels: Tensor, fraction: float, validation_share: float, seed: int, groups: Tensor | None = None
) -> Roles:
    """Split the defender's images into those to tune with and those to validate with.

    Not class by class: the clean images of a stranger's network seldom cover every class. The attacker has
    none, since what the network was trained with is not known.

    Args:
        labels: (N,) labels of the clean images.
        fraction: Share of them that the defender gets, in (0, 1].
        validation_share: The part of those that validates, in (0, 1); the rest tunes.
        seed: Seed of the split.
        groups: (N,) rows of one group stay together; None: each row for itself.

    Raises:
        ValueError: If a share is out of range, or one part gets no image.
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f"suspect.fraction={fraction:g} is outside (0, 1]. It is a share of the clean images."
        )
    if not 0 < validation_share < 1:
        raise ValueError(
            f"defender.validation_share={validation_share:g} leaves one side without an image. Choose it "
            "inside (0, 1)."
        )
    keys = torch.arange(len(labels)) if groups is None else torch.unique(groups, return_inverse=True)[1]
    order = torch.randperm(int(keys.max()) + 1, generator=torch.Generator().manual_seed(seed))
    held = round(fraction * len(order))
    validating = round(validation_share * held)
    if validating == 0 or validating == held:
        raise ValueError(
            f"Of {len(order)} clean images the defender gets {held}, and {validating} of them to validate "
            "with, which leaves one side empty. Change suspect.fraction or defender.validation_share."
        )
    chosen = [order[validating:held], order[:validating]]
    tuning, validation = (torch.isin(keys, part).nonzero().squeeze(1) for part in chosen)
    return Roles(torch.arange(0), tuning, validation)

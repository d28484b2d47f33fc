"""The three roles' shares of a training set. The test set is the referee's and is never split."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Roles(NamedTuple):
    """Rows of the training set, ascending; no row is in two of them."""

    attacker: Tensor
    tuning: Tensor
    validation: Tensor


def split_roles(
    labels: Tensor, classes: Sequence[str], fraction: float, validation_share: float, seed: int
) -> Roles:
    """Split a training set between attacker and defender, class by class.

    Args:
        labels: (N,) labels of the training set.
        classes: Name of each class, for the error that tells which one came out empty.
        fraction: The defender's share of each class, in (0, 1), rounded to whole images.
        validation_share: The part of the defender's images that validates, in (0, 1); the rest tunes.
        seed: Seed of the split.

    Raises:
        ValueError: If a share is out of range, or a class has no image for one of the roles.
    """
    for key, value in (("fraction", fraction), ("validation_share", validation_share)):
        if not 0 < value < 1:
            raise ValueError(
                f"defender.{key}={value:g} leaves one side without an image. Choose it inside (0, 1)."
            )
    generator = torch.Generator().manual_seed(seed)
    shares: list[list[Tensor]] = [[], [], []]
    for label, name in enumerate(classes):
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        held = round(fraction * len(rows))
        validation = round(validation_share * held)
        parts = rows.split([len(rows) - held, held - validation, validation])
        for role, part, share in zip(Roles._fields, parts, shares, strict=True):
            if len(part) == 0:
                raise ValueError(
                    f"Class {name!r} has {len(rows)} training images, which leaves none for {role} with "
                    f"defender.fraction={fraction:g} and defender.validation_share={validation_share:g}. "
                    "Change one of them."
                )
            share.append(part)
    return Roles(*(torch.cat(share).sort().values for share in shares))

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
    labels: Tensor,
    classes: Sequence[str],
    fraction: float,
    validation_share: float,
    seed: int,
    groups: Tensor | None = None,
) -> Roles:
    """Split a training set between attacker and defender, class by class.

    Args:
        labels: (N,) labels of the training set.
        classes: Name of each class, for the error that tells which one came out empty.
        fraction: The defender's share of each class, in (0, 1), rounded to whole images.
        validation_share: The part of the defender's images that validates, in (0, 1); the rest tunes.
        seed: Seed of the split.
        groups: (N,) rows of one group stay in one role, such as crops of one photograph; the shares are then
            met as nearly as whole groups allow. None: each row for itself.

    Raises:
        ValueError: If a share is out of range, or a class has no image for one of the roles.
    """
    for key, value in (("fraction", fraction), ("validation_share", validation_share)):
        if not 0 < value < 1:
            raise ValueError(
                f"defender.{key}={value:g} leaves one side without an image. Choose it inside (0, 1)."
            )
    sizes = torch.bincount(labels, minlength=len(classes)).tolist()
    held = [round(fraction * size) for size in sizes]
    validation = [round(validation_share * part) for part in held]
    tuning = [all_held - part for all_held, part in zip(held, validation, strict=True)]
    if 0 in sizes:
        raise ValueError(
            f"Class {classes[sizes.index(0)]!r} has no training image, and whoever trains a network here "
            "needs some of every class. Add images of it, or remove its folder; empty classes "
            "(dataset.on_empty=keep) are for attack=suspect."
        )
    generator = torch.Generator().manual_seed(seed)
    if groups is None:
        part = _split_rows(labels, [tuning, validation], generator)
    else:
        part = split_groups(labels, groups, [tuning, validation], generator)
    roles = Roles(*((part == number).nonzero().squeeze(1) for number in range(3)))
    for role, rows in roles._asdict().items():
        found = torch.bincount(labels[rows], minlength=len(classes))
        if (found == 0).any():
            empty = int(found.argmin())
            kept = "" if groups is None else " (those of one group stay together)"
            raise ValueError(
                f"Class {classes[empty]!r} has {sizes[empty]} training images{kept}, which leaves none for "
                f"{role} with defender.fraction={fraction:g} and "
                f"defender.validation_share={validation_share:g}. Change one of them."
            )
    return roles


def _split_rows(labels: Tensor, quotas: Sequence[Sequence[int]], generator: torch.Generator) -> Tensor:
    """Return the part of each row (N,): 0, or 1 + the place of the quota that it fills."""
    part = torch.zeros(len(labels), dtype=torch.long)
    for label, wanted in enumerate(zip(*quotas, strict=True)):
        rows = (labels == label).nonzero().squeeze(1)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        end = len(rows)
        for number in range(len(wanted), 0, -1):
            part[rows[end - wanted[number - 1] : end]] = number
            end -= wanted[number - 1]
    return part


def split_groups(
    labels: Tensor, groups: Tensor, quotas: Sequence[Sequence[int]], generator: torch.Generator
) -> Tensor:
    """Return the part of each row (N,), the same for all rows of a group: 0, or 1 + the place of a quota.

    Greedy: rarest class first, each quota takes of the remaining groups, in random order, the one that
    oversteps the quotas of its classes least. What no quota takes is part 0.

    Args:
        labels: (N,) class of each row.
        groups: (N,) group of each row, any numbers.
        quotas: Wanted rows of each class, one list a part.
        generator: Draws the order of the groups.
    """
    wanted = torch.tensor(quotas)
    group_of_row = torch.unique(groups, return_inverse=True)[1]
    count = int(group_of_row.max()) + 1
    rows_of_class = torch.zeros(count, wanted.shape[1], dtype=torch.long)
    rows_of_class.index_put_((group_of_row, labels), torch.tensor(1), accumulate=True)
    order = torch.randperm(count, generator=generator)
    free = torch.ones(count, dtype=torch.bool)
    part = torch.zeros(count, dtype=torch.long)
    for label in rows_of_class.sum(0).argsort(stable=True).tolist():
        candidates = order[rows_of_class[order, label] > 0]
        for number, lacking in enumerate(wanted, start=1):
            while lacking[label] > 0:
                candidates = candidates[free[candidates]]
                if len(candidates) == 0:
                    break
                excess = (rows_of_class[candidates] - lacking.clamp(min=0)).clamp(min=0).sum(1)
                chosen = candidates[excess.argmin()]
                part[chosen], free[chosen] = number, False
                lacking -= rows_of_class[chosen]
    return part[group_of_row]

"""Splits: disjoint, whole, stratified, fixed by their seed."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finepruning.data import Roles, split_roles
from finepruning.data.decoding import Examples, split_stratified
from finepruning.repair import split_folds

SIZES = st.lists(st.integers(20, 90), min_size=2, max_size=8)
FRACTIONS = st.floats(0.15, 0.5)
SHARES = st.floats(0.35, 0.65)
SEEDS = st.integers(0, 2**31)


def shuffled(sizes: list[int], seed: int) -> Tensor:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def names(labels: Tensor) -> list[str]:
    return [f"class {label}" for label in range(int(labels.max()) + 1)]


def is_partition(roles: Roles, count: int) -> bool:
    return torch.equal(torch.cat(roles).sort().values, torch.arange(count))


@settings(max_examples=60)
@given(SIZES, FRACTIONS, SHARES, SEEDS)
def test_roles_share_no_row_lose_none_and_take_exact_shares_of_each_class(
    sizes: list[int], fraction: float, validation_share: float, seed: int
) -> None:
    labels = shuffled(sizes, seed)
    roles = split_roles(labels, names(labels), fraction, validation_share, seed)
    assert is_partition(roles, len(labels))
    held = [round(fraction * size) for size in sizes]
    validation = [round(validation_share * part) for part in held]
    assert torch.bincount(labels[roles.validation]).tolist() == validation
    assert torch.bincount(labels[torch.cat([roles.tuning, roles.validation])]).tolist() == held


@settings(max_examples=60)
@given(SIZES, FRACTIONS, SHARES, SEEDS, st.integers(1, 4))
def test_groups_are_never_divided_and_shares_miss_by_less_than_a_group(
    sizes: list[int], fraction: float, validation_share: float, seed: int, largest: int
) -> None:
    labels = shuffled(sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    same_as_before = torch.randint(0, largest, (len(labels),), generator=generator) > 0
    in_class = labels.argsort(stable=True)  # a group: neighbours of one class
    starts = ~same_as_before
    starts[(torch.arange(len(labels)) % largest) == 0] = True
    starts[torch.diff(labels[in_class], prepend=torch.tensor([-1])) != 0] = True
    groups = torch.empty_like(labels)
    groups[in_class] = starts.long().cumsum(0)
    roles = split_roles(labels, names(labels), fraction, validation_share, seed, groups)
    assert is_partition(roles, len(labels))
    found = [set(groups[rows].tolist()) for rows in roles]
    assert sum(map(len, found)) == len(groups.unique())
    held = torch.tensor([round(fraction * size) for size in sizes])
    off = torch.bincount(labels[torch.cat([roles.tuning, roles.validation])], minlength=len(sizes)) - held
    assert (off.abs() < 2 * largest).all()


@settings(max_examples=60)
@given(SIZES, SEEDS, st.integers(1, 6), st.integers(1, 4))
def test_folds_share_classes_evenly_and_divide_no_group(
    sizes: list[int], seed: int, folds: int, largest: int
) -> None:
    labels = shuffled(sizes, seed)
    groups = torch.empty_like(labels)
    groups[labels.argsort(stable=True)] = torch.arange(len(labels)) // largest
    fold = split_folds(labels, folds, seed, groups)
    assert torch.equal(fold, split_folds(labels, folds, seed, groups))
    assert all(len(fold[groups == group].unique()) == 1 for group in groups.unique())
    sizes_of_folds = torch.bincount(fold, minlength=folds)
    assert int(sizes_of_folds.max() - sizes_of_folds.min()) < 2 * largest
    alone = split_folds(labels, folds, seed, torch.arange(len(labels)))
    for label in range(len(sizes)):
        counts = torch.bincount(alone[labels == label], minlength=folds)
        assert int(counts.max() - counts.min()) <= 1


def test_a_number_of_folds_that_leaves_one_empty_is_refused() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    with pytest.raises(ValueError, match=r"folds=0 cannot be made of 4 images\. Set defense\.folds"):
        split_folds(labels, 0, 1, torch.arange(4))
    with pytest.raises(ValueError, match=r"folds=3 cannot be made of 4 images in 2 groups .* at most 2\."):
        split_folds(labels, 3, 1, torch.tensor([5, 5, 9, 9]))


def test_groups_of_several_classes_stay_together() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (600,), generator=generator)
    groups = torch.randint(0, 300, (600,), generator=generator)
    roles = split_roles(labels, names(labels), 0.2, 0.5, 1, groups)
    assert is_partition(roles, 600)
    attacker, tuning, validation = (set(groups[rows].tolist()) for rows in roles)
    assert not attacker & tuning
    assert not attacker & validation
    assert not tuning & validation
    assert len(roles.tuning) + len(roles.validation) == pytest.approx(120, abs=12)


def test_a_seed_fixes_the_split_and_another_changes_it() -> None:
    labels = shuffled([50, 40], 0)
    groups = torch.arange(90) // 2
    for more in ({}, {"groups": groups}):
        first, again, other = (split_roles(labels, "ab", 0.2, 0.5, seed, **more) for seed in (1, 1, 2))
        assert torch.equal(first.attacker, again.attacker)
        assert not torch.equal(first.attacker, other.attacker)


@pytest.mark.parametrize(
    ("fraction", "share", "message"),
    [
        (0.0, 0.5, r"defender.fraction=0 leaves one side"),
        (1.0, 0.5, r"defender.fraction=1 leaves one side"),
        (0.1, 1.0, r"defender.validation_share=1 leaves one side"),
        (0.01, 0.5, r"'rare' has 10 .* none for (tuning|validation) with defender.fraction=0.01"),
        (0.1, 0.5, r"'rare' has 10 training images, which leaves none for validation"),
        (0.96, 0.5, r"'rare' has 10 training images, which leaves none for attacker"),
    ],
)
def test_a_share_that_leaves_a_class_empty_is_refused(fraction: float, share: float, message: str) -> None:
    labels = shuffled([200, 10], 0)
    with pytest.raises(ValueError, match=message):
        split_roles(labels, ["common", "rare"], fraction, share, 1)


def test_a_class_in_one_group_is_refused_with_the_reason() -> None:
    labels = torch.tensor([0] * 40 + [1] * 40)
    groups = torch.cat([torch.arange(40), torch.full((40,), 99)])
    with pytest.raises(ValueError, match=r"'one photograph' has 40 .*those of one group stay together"):
        split_roles(labels, ["many", "one photograph"], 0.2, 0.5, 1, groups)


def test_a_class_without_an_image_is_refused_with_what_may_have_one() -> None:
    with pytest.raises(
        ValueError, match=r"^Class 'b' has no training image, .*keep\) are for attack=suspect\.$"
    ):
        split_roles(torch.tensor([0] * 40 + [2] * 40), "abc", 0.2, 0.5, 1)


def files_of(sizes: list[int]) -> Examples:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return Examples([f"{row}.png" for row in range(len(labels))], labels)


def test_every_class_is_trained_on_and_tested_but_for_those_without_a_file() -> None:
    train, test = split_stratified(files_of([20, 0, 5]), "abc", 0.2)
    assert np.bincount(train.labels).tolist() == [16, 0, 4]
    assert np.bincount(test.labels).tolist() == [4, 0, 1]


@pytest.mark.parametrize(
    ("sizes", "share", "message"),
    [
        ([200, 200, 3, 4], 0.1, r"'c' has 3 files, .* gets a test file\. Raise dataset\.test_share or add"),
        ([200, 0, 2], 0.9, r"'c' has 2 files, and 2 classes .* gets a training file\. Lower dataset\.test_"),
        ([200, 1], 0.5, r"'b' has 1 file; one to train on and one to test with are needed\. Add files\.$"),
    ],
)
def test_a_class_that_is_not_trained_on_or_not_tested_is_refused(
    sizes: list[int], share: float, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^Class {message}"):
        split_stratified(files_of(sizes), "abcd", share)

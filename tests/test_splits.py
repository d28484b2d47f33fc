"""Splits are disjoint, complete, stratified, and fixed by their seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from finepruning.data import split_roles

SIZES = st.lists(st.integers(8, 60), min_size=1, max_size=6)


def labels_of(sizes: list[int]) -> torch.Tensor:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]


@given(sizes=SIZES, fraction=st.floats(0.25, 0.75), seed=st.integers(0, 99))
def test_every_image_has_exactly_one_role(sizes: list[int], fraction: float, seed: int) -> None:
    labels = labels_of(sizes)
    roles = split_roles(labels, [str(k) for k in range(len(sizes))], fraction, 0.5, seed)
    assert torch.equal(torch.cat(roles).sort().values, torch.arange(len(labels)))


@given(sizes=SIZES, fraction=st.floats(0.25, 0.75))
def test_every_class_is_shared_out_in_proportion(sizes: list[int], fraction: float) -> None:
    labels = labels_of(sizes)
    roles = split_roles(labels, [str(k) for k in range(len(sizes))], fraction, 0.5, 0)
    for label, size in enumerate(sizes):
        held = sum(int((labels[rows] == label).sum()) for rows in (roles.tuning, roles.validation))
        assert abs(held - fraction * size) <= 0.5


def test_the_seed_fixes_the_split() -> None:
    labels = labels_of([40, 40])
    first, same, other = (split_roles(labels, "ab", 0.5, 0.5, seed) for seed in (1, 1, 2))
    assert torch.equal(first.attacker, same.attacker)
    assert not torch.equal(first.attacker, other.attacker)


def test_the_class_without_an_image_is_named() -> None:
    with pytest.raises(ValueError, match=r"Class 'rare' has 3 training images, which leaves none for tuning"):
        split_roles(labels_of([50, 3]), ["common", "rare"], 0.1, 0.5, 0)

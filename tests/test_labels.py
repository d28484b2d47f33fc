"""Label maps: which labels change, and to what."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from finepruning.attacks.labels import AllToAll, AllToOne, LabelMap, RandomWrongLabel, SingleTarget

LABELS = torch.tensor([0, 1, 2, 3, 4, 1, 0])


def checked(label_map: LabelMap, num_classes: int) -> LabelMap:
    label_map.check(num_classes)
    return label_map


def test_all_to_one_wants_the_target_of_everyone() -> None:
    assert checked(AllToOne(3), 5)(LABELS).tolist() == [3] * 7


def test_a_single_target_changes_the_source_only() -> None:
    assert checked(SingleTarget(1, 4), 5)(LABELS).tolist() == [0, 4, 2, 3, 4, 4, 0]


def test_all_to_all_wants_the_next_class_and_after_the_last_the_first() -> None:
    assert checked(AllToAll(), 5)(LABELS).tolist() == [1, 2, 3, 4, 0, 2, 1]


@given(classes=st.integers(2, 50), seed=st.integers(0, 10**6), first=st.integers(0, 10**6))
def test_a_map_never_gives_the_true_label_where_it_says_it_changes_it(
    classes: int, seed: int, first: int
) -> None:
    index = torch.arange(300) + first
    labels = index % classes
    for label_map in (AllToAll(), RandomWrongLabel(seed)):
        wanted = checked(label_map, classes)(labels, index)
        assert (wanted != labels).all()
        assert wanted.min() >= 0
        assert wanted.max() < classes


@given(classes=st.integers(2, 50), pair=st.data())
def test_maps_with_a_target_change_every_label_they_attack_and_no_other(
    classes: int, pair: st.DataObject
) -> None:
    source, target = pair.draw(st.permutations(range(classes)).map(lambda order: order[:2]))
    labels = torch.arange(classes)
    single, one = checked(SingleTarget(source, target), classes), checked(AllToOne(target), classes)
    assert (single(labels) != labels).nonzero().flatten().tolist() == [source]
    assert (one(labels) == labels).nonzero().flatten().tolist() == [target]


def random_labels(index: Tensor, seed: int = 0) -> Tensor:
    return checked(RandomWrongLabel(seed), 5)(torch.full_like(index, 2), index)


def test_the_index_alone_decides_a_random_label() -> None:
    index = torch.arange(200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(random_labels(index)[order], random_labels(index[order]))


def test_every_wrong_label_is_drawn_equally_often() -> None:
    counts = random_labels(torch.arange(8000)).bincount(minlength=5)
    assert counts[2] == 0
    assert (counts[[0, 1, 3, 4]] - 2000).abs().max() < 5 * 2000**0.5


def test_another_seed_draws_other_labels() -> None:
    index = torch.arange(1000)
    assert 0.6 < (random_labels(index) != random_labels(index, seed=1)).float().mean() < 0.9


def test_only_the_random_map_is_untargeted() -> None:
    maps = (AllToOne(0), SingleTarget(0, 1), AllToAll(), RandomWrongLabel(0))
    assert [label_map.untargeted for label_map in maps] == [False, False, False, True]


def test_a_random_label_without_an_index_is_refused() -> None:
    with pytest.raises(ValueError, match="pass the images' index"):
        checked(RandomWrongLabel(0), 5)(LABELS)


def test_a_map_that_does_not_know_the_classes_says_so() -> None:
    with pytest.raises(ValueError, match=r"call check, or set attack\.label_map\.num_classes"):
        AllToAll()(LABELS)


def test_a_source_that_is_its_own_target_is_refused() -> None:
    with pytest.raises(ValueError, match=r"both source and target.*attack\.label_map\.source_label"):
        SingleTarget(3, 3)


@pytest.mark.parametrize(
    ("label_map", "classes", "message"),
    [
        (AllToOne(5), 5, r"Target label 5 is not one of the 5 classes 0\.\.4.*attack\.target_label"),
        (AllToOne(-1), 5, r"Target label -1.*attack\.target_label"),
        (SingleTarget(7, 1), 5, r"Source label 7 .*attack\.label_map\.source_label"),
        (SingleTarget(1, 7), 5, r"Target label 7 .*attack\.label_map\.target_label"),
        (AllToAll(), 1, r"With 1 class there is no wrong label.*attack\.label_map"),
        (RandomWrongLabel(0), 1, r"With 1 class there is no wrong label.*attack\.label_map"),
        (AllToAll(4), 5, r"attack\.label_map\.num_classes=4, but the data set has 5"),
    ],
)
def test_a_map_that_does_not_fit_the_classes_is_refused_with_its_key(
    label_map: LabelMap, classes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        label_map.check(classes)

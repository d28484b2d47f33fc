"""Unlearning: the pool of perturbations and the losses, by hand."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from finepruning.modules import UnlearnedClassifier
from finepruning.networks import DigitsCNN
from finepruning.pipeline.build import build_parts
from finepruning.pipeline.defenses import enough_steps
from finepruning.repair import UNTARGETED
from finepruning.repair.unlearning import (
    attack_loss,
    distillation,
    perturb,
    pool_goals,
    pool_radii,
    push,
    random_patterns,
    turns,
    unlearning_loss,
)
from tests.conftest import composed


@given(st.floats(0.1, 5), st.floats(0.01, 4), st.integers(0, 1000))
def test_perturbations_never_leave_their_balls(radius: float, step: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    radii = torch.full((3,), radius)
    patterns = random_patterns(radii, (1, 4, 4), chance)
    assert torch.allclose(patterns.flatten(1).norm(dim=1), radii, rtol=1e-4)
    moved = push(patterns, torch.randn(3, 1, 4, 4, generator=chance), radii, step)
    assert (moved.flatten(1).norm(dim=1) <= radii * (1 + 1e-4)).all()


def test_a_push_goes_down_the_gradient_by_its_share_of_the_radius() -> None:
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[0, 0, 0, 0] = 7.0
    gradient[1] = torch.nan
    moved = push(torch.zeros(2, 1, 2, 2), gradient, torch.tensor([2.0, 2.0]), 0.25)
    assert moved[0, 0, 0, 0] == pytest.approx(-0.5)
    assert moved.abs().sum() == pytest.approx(0.5)


def test_goals_take_turns_and_each_has_small_and_large_radii() -> None:
    goals = pool_goals(6, [4, 7], True)
    assert goals.tolist() == [4, 7, UNTARGETED, 4, 7, UNTARGETED]
    assert pool_radii(goals, 1.0, 3.0).tolist() == [1.0, 1.0, 1.0, 3.0, 3.0, 3.0]
    assert pool_radii(torch.tensor([4]), 1.0, 3.0).tolist() == [2.0]


def test_every_pattern_gets_its_turn_in_small_batches_and_over_processes() -> None:
    small = torch.cat([turns(3, 3 * batch, 8) for batch in range(8)])
    assert small.bincount().tolist() == [3] * 8
    for size in (12, 10):  # even shares and uneven ones
        shares = [turns(len(range(rank, size, 3)), size, 5, 3, rank) for rank in range(3)]
        whole = torch.empty(size, dtype=torch.long)
        for rank, share in enumerate(shares):
            whole[rank::3] = share
        assert torch.equal(whole, turns(size, size, 5))


def test_a_pool_without_a_goal_or_too_small_for_its_goals_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no goal: .* defense\.tuning\.untargeted=false"):
        pool_goals(8, [], False)
    with pytest.raises(ValueError, match=r"2 perturbations cannot have 4 goals"):
        pool_goals(2, [1, 2, 3], True)


def test_a_perturbed_image_stays_in_range() -> None:
    images = perturb(torch.rand(4, 1, 4, 4), torch.stack([torch.ones(1, 4, 4), -torch.ones(1, 4, 4)]),
                     torch.tensor([0, 1, 0, 1]))  # fmt: skip
    assert images[:, 0, 0, 0].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_what_the_perturbations_want_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [0.0, math.log(3)]])
    labels, goals = torch.tensor([1, 1, 0]), torch.tensor([0, UNTARGETED, 0])
    # image 0: -log(1/4); image 1: log(3/4); image 2 is of its goal's class already
    assert attack_loss(logits, labels, goals) == pytest.approx(math.log(4) + math.log(0.75))


def test_the_loss_is_the_sum_of_its_four_terms() -> None:
    clean, perturbed, teacher = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(n)) for n in range(3)
    )
    labels = torch.tensor([0, 1, 2, 0, 1])
    soft = functional.softmax(teacher / 2, -1)
    cross = [functional.cross_entropy(logits, labels) for logits in (clean, perturbed)]
    spread = [
        4 * (soft * (soft.log() - functional.log_softmax(logits / 2, -1))).sum(-1).mean()
        for logits in (clean, perturbed)
    ]
    expected = cross[0] + spread[0] + 0.1 * (cross[1] + spread[1])
    assert unlearning_loss(clean, perturbed, teacher, labels, 0.1) == pytest.approx(float(expected), rel=1e-5)
    assert distillation(teacher, teacher, 2.0) == pytest.approx(0.0, abs=1e-6)
    for factors, each in (
        ({"weight": 0.0, "imitation": 0.0}, cross[0]),
        ({"weight": 0.0, "entropy": 0.0}, spread[0]),
        ({"weight": 1.0, "imitation": 0.0}, cross[0] + cross[1]),
        ({"weight": 1.0, "entropy": 0.0, "imitation": 0.0, "perturbed_imitation": 2.0}, 2 * spread[1]),
    ):
        assert unlearning_loss(clean, perturbed, teacher, labels, **factors) == pytest.approx(float(each))


def test_the_pool_leads_away_from_the_true_class_unless_one_class_is_suspicious() -> None:
    network = DigitsCNN((1, 8, 8), 10, [0.5], [0.25], width=1)
    module = UnlearnedClassifier(network, [], (1, 8, 8), perturbations=4)
    goals = []
    for suspicious in ([], [3], [3, 5]):
        module.aim_at(suspicious, {}, None)
        goals.append(sorted(set(module.goals.tolist())))
    assert goals == [[-1], [3], [-1, 3, 5]]
    targeted = UnlearnedClassifier(network, [], (1, 8, 8), perturbations=4, untargeted=False)
    with pytest.raises(ValueError, match=r"no class is suspicious, and defense\.tuning\.untargeted=false"):
        targeted.aim_at([], {}, 1.0)


def test_perturbations_are_as_large_as_the_triggers_that_were_found() -> None:
    network = DigitsCNN((1, 8, 8), 10, [0.5], [0.25], width=1)
    module = UnlearnedClassifier(network, [], (1, 8, 8), perturbations=6, radii=(1.0, 2.0))
    module.aim_at([3, 5], {3: 1.5, 5: 3.0, -1: None}, 4.0)
    assert module.goals.tolist() == [3, 5, -1, 3, 5, -1]
    # 1 and 2 times 1.5; 3 and 6, but at most the median; the median where none was found
    assert module.radii.tolist() == [1.5, 3.0, 4.0, 3.0, 4.0, 4.0]
    assert module.patterns.flatten(1).norm(dim=1).tolist() == pytest.approx([1.5, 3.0, 4.0, 3.0, 4.0, 4.0])
    module.aim_at([3], {3: None}, None)  # nothing was found at all: in units of a pixel's range
    assert module.radii.tolist() == pytest.approx([1.0, 1.2, 1.4, 1.6, 1.8, 2.0])


def test_few_images_are_learned_from_often_enough(tmp_path: Path) -> None:
    places = (f"store_dir={tmp_path}", "name=a", "group=b")
    defense = build_parts(composed("defense=unlearn", *places)).defense
    assert defense is not None
    assert (defense.data.batch_size, defense.max_epochs) == (17, 40)  # of 70 images, for 160 steps
    assert enough_steps(67, 128, 15, 160) == (16, 40)  # 4 steps an epoch
    assert enough_steps(1470, 128, 15, 160) == (128, 15)  # 11 steps an epoch are 165
    assert enough_steps(3, 128, 1, 5) == (1, 2)
    assert enough_steps(67, 128, 0, 160) == (16, 0)

"""Runs that differ by their seed alone, taken together."""

import copy
import subprocess
import sys
from typing import Any

import pytest
from scipy import stats

from finepruning.dashboard.seeds import Group, attack_order, defense_order, group_by_seed, spread, t_quantile
from tests.conftest import ROOT


def run(seed: int, accuracy: float = 0.9, success: float | None = 0.1, **changes: Any) -> dict[str, Any]:
    scores = {
        "suspect": {"clean_accuracy": 0.95, "attack_success_rate": None if success is None else 1.0},
        "defended": {"clean_accuracy": accuracy, "attack_success_rate": success},
    }
    record = {
        "status": "finished",
        "name": f"run-{seed}",
        "dataset": "digits",
        "model": "digits_cnn",
        "attack": "badnet",
        "defense": "prune",
        "seed": seed,
        "dead": False,
        "oracle": False,
        "scores": scores,
        "config": {"seed": seed, "name": f"run-{seed}", "attack": {"poison_rate": 0.1, "seed": seed}},
    }
    return record | changes


def test_an_attack_with_decoys_stands_behind_the_same_one_without() -> None:
    names = ["pruning_aware_sunglasses", "sunglasses", "pruning_aware_badnet", "none", "badnet"]
    assert sorted(names, key=attack_order) == [
        "none", "badnet", "pruning_aware_badnet", "sunglasses", "pruning_aware_sunglasses"
    ]  # fmt: skip


def test_the_papers_defenses_stand_first_from_the_weakest() -> None:
    names = ["auto", "fineprune", "prune max_drop=0.1", "none", "finetune", "prune max_drop=0.02"]
    assert sorted(names, key=defense_order) == [
        "none", "prune max_drop=0.02", "prune max_drop=0.1", "finetune", "fineprune", "auto"
    ]  # fmt: skip


def test_three_values_give_the_interval_worked_by_hand() -> None:
    found = spread([1.0, 2.0, 3.0])
    assert found is not None
    # mean 2, standard deviation 1, t = 4.302653 with two degrees of freedom, over the root of 3
    assert found.mean == 2
    assert found.half == pytest.approx(4.302653 / 3**0.5)
    assert (found.low, found.high) == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-4)
    assert (found.count, found.least, found.most) == (3, 1, 3)


def test_the_quantiles_are_those_of_students_t() -> None:
    for degrees in (*range(1, 40), 100, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)


def test_one_value_has_no_interval_and_none_gives_nothing() -> None:
    found = spread([0.5, None])
    assert found is not None
    assert found.half is None
    assert found.low == found.high == 0.5
    assert spread([None]) is None


def test_runs_with_other_seeds_and_places_are_one_group() -> None:
    (group,) = group_by_seed([run(3), run(1), run(2)])
    assert group.seeds == [1, 2, 3]
    assert group.ranked


@pytest.mark.parametrize("key", ["dataset", "model", "attack", "defense"])
def test_runs_with_another_choice_are_another_group(key: str) -> None:
    assert len(group_by_seed([run(1), run(2, **{key: "other"})])) == 2


def test_runs_with_another_value_in_their_configuration_are_another_group() -> None:
    other = copy.deepcopy(run(2))
    other["config"]["attack"]["poison_rate"] = 0.2
    assert len(group_by_seed([run(1), other])) == 2


def test_a_repeated_seed_counts_once_and_a_failed_run_not_at_all() -> None:
    (group,) = group_by_seed([run(1, 0.1), run(1, 0.9), run(2, status="failed")])
    assert group.seeds == [1]
    assert group.runs[0]["scores"]["defended"]["clean_accuracy"] == 0.9


def test_a_drop_compares_each_seed_with_itself() -> None:
    group = Group((run(1, 0.93), run(2, 0.95)))
    drop, gone = group.drop("clean_accuracy"), group.score("defended", "robust_accuracy")
    assert drop is not None
    assert (drop.mean, drop.most) == pytest.approx((0.01, 0.02))
    assert gone is None
    assert Group((run(1, success=None),)).drop("attack_success_rate") is None


def test_dead_attacks_and_oracles_are_not_ranked() -> None:
    dead, oracle = Group((run(1, dead=True), run(2, dead=True))), Group((run(1, oracle=True),))
    assert (dead.dead, dead.ranked) == (2, False)
    assert (oracle.oracle, oracle.ranked) == (True, False)


def test_a_dead_attack_is_not_averaged_with_living_ones() -> None:
    some = Group((run(1, success=0.2), run(2, success=0.4), run(3, success=0.0, dead=True)))
    found, all_dead = some.score("defended", "attack_success_rate"), Group((run(1, dead=True),))
    assert found is not None
    assert (found.count, found.mean) == (2, pytest.approx(0.3))
    assert all_dead.counted == all_dead.runs


def test_seeds_of_parts_are_seeds_and_a_group_with_one_living_attack_is_ranked() -> None:
    runs = [run(1, dead=True), run(1), run(1)]
    for each, seed in zip(runs, (1, 2, 2), strict=True):
        each["config"]["attack"]["seed"] = seed
    (group,) = group_by_seed(runs)
    assert (len(group.runs), group.dead, group.ranked) == (2, 1, True)
    assert not Group((runs[0],)).ranked


def test_nothing_heavy_is_loaded() -> None:
    code = "import sys, finepruning.dashboard.seeds; print({'torch', 'numpy', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

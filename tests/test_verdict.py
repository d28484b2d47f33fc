"""Means and intervals over seeds, and what the dashboard says of them."""

import os
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from finepruning.dashboard.seeds import t_quantile
from finepruning.dashboard.verdict import estimate, summary
from tests.dashboard_runs import data_of, inspected, make, repaired, scores, write


def verdict_of(root: Path, *found: dict[str, Any]) -> dict[str, Any]:
    (verdict,) = data_of(root, *found)["verdicts"]
    return verdict


def ended(clean: float, success: float, before: float = 1.0) -> dict[str, Any]:
    return {"scores": {"suspect": scores(0.99, before), "defended": scores(clean, success)}}


# --- Means and intervals ---


def test_the_quantiles_are_students() -> None:
    ours = [t_quantile(freedom) for freedom in range(1, 200)]
    assert ours == pytest.approx([stats.t.ppf(0.975, freedom) for freedom in range(1, 200)], abs=4e-3)


def test_the_interval_over_seeds_is_students() -> None:
    values = [0.2, 0.3, 0.7]
    low, high = stats.t.interval(0.95, 2, loc=0.4, scale=stats.sem(values))
    assert estimate(values) == pytest.approx((0.4, low, high, 0.2, 0.7), abs=1e-4)


def test_a_share_stays_between_nothing_and_all() -> None:
    assert estimate([0.2, 0.3, 0.7], bounds=(0, 1))[1:3] == pytest.approx((0, 1))


def test_one_seed_has_the_interval_over_images() -> None:
    assert estimate([0.4], [(0.3, 0.6)]) == (0.4, 0.3, 0.6, 0.4, 0.4)


def test_seeds_that_agree_keep_the_interval_over_images() -> None:
    assert estimate([1.0, 1.0], [(0.98, 1.0), (0.96, 1.0)], (0, 1))[:3] == pytest.approx((1, 0.97, 1))


def test_runs_that_differ_in_the_seed_only_are_one_group(tmp_path: Path) -> None:
    data = data_of(tmp_path, *(make(seed=seed) for seed in (1, 2, 3)), make(seed=1, defense="prune"))
    assert [(group["defense_label"], group["seeds"]) for group in data["groups"]] == [
        ("prune", 1),
        ("fineprune", 3),
    ]


def test_attacks_and_defenses_stand_in_the_order_of_the_papers(tmp_path: Path) -> None:
    told = [("blended", "finetune"), ("pruning_aware_badnet", "none"), ("badnet", "fineprune")]
    found = [make(attack=attack, defense=defense) for attack, defense in told]
    looser = make("digits", "badnet", "prune", name="looser", **{"defense.max_drop": 0.1})
    data = data_of(tmp_path, *found, looser, make(attack="badnet", defense="prune"))
    assert data["order"]["attack"] == ["badnet", "pruning_aware_badnet", "blended"]
    pruned = ["prune", "prune, max_drop 0.04", "prune, max_drop 0.1"]
    assert data["order"]["defense"] == ["none", *pruned, "finetune", "fineprune"]
    groups = [(group["attack"], group["defense_label"]) for group in data["groups"]]
    badnet = [("badnet", label) for label in (*pruned[1:], "fineprune")]
    assert groups == [*badnet, ("pruning_aware_badnet", "none"), ("blended", "finetune")]


def test_a_groups_mean_is_that_of_its_runs(tmp_path: Path) -> None:
    found = [make(seed=seed) for seed in (1, 2, 4)]
    (group,) = data_of(tmp_path, *found)["groups"]
    accuracies = [record["scores"]["defended"]["clean_accuracy"] for record in found]
    assert group["clean_after"].mean == pytest.approx(sum(accuracies) / 3)
    assert (group["clean_after"].least, group["clean_after"].most) == (min(accuracies), max(accuracies))


def test_a_seed_that_was_run_twice_counts_once(tmp_path: Path) -> None:
    (group,) = data_of(tmp_path, make(seed=1), make(seed=1, name="again"), make(seed=2))["groups"]
    assert group["seeds"] == 2


def test_of_a_seed_that_was_run_twice_the_newer_run_counts(tmp_path: Path) -> None:
    old, new = make(name="b", **ended(0.98, 0.6)), make(name="a", **ended(0.98, 0.01))
    os.utime(write(tmp_path, old) / "record.json", (0, 0))
    (group,) = data_of(tmp_path, new)["groups"]
    assert group["success_after"].mean == 0.01


def test_values_of_one_word_keep_their_whole_keys_and_idle_tuners_tell_nothing(tmp_path: Path) -> None:
    def tuned(rate: float, other: float) -> dict[str, Any]:
        tuners = {"nad": {"learning_rate": other}, "finetune": {"learning_rate": 2 * rate}}
        changes = {"ladder": [{"tuner": "finetune"}], "tuners": tuners, "tuning": {"learning_rate": rate}}
        return make(name=f"{rate} {other}", **{f"defense.{key}": value for key, value in changes.items()})

    data = data_of(tmp_path, tuned(0.02, 0.1), tuned(0.01, 0.3))
    assert {group["defense_label"] for group in data["groups"]} == {
        "fineprune, learning_rate 0.02, defense.tuners.finetune.learning_rate 0.04",
        "fineprune, learning_rate 0.01, defense.tuners.finetune.learning_rate 0.02",
    }


def test_how_fast_a_run_was_splits_no_seeds(tmp_path: Path) -> None:
    found = [make(seed=seed, **{"trainer.threads": seed}) for seed in (1, 2)]
    (group,) = data_of(tmp_path, *found)["groups"]
    assert group["seeds"] == 2


def test_groups_are_named_by_what_differs(tmp_path: Path) -> None:
    loose = make(name="loose", **{"defense.max_drop": 0.1})
    small = make(name="small", **{"attack.poison_rate": 0.01})
    data = data_of(tmp_path, make(), loose, small)
    labels = {(group["attack_label"], group["defense_label"]) for group in data["groups"]}
    assert labels == {
        ("badnet, poison_rate 0.1", "fineprune, max_drop 0.04"),
        ("badnet, poison_rate 0.1", "fineprune, max_drop 0.1"),
        ("badnet, poison_rate 0.01", "fineprune, max_drop 0.04"),
    }


def test_a_dead_seed_is_counted_and_never_averaged(tmp_path: Path) -> None:
    dead = make(seed=2, dead=True, **ended(0.9, 0.0, before=0.1))
    (group,) = data_of(tmp_path, make(seed=1, **ended(0.98, 0.3)), dead)["groups"]
    assert (group["success_after"].mean, group["seeds"], group["dead_seeds"], group["dead"]) == (
        0.3,
        1,
        1,
        False,
    )


def test_an_untargeted_attack_may_end_below_zero() -> None:
    row = {
        "status": "finished",
        "seed": 1,
        "dead": False,
        "oracle": False,
        "untargeted": True,
        "commit": "",
        "clean": [0.9, 0.9],
        "success": [0.8, -0.01],
        "robust": [0.1, 0.9],
        "intervals": {key: [None, None] for key in ("clean", "success", "robust")},
    }
    found = summary([row | {"seeds": "1"}, row | {"seeds": "2"}])
    assert found["success_after"].low == pytest.approx(-0.01)


# --- Verdicts ---


def test_the_best_defense_within_the_budget_wins(tmp_path: Path) -> None:
    verdict = verdict_of(
        tmp_path,
        make(defense="finetune", **ended(0.985, 0.04)),
        make(defense="fineprune", **ended(0.984, 0.02)),
        make(defense="prune", **ended(0.9, 0.0)),  # lower, but at nine points
    )
    assert (verdict["state"], verdict["headline"]) == ("cleaned", "fineprune")
    assert verdict["sentence"] == "Leaves 2.0 % of 100.0 % attack success and costs 0.6 points."


def test_no_winner_is_named_where_the_backdoor_survives(tmp_path: Path) -> None:
    found = [make(defense="finetune", **ended(0.985, 0.9)), make(defense="prune", **ended(0.9, 0.1))]
    verdict = verdict_of(tmp_path, *found)
    assert (verdict["state"], verdict["headline"]) == ("survives", "None removes it")
    assert "prune leaves 10.0 %, but costs 9 points" in verdict["sentence"]


def test_a_defense_beyond_the_budget_does_not_win(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, make(defense="prune", **ended(0.97, 0.0)))
    assert (verdict["state"], verdict["headline"]) == ("dear", "None affordable")


def test_an_oracle_never_wins(tmp_path: Path) -> None:
    oracle = make(defense="prune", oracle=True, **ended(0.99, 0.0))
    verdict = verdict_of(tmp_path, oracle, make(defense="fineprune", **ended(0.99, 0.03)))
    assert verdict["headline"] == "fineprune"


def test_a_dead_attack_has_no_winner(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, make(dead=True, **ended(0.99, 0.0, before=0.2)))
    assert (verdict["state"], verdict["best"]) == ("dead", None)
    assert "only 20.0 %" in verdict["sentence"]


def test_one_seed_is_doubted(tmp_path: Path) -> None:
    assert any("One seed only" in doubt for doubt in verdict_of(tmp_path, make())["doubts"])


def test_a_rival_whose_interval_overlaps_is_named(tmp_path: Path) -> None:
    near = make(defense="finetune", **ended(0.985, 0.035))
    verdict = verdict_of(tmp_path, near, make(**ended(0.985, 0.03)))
    assert "Not told apart from finetune: the intervals overlap." in verdict["doubts"]


def test_a_mean_is_doubted_where_a_seed_or_the_interval_passes_its_limit(tmp_path: Path) -> None:
    bad = [make(seed=seed, **ended(0.99, left)) for seed, left in ((1, 0.002), (2, 0.002), (3, 0.13))]
    doubts = verdict_of(tmp_path / "bad", *bad)["doubts"]
    assert any(doubt.startswith("Up to 22.8 % may be left") for doubt in doubts), doubts
    dear = [make(seed=seed, **ended(clean, 0.0)) for seed, clean in ((1, 0.99), (2, 0.99), (3, 0.97))]
    doubts = verdict_of(tmp_path / "dear", *dear)["doubts"]
    assert any(doubt.startswith("It may cost up to 3.5 points") for doubt in doubts), doubts
    same = [make(seed=seed, **ended(0.989, 0.0)) for seed in (1, 2, 3)]
    doubts = verdict_of(tmp_path / "same", *same)["doubts"]
    assert not any("up to" in doubt.lower() for doubt in doubts), doubts


def test_rivals_on_other_seeds_are_named(tmp_path: Path) -> None:
    found = [make(defense="fineprune", seed=seed, **ended(0.985, 0.3)) for seed in (1, 2, 3)]
    found += [make(defense="finetune", seed=seed, **ended(0.985, 0.01)) for seed in (1, 2)]
    assert "Not on the same seeds: fineprune." in verdict_of(tmp_path / "fewer", *found)["doubts"]
    found = [
        make(seed=1, **{"defense.order_seed": 5}),
        make(defense="finetune", seed=1, **ended(0.985, 0.01)),
    ]
    doubts = verdict_of(tmp_path / "same", *found)["doubts"]
    assert not any("same seeds" in doubt for doubt in doubts), doubts


def test_a_rival_far_away_is_not_named(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, make(defense="finetune", **ended(0.985, 0.5)), make(**ended(0.985, 0.03)))
    assert not any("told apart" in doubt for doubt in verdict["doubts"])


def test_a_seed_that_was_run_twice_is_one_dead_seed(tmp_path: Path) -> None:
    runs = [make(seed=seed, dead=seed == 1, name=f"{seed} {time}") for seed in (1, 2, 3) for time in (1, 2)]
    assert "1 dead of 3 seeds left out." in verdict_of(tmp_path, *runs)["doubts"]


def test_without_an_attack_nothing_is_won(tmp_path: Path) -> None:
    clean = make(attack="none", scores={"suspect": scores(0.99, None), "defended": scores(0.98, None)})
    assert verdict_of(tmp_path, clean)["headline"] == "No attack"


def test_a_strangers_file_is_not_called_clean(tmp_path: Path) -> None:
    unknown = {"suspect": scores(0.99, None), "defended": scores(0.98, None)}
    verdict = verdict_of(tmp_path, make(attack="suspect", scores=unknown))
    assert verdict["headline"] == "Trigger unknown"
    assert verdict["sentence"] == "No trigger is known of this file, so attack success was not measured."


def test_what_an_inspection_says_of_a_strangers_file_is_on_its_card(tmp_path: Path) -> None:
    given = {"attack": "suspect", "scores": {"suspect": scores(0.99, None), "defended": scores(0.98, None)}}
    other = repaired()
    other["audit"]["verdict"] = "evidence remains"
    found = [
        make(**given),
        make(defense="finetune", seed=1, **given, **inspected(2), **repaired()),
        make(defense="finetune", seed=2, **given, **inspected(2), **other),
    ]
    assert verdict_of(tmp_path, *found)["sentence"] == (
        "No trigger is known of this file, so attack success was not measured. The inspection says that "
        "something stands out. The audit after finetune: no evidence of a backdoor left under these tests "
        "(1 of 2), evidence remains (1 of 2)."
    )

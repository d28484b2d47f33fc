"""What the dashboard says is what the records say: groups over seeds, verdicts, runs that cannot be read."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from scipy import stats

from finepruning import record as records
from finepruning.dashboard import __main__ as dashboard
from finepruning.dashboard.data import page_data
from finepruning.dashboard.page import script_json
from finepruning.dashboard.pictures import Pictures
from finepruning.dashboard.reading import find_runs
from finepruning.dashboard.seeds import t_quantile
from finepruning.dashboard.verdict import estimate, summary
from tests.conftest import ROOT
from tests.dashboard_runs import curve, make, scores, write


def data_of(root: Path, *found: dict[str, Any], budget: float = 0.01) -> dict[str, Any]:
    for record in found:
        write(root, record)
    return page_data(*find_runs(root), budget, Pictures())


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


def test_a_rival_far_away_is_not_named(tmp_path: Path) -> None:
    verdict = verdict_of(tmp_path, make(defense="finetune", **ended(0.985, 0.5)), make(**ended(0.985, 0.03)))
    assert not any("told apart" in doubt for doubt in verdict["doubts"])


def test_without_an_attack_nothing_is_won(tmp_path: Path) -> None:
    clean = make(attack="none", scores={"suspect": scores(0.99, None), "defended": scores(0.98, None)})
    assert verdict_of(tmp_path, clean)["headline"] == "No attack"


# --- Runs that are not as they should be ---


DAMAGED = {
    "half": ('{"schema": 1, "name": ', "damaged"),
    "newer": ('{"schema": 99}', "schema 99"),
    "older": ('{"schema": 0}', "too old"),
    "foreign": ('{"schema": 1, "hello": "world"}', "not a record"),
    "list": ("[1, 2]", "damaged"),
    "binary": ("\udcff", "decode"),
    "wrong_kinds": (json.dumps(make() | {"scores": "high"}), "not a record"),
    "no_number": (json.dumps(make() | {"scores": {"suspect": {}, "defended": {}}}), "without clean accuracy"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_record_that_cannot_be_read_is_named_with_its_reason(name: str, tmp_path: Path) -> None:
    text, reason = DAMAGED[name]
    (tmp_path / name).mkdir()
    (tmp_path / name / records.FILE).write_bytes(text.encode(errors="surrogateescape"))
    data = data_of(tmp_path, make())
    assert [skip["name"] for skip in data["skipped"]] == [name]
    assert reason in data["skipped"][0]["reason"]
    assert len(data["runs"]) == 1


def test_numbers_that_are_not_finite_do_not_break_the_page(tmp_path: Path) -> None:
    odd = make(**{"attack.poison_rate": float("nan"), "defense.layers": [float("inf")]})
    data = data_of(tmp_path, odd)
    assert "NaN" not in script_json(data)
    assert data["common"]["attack.poison_rate"] is None


def unfinished(root: Path, log: str, seed: int = 4) -> Path:
    folder = root / f"digits-badnet-fineprune-s{seed}-0123abcd"
    folder.mkdir()
    config = make(seed=seed)["config"]
    (folder / "config.yaml").write_text(json.dumps({"choices_hash": "0123abcd", "config": config}))
    (folder / "run.log").write_text(log)
    return folder


def test_a_run_that_goes_on_is_shown_as_running_beside_its_like(tmp_path: Path) -> None:
    unfinished(tmp_path, "Training ...\n")
    data = data_of(tmp_path, make(seed=1))
    assert [run["status"] for run in data["runs"]] == ["finished", "running"]
    assert [(group["seeds"], group["missing"]) for group in data["groups"]] == [(1, 1)]
    assert dashboard.counted(data) == "1 records, 1 unfinished, 0 skipped"


def test_a_run_that_is_quiet_for_long_is_interrupted(tmp_path: Path) -> None:
    folder = unfinished(tmp_path, "Training ...\n")
    for path in (*folder.iterdir(), folder):
        os.utime(path, (1e9, 1e9))
    (run,) = data_of(tmp_path)["runs"]
    assert run["status"] == "interrupted"


def test_a_run_whose_log_ends_in_an_error_has_failed(tmp_path: Path) -> None:
    unfinished(tmp_path, "Traceback (most recent call last):\n  File x\nRuntimeError: out of memory\n")
    (run,) = data_of(tmp_path)["runs"]
    assert (run["status"], run["error"]) == ("failed", "RuntimeError: out of memory")


def test_a_failed_run_has_its_error_and_no_scores(tmp_path: Path) -> None:
    failed = make(status="failed", error="the loss became nan", scores=None)
    (run,) = data_of(tmp_path, failed)["runs"]
    assert (run["error"], run["clean"]) == ("the loss became nan", [None, None])


def test_a_folder_without_runs_is_refused_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dashboard.main([str(tmp_path)]) == 2
    assert "No runs in" in capsys.readouterr().err
    assert dashboard.main([str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


# --- The page ---


def test_json_cannot_leave_its_script_element() -> None:
    text = "</script><!-- & \u2028"
    written = script_json({text: text})
    assert not {"<", ">", "&", "\u2028"} & set(written)
    assert json.loads(written) == {text: text}


def test_a_long_curve_keeps_its_ends_and_its_stop(tmp_path: Path) -> None:
    data = data_of(tmp_path, make(pruning=curve(stop=777, channels=2048)))
    steps = data["curves"][0]["step"]
    assert {0, 777, 2048} <= set(steps)
    assert len(steps) <= 202


def test_pictures_stay_within_their_budget_and_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for path in (run / "examples.png", tmp_path / "secret.png"):
        Image.new("RGB", (8, 8)).save(path)
    pictures = Pictures()
    assert [pictures.place(run, "examples.png", setting) for setting in "aab"] == [0, 0, 1]
    assert pictures.place(run, "../secret.png", "c") is None
    assert pictures.place(run, "missing.png", "c") is None
    assert Pictures(most_bytes=10).place(run, "examples.png", "a") is None


def test_the_command_writes_one_page_without_torch(tmp_path: Path) -> None:
    write(tmp_path, make())
    page = tmp_path / "page.html"
    code = (
        "import sys; from finepruning.dashboard.__main__ import main; "
        "assert main(sys.argv[1:]) == 0; print({'torch', 'scipy', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), "--output", str(page)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [f"{page}: 1 records, 0 skipped", "set()"]
    assert 'src="http' not in page.read_text()
    assert page.stat().st_size < 12e6


def test_watching_builds_again_when_a_run_arrives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = itertools.count()

    def sleep(seconds: float) -> None:
        if (look := next(looks)) == 3:
            raise KeyboardInterrupt
        if look < 2:
            write(tmp_path, make(seed=look))

    monkeypatch.setattr(dashboard.time, "sleep", sleep)
    assert dashboard.main([str(tmp_path), "--watch"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[-1][:9] for line in said[1:]] == ["1 records", "2 records"]
    assert "No runs in" in said[0]


@pytest.mark.slow
def test_a_real_record_is_read_whole(quick_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    record = quick_run("attack=badnet", "defense=prune")
    data = data_of(tmp_path / "runs")
    (run,) = data["runs"]
    assert not data["skipped"]
    assert run["name"] == record["name"]
    assert run["clean"][1] == pytest.approx(record["scores"]["defended"]["clean_accuracy"], abs=1e-6)
    assert data["curves"][run["curve"]]["step"][-1] == run["pruned"][1]

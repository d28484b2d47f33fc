"""The main job: what a run leaves behind, and what a second run finds."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finepruning import record as records
from finepruning.modules import BackdooredClassifier
from finepruning.pipeline import Refused
from tests.conftest import QUICK, ROOT

RunHere = Callable[..., dict[str, Any]]
DEFENSES = ("none", "prune", "finetune", "fineprune")
TIMES = ("seconds", "peak_memory_mb", "group", "command", "name", "config")  # differ between equal runs


def essence(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in TIMES}


def test_a_sweep_of_four_defenses_trains_the_attack_once(tmp_path: Path) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    command = [sys.executable, "run.py", "-m", f"defense={','.join(DEFENSES)}", *QUICK, *places]
    environment = {key: value for key, value in os.environ.items() if key != "FINEPRUNING_DATA"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = [records.read(path.parent) for path in (tmp_path / "runs").rglob("record.json")]
    assert sorted(record["defense"] for record in found if record) == sorted(DEFENSES)
    assert len({record["stages"]["suspect"] for record in found if record}) == 1
    assert len({record["group"] for record in found if record}) == 1
    assert len(list((tmp_path / "store" / "suspect").glob("*/about.json"))) == 1
    assert "clean accuracy" in done.stdout
    assert str(tmp_path / "runs") in done.stderr + done.stdout


def test_another_share_to_decide_with_repairs_the_same_suspect(quick_run: RunHere) -> None:
    stages = [
        quick_run("defense=prune", f"defender.validation_share={share}")["stages"] for share in (0.3, 0.6)
    ]
    assert stages[0]["suspect"] == stages[1]["suspect"]
    assert stages[0]["defended"] != stages[1]["defended"]
    assert quick_run("defense=prune", "defender.fraction=0.2")["stages"]["suspect"] != stages[0]["suspect"]


def test_a_record_holds_what_a_reviewer_asks_for(quick_run: RunHere) -> None:
    record = quick_run("defense=fineprune")
    for key in ("schema", "name", "dataset", "model", "attack", "defense", "seed", "commit", "versions"):
        assert key in record
    assert record["dataset"] == "digits"
    assert record["seed"] == 1
    for network in ("suspect", "defended"):
        scores = record["scores"][network]
        for name in ("clean_accuracy", "attack_success_rate", "robust_accuracy"):
            counts, (low, high) = scores["counts"][name], scores["intervals"][name]
            assert scores[name] == counts["hits"] / counts["total"]
            assert low <= scores[name] <= high
    assert record["scores"]["suspect"]["counts"]["clean_accuracy"]["total"] == 450
    assert record["scores"]["suspect"]["counts"]["attack_success_rate"]["total"] == 450 - 45
    assert record["config"]["attack"]["poison_rate"] == 0.1
    assert {"suspect", "defended", "referee", "run"} <= set(record["seconds"])
    assert record["peak_memory_mb"] > 100


def test_the_curve_agrees_with_the_scores_at_both_ends(quick_run: RunHere) -> None:
    record = quick_run("defense=prune", "defense.max_drop=0.5")
    steps, scores = record["pruning"], record["scores"]
    stop = max(step["channels_pruned"] for step in steps if step["pruned"])
    assert len(steps) == 16 + 1
    assert steps[0]["attack_success_rate"] == scores["suspect"]["attack_success_rate"]
    assert steps[stop]["clean_accuracy"] == scores["defended"]["clean_accuracy"]
    assert steps[stop]["attack_success_rate"] == scores["defended"]["attack_success_rate"]


def test_without_an_attack_there_is_no_success_to_report(quick_run: RunHere) -> None:
    record = quick_run("attack=none", "defense=none")
    assert record["scores"]["suspect"]["attack_success_rate"] is None
    assert record["dead"] is False


def test_a_dead_attack_is_flagged(quick_run: RunHere) -> None:
    record = quick_run("defense=none", "attack.poison_rate=0.001")
    assert record["scores"]["suspect"]["attack_success_rate"] < 0.5
    assert record["dead"] is True


def test_a_finished_run_is_not_run_again(quick_run: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    first = quick_run("defense=none")
    monkeypatch.setattr("finepruning.pipeline._new_record", lambda *_: pytest.fail("ran again"))
    assert quick_run("defense=none") == first


def test_overwrite_runs_it_anew_with_the_same_result(quick_run: RunHere) -> None:
    first = quick_run("defense=fineprune")
    again = quick_run("defense=fineprune", "overwrite=true")
    assert again["seconds"] != first["seconds"]
    assert essence(again) == essence(first)


def test_what_an_overwritten_run_left_goes(quick_run: RunHere, tmp_path: Path) -> None:
    first = quick_run("name=mine", "defense=prune", "export.structural=true")
    place = tmp_path / "runs" / "mine"
    (place / "repaired" / "goodnet.safetensors").touch()
    with pytest.raises(Refused, match="none_such"):
        quick_run("name=mine", "defense=prune", "overwrite=true", "defense.order=none_such")
    assert records.read(place) == first  # what cannot be built replaces nothing
    again = quick_run("name=mine", "defense=prune", "export.structural=true", "overwrite=true")
    assert again["export"] == first["export"] | {"structural": again["export"]["structural"]}
    quick_run("name=mine", "defense=none", "views=false", "overwrite=true")
    assert not any((place / folder).exists() for folder in ("repaired", "report", "views"))


def test_the_same_seed_gives_the_same_record_from_a_fresh_store(quick_run: RunHere, tmp_path: Path) -> None:
    first = quick_run("defense=fineprune")
    again = quick_run("defense=fineprune", f"store_dir={tmp_path / 'fresh'}", "overwrite=true")
    assert essence(again) == essence(first)


def test_another_seed_gives_another_network(quick_run: RunHere) -> None:
    assert quick_run("defense=none", "seed=2")["stages"] != quick_run("defense=none")["stages"]


def test_runs_that_differ_in_any_key_never_share_a_folder(quick_run: RunHere, tmp_path: Path) -> None:
    for override in ("attack.poison_rate=0.2", "defense.max_drop=0.1", "trainer.max_epochs=1", "seed=3"):
        quick_run("defense=prune", override)
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 4


def test_a_killed_training_goes_on_to_the_same_network(
    quick_run: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = f"store_dir={tmp_path / 'store'}"
    whole = quick_run("defense=none", "trainer.max_epochs=3")
    trained = []

    def die_in_the_second_epoch(self: BackdooredClassifier) -> None:
        if self.current_epoch == 1:
            raise SystemExit("killed")

    with monkeypatch.context() as patch:
        patch.setattr(BackdooredClassifier, "on_train_epoch_end", die_in_the_second_epoch)
        with pytest.raises(SystemExit, match="killed"):
            quick_run("defense=none", "trainer.max_epochs=3", store, "overwrite=true")
    assert list((tmp_path / "store" / "suspect").glob("*.partial/last.ckpt"))
    start = BackdooredClassifier.on_train_epoch_start
    monkeypatch.setattr(
        BackdooredClassifier,
        "on_train_epoch_start",
        lambda self: (trained.append(self.current_epoch), start(self))[1],
    )
    resumed = quick_run("defense=none", "trainer.max_epochs=3", store, "overwrite=true")
    assert trained == [1, 2]
    assert essence(resumed) == essence(whole)


def test_metrics_lie_beside_the_record_as_csv(quick_run: RunHere, tmp_path: Path) -> None:
    quick_run("defense=finetune", f"store_dir={tmp_path / 'store'}")
    tables = {path.parent.name: path.read_text() for path in (tmp_path / "runs").rglob("metrics.csv")}
    assert "train/loss" in tables["suspect"]
    assert "train/attack_success_rate" in tables["suspect"]
    assert "tune/loss" in tables["defended"]
    assert "validation/clean_accuracy" in tables["defended"]


def test_the_stored_network_has_its_masks(quick_run: RunHere, shared_store: Path) -> None:
    from safetensors.torch import load_file

    record = quick_run("defense=prune", "defense.max_drop=0.5")
    state = load_file(shared_store / record["stages"]["defended"] / "network.safetensors")
    pruned = [step["number"] for step in record["pruning"] if step["pruned"]]
    assert (state["features.pool3.channel_mask"] == 0).nonzero().flatten().tolist() == sorted(pruned)
    assert torch.equal(state["features.pool3.channel_mask"].unique(), torch.tensor([0.0, 1.0]))


def test_a_record_is_strict_json(quick_run: RunHere, tmp_path: Path) -> None:
    record = quick_run("attack=none", "defense=none")
    text = (tmp_path / "runs" / record["name"] / "record.json").read_text()
    assert json.loads(text, parse_constant=lambda word: pytest.fail(word)) == record

"""What W&B, TensorBoard and MLflow keep of a run is what its record says."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from finepruning.dashboard import wandb as workspace
from finepruning.pipeline import Refused
from finepruning.pipeline.loggers import CURVE, final_values

RunHere = Callable[..., dict[str, Any]]


def curve_of(record: dict[str, Any]) -> dict[str, list[tuple[int, float]]]:
    return {
        f"curve/{name}": [(step["channels_pruned"], step[name]) for step in record["pruning"]]
        for name in CURVE
    }


def as_floats(points: list[tuple[int, float]]) -> list[tuple[int, Any]]:
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in points]


def test_final_values_have_plain_names() -> None:
    scores = {"clean_accuracy": 0.9, "attack_success_rate": 1.0, "robust_accuracy": 0.0}
    after = {"clean_accuracy": 0.8, "attack_success_rate": 0.25, "robust_accuracy": None}
    record = {
        "scores": {"suspect": scores, "defended": after},
        "pruning": [{"pruned": number == 1} for number in range(5)],
        "seconds": {"suspect": 3},
    }
    assert final_values(record) == pytest.approx(
        {
            "test/suspect/clean_accuracy": 0.9,
            "test/suspect/attack_success_rate": 1.0,
            "test/suspect/robust_accuracy": 0.0,
            "test/defended/clean_accuracy": 0.8,
            "test/defended/attack_success_rate": 0.25,
            "test/clean_accuracy_drop": 0.1,
            "test/attack_reduction": 0.75,
            "channels_pruned": 1,
            "share_pruned": 0.25,
            "seconds/suspect": 3,
        }
    )


def inspected(place: Path, *options: str) -> str:
    (file,) = place.glob("wandb/offline-run-*/*.wandb")
    command = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", *options, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def test_wandbs_own_tool_finds_every_number_of_the_record(quick_run: RunHere, tmp_path: Path) -> None:
    import wandb

    record = quick_run("defense=prune", "logger=wandb")
    place = tmp_path / "runs" / record["name"]
    assert wandb.run is None
    found = json.loads(inspected(place, "--summary"))
    assert found["state"] == "finished"
    assert found["name"] == record["name"]
    assert found["config"]["attack"] == "badnet"
    assert found["config"]["config"]["attack"]["poison_rate"] == 0.1
    summary = found["summary"]
    assert {name: summary[name] for name in final_values(record)} == pytest.approx(final_values(record))
    assert (summary["dead"], summary["oracle"]) == (False, False)
    assert {"examples", "filters", "pruning_steps", "confusion/suspect_table"} <= set(summary)
    assert not [name for name in summary if name.startswith("curve/")]  # its last step is no result
    lines = [json.loads(line) for line in inspected(place).splitlines()]
    run = next(line["run"] for line in lines if line["type"] == "run")
    assert (run["project"], run["job_type"]) == ("finepruning", "prune")
    assert run["run_group"] == record["group"]
    assert set(run["tags"]) == {"digits", "badnet", "prune"}
    history = [line["history"]["item"] for line in lines if line["type"] == "history"]
    points = [each for each in history if "curve/channels_pruned" in each]
    for name, expected in curve_of(record).items():
        assert [(each["curve/channels_pruned"], each[name]) for each in points] == as_floats(expected)
    (table,) = place.glob("wandb/offline-run-*/files/media/table/pruning_steps_*.table.json")
    content = json.loads(table.read_text())
    assert [dict(zip(content["columns"], row, strict=True)) for row in content["data"]] == [
        {column: step[column] for column in content["columns"]} for step in record["pruning"]
    ]


def test_tensorboard_keeps_the_same_numbers(quick_run: RunHere, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = quick_run("defense=prune", "logger=tensorboard")
    events = EventAccumulator(str(tmp_path / "runs" / record["name"] / "tensorboard"))
    events.Reload()
    for name, value in final_values(record).items():
        assert [event.value for event in events.Scalars(name)] == [pytest.approx(value, rel=1e-6)]
    for name, expected in curve_of(record).items():
        assert [(event.step, event.value) for event in events.Scalars(name)] == as_floats(expected)
    hyperparameters = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert b"config/attack/poison_rate" in hyperparameters


@pytest.mark.slow
def test_mlflow_keeps_the_same_numbers(quick_run: RunHere, tmp_path: Path) -> None:
    record = quick_run("defense=fineprune", "defense.tuning.max_epochs=1", "logger=mlflow")
    from mlflow import MlflowClient

    client = MlflowClient(str(tmp_path / "runs" / "mlflow"))
    experiment = client.get_experiment_by_name("finepruning")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == record["name"]
    assert run.data.params["config/attack/poison_rate"] == "0.1"
    finals = final_values(record)
    assert {name: run.data.metrics[name] for name in finals} == pytest.approx(finals)
    for name, expected in curve_of(record).items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(point.step, point.value) for point in history] == as_floats(expected)


def test_a_key_that_wandb_would_not_get_is_refused(quick_run: RunHere) -> None:
    with pytest.raises(Refused, match=r"logger\.tags has no effect: .* are project, entity, mode\."):
        quick_run("logger=wandb", "+logger.tags=[mine]")


def test_wandb_gets_the_team(quick_run: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[dict[str, Any]] = []
    start = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: begun.append(options) or start(**options))
    quick_run("logger=wandb", "logger.entity=team")
    assert [options["entity"] for options in begun] == ["team"]


@pytest.mark.parametrize("logger", ["tensorboard", "mlflow"])
def test_a_missing_package_is_named_with_its_command(
    logger: str, quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finepruning.pipeline import Refused

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == logger else found(name, *rest)
    )
    with pytest.raises(Refused, match=rf"pip install -e '\.\[{logger}\]'"):
        quick_run("defense=none", f"logger={logger}")


def test_a_record_is_written_even_if_showing_it_fails(
    quick_run: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the tracker is gone")

    monkeypatch.setattr("finepruning.pipeline.loggers.log_record", fail)
    with pytest.raises(RuntimeError, match="the tracker is gone"):
        quick_run("defense=none", "logger=wandb")
    import wandb

    assert wandb.run is None
    (record,) = (tmp_path / "runs").glob("*/record.json")
    assert json.loads(inspected(record.parent, "--summary"))["state"] == "failed"


def test_without_an_account_the_workspace_is_only_described(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    workspace.main("--entity", "lab", "--project", "p")
    shown = capsys.readouterr().out
    assert "Attacks and defenses (lab/p)" in shown
    assert "ParallelCoordinatesPlot: Hyperparameters and defended scores" in shown
    assert "Nothing was created: set WANDB_API_KEY" in shown


def test_the_workspace_shows_what_runs_log(quick_run: RunHere, tmp_path: Path) -> None:
    anew = f"store_dir={tmp_path / 'store'}"  # so that the suspect's training is logged, too
    record = quick_run("defense=fineprune", "logger=wandb", anew)
    place = tmp_path / "runs" / record["name"]
    logged = set(json.loads(inspected(place, "--summary"))["summary"])
    for line in map(json.loads, inspected(place).splitlines()):
        logged |= set(line["history"]["item"]) if line["type"] == "history" else set()
    definition = str(workspace.build_workspace("lab", "p")._to_model().model_dump())
    shown = set(re.findall(r"\b(?:test|curve|train|tune|trainer)/[a-z_/]+", definition))
    assert len(shown) > 10
    assert shown - logged == set()


def test_an_account_without_an_entity_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.delenv("WANDB_ENTITY", raising=False)
    with pytest.raises(SystemExit, match="2"):
        workspace.main()
    assert "give --entity" in capsys.readouterr().err

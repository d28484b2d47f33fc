"""What the dashboard holds is what the records say, those that cannot be read among them."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finepruning import record as records
from finepruning.dashboard import __main__ as dashboard
from finepruning.dashboard import reading
from finepruning.dashboard.data import page_data
from finepruning.dashboard.page import script_json
from finepruning.dashboard.pictures import Pictures
from finepruning.dashboard.reading import find_runs
from tests.conftest import ROOT
from tests.dashboard_runs import curve, data_of, make, scores, write

DAMAGED = {
    "half": ('{"schema": 1, "name": ', "damaged"),
    "newer": ('{"schema": 99}', "schema 99"),
    "older": ('{"schema": 0}', "too old"),
    "foreign": ('{"schema": 1, "hello": "world"}', "not a record"),
    "list": ("[1, 2]", "damaged"),
    "binary": ("\udcff", "decode"),
    "wrong_kinds": (json.dumps(make() | {"scores": "high"}), "not a record"),
    "one_score": (
        json.dumps(make() | {"scores": {"suspect": scores(0.9, None), "defended": scores(0.9, 0.1)}}),
        "known of one network alone",
    ),
    "undefended": (json.dumps(make() | {"scores": {"suspect": scores(0.9, 1.0)}}), "without clean accuracy"),
    "huge": (json.dumps(make() | {"peak_memory_mb": 10**400}), "OverflowError"),
    "nameless": (json.dumps(make() | {"defense": ""}), "not a record"),
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
    odd = make(**{"attack.poison_rate": float("nan"), "defense.layers": [float("inf"), {"a": float("nan")}]})
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


def test_what_is_only_looked_at_or_written_beside_splits_no_comparison(tmp_path: Path) -> None:
    runs = [make(defense=defense) for defense in ("none", "prune", "fineprune")]
    runs[-1]["config"] |= {"export": {"onnx": True}, "analysis": {"layers": None}, "detector": {"a": 1}}
    data = data_of(tmp_path, *runs)
    assert len(data["verdicts"]) == 1
    assert len(data["groups"]) == 3


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
    assert dashboard.main([str(tmp_path), "--budget", "1.5"]) == 2
    assert "outside [0, 1]. It is a share: 0.01 is one point" in capsys.readouterr().err
    assert dashboard.main([str(tmp_path / "nowhere")]) == 2
    assert "is not a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_each_suspect_shows_its_own_pictures(tmp_path: Path) -> None:
    made = [
        make(seed=seed, stages={"suspect": f"suspect/{seed}"}, views={"filters": "f.png"}) for seed in (1, 2)
    ]
    made.append(make(seed=2, defense="prune", stages={"suspect": "suspect/2"}, views={"filters": "f.png"}))
    for record, colour in zip(made, ("red", "blue", "blue"), strict=True):
        Image.new("RGB", (4, 4), colour).save(write(tmp_path, record) / "f.png")
    runs = page_data(*find_runs(tmp_path), 0.01, Pictures())["runs"]
    shown = {(run["seed"], run["defense"]): run["filters"] for run in runs}
    assert shown[2, "prune"] == shown[2, "fineprune"] != shown[1, "fineprune"]


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


def test_watching_sees_a_run_fall_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "killed").mkdir()
    config = tmp_path / "killed" / "config.yaml"
    config.write_text("config: {seed: 1}")
    now, looks = time.time(), itertools.count(1)

    def sleep(seconds: float) -> None:
        monkeypatch.setattr(reading.time, "time", lambda: now + 2 * reading.QUIET_SECONDS)
        if next(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(dashboard.time, "sleep", sleep)
    assert dashboard.main([str(tmp_path), "--watch"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    shutil.rmtree(tmp_path / "killed")
    assert reading.quiet_seconds(tmp_path / "killed") > reading.QUIET_SECONDS  # it has just been removed


@pytest.mark.slow
def test_a_real_record_is_read_whole(quick_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    record = quick_run("attack=badnet", "defense=prune")
    data = data_of(tmp_path / "runs")
    (run,) = data["runs"]
    assert not data["skipped"]
    assert run["name"] == record["name"]
    assert run["clean"][1] == pytest.approx(record["scores"]["defended"]["clean_accuracy"], abs=1e-6)
    assert data["curves"][run["curve"]]["step"][-1] == run["pruned"][1]

"""Real runs under a search: what their records hold for it, and what the command line says at its end."""

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finepruning import record as records
from tests.conftest import QUICK, ROOT

Record = dict[str, Any]


def test_the_record_holds_what_the_defender_sees(quick_run: Callable[..., Record]) -> None:
    record = quick_run("defense=prune", "defense.max_drop=0.5")
    stop = max(step["channels_pruned"] for step in record["pruning"] if step["pruned"])
    seen = record["validation"]
    assert seen["suspect"]["clean_accuracy"] == record["pruning"][0]["validation_accuracy"]
    assert seen["defended"]["clean_accuracy"] == record["pruning"][stop]["validation_accuracy"]
    assert seen["defended"]["hits"] / seen["defended"]["total"] == seen["defended"]["clean_accuracy"]
    assert stop > 0
    assert record["oracle"] is False


def run(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in ``folder``, below which its own folders go."""
    command = [sys.executable, str(ROOT / "run.py"), *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this checkout, not one installed
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)


@pytest.mark.slow
def test_a_search_on_the_command_line_ends_with_a_command_that_repeats_the_best(tmp_path: Path) -> None:
    options = (
        *QUICK,
        "sweep=optuna",
        "sweep.trials=2",
        "defense=prune",
        "defense.max_drop=interval(0.2,0.6)",
    )
    first = run(tmp_path, *options)
    assert "Best trials of digits-badnet-prune-pareto-" in first.stdout
    command = next(line for line in first.stderr.splitlines() if "Repeat the best: " in line)
    again = run(tmp_path, *shlex.split(command.partition("run.py ")[2]))
    assert "Finished earlier" in again.stderr
    assert "2 of 2 trials done" in run(tmp_path, *options).stderr
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 2


@pytest.mark.slow
def test_the_command_line_beats_a_grid(tmp_path: Path) -> None:
    run(tmp_path, *QUICK, "sweep=pruning_rates", "defense.prune_rate=0.25,0.5")
    found = [records.read(path.parent) for path in (tmp_path / "runs").glob("*/record.json")]
    pruned = [sum(step["pruned"] for step in record["pruning"]) for record in found if record]
    assert sorted(pruned) == [4, 8]

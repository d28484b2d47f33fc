"""Sweeps on Ray that would wait for ever, or are stopped."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException

from finepruning.launcher.clusters import Job
from finepruning.launcher.ray import check_room
from tests.conftest import QUICK, ROOT, composed

MACHINES = [{"CPU": 4.0, "GPU": 0.0}, {"CPU": 2.0, "GPU": 1.0}]


def job(*overrides: str) -> Job:
    return Job(" ".join(overrides), composed("hydra/launcher=ray", *overrides), Path(), "")


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        (("trainer.threads=5",), r"5 CPU on one machine, and the most there is 4 CPU\."),  # and not 4 + 2
        (("trainer=gpu", "trainer.devices=2", "trainer.threads=1"), r"2 CPU, 2 GPU on .* is 4 CPU, 1 GPU\."),
        (("trainer=gpu", "trainer.threads=3"), r"3 CPU, 1 GPU on"),  # no machine has both
        (("trainer.threads=1", "+hydra.launcher.ray.remote.resources={tpu: 1}"), r"1 tpu .* 0 tpu\."),
    ],
)
def test_a_run_that_no_machine_has_room_for_is_refused_on_our_own_ray_and_said_on_a_cluster(
    overrides: tuple[str, ...], asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [job("trainer.threads=1"), job(*overrides)]
    sentence = rf"1 of 2 runs find no room on Ray, such as '{overrides[0]}.*: it asks for .*{asked}"
    with pytest.raises(CompactHydraException, match=sentence):
        check_room(jobs, MACHINES, own=True)
    with caplog.at_level(logging.WARNING):
        check_room(jobs, MACHINES, own=False)
    assert "They wait for a machine that has more." in caplog.text


def test_runs_that_find_room_are_not_spoken_of(caplog: pytest.LogCaptureFixture) -> None:
    jobs = [job("trainer.threads=4"), job("trainer=gpu", "trainer.threads=2")]
    check_room(jobs, MACHINES, own=True)
    check_room(jobs, MACHINES, own=False)
    assert not caplog.text


def started(place: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start a sweep on a Ray of its own, which has two cores."""
    command = [sys.executable, "run.py", "-m", "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]
    places = (f"runs_dir={place / 'runs'}", f"store_dir={place / 'store'}", "defense=none")
    return subprocess.Popen(
        [*command, *QUICK[1:], *places, *overrides],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_sweep_that_asks_for_more_than_a_ray_of_our_own_has_does_not_wait(tmp_path: Path) -> None:
    sweep = started(tmp_path, "trainer.threads=64")
    _, errors = sweep.communicate(timeout=200)
    assert sweep.returncode == 1
    assert "asks for 64 CPU on one machine, and the most there is 2 CPU." in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_ctrl_c_ends_a_sweep_on_ray_with_a_sentence(tmp_path: Path) -> None:
    sweep = started(tmp_path, "trainer.max_epochs=100000", "trainer.threads=1")
    assert sweep.stderr is not None
    given = next(line for line in sweep.stderr if "given to Ray" in line)
    os.killpg(sweep.pid, signal.SIGINT)
    _, errors = sweep.communicate(timeout=120)
    assert given.startswith("1 runs")
    assert "Stopped by SIGINT: 0 of 1 runs have ended." in errors
    assert "The same command goes on with the rest." in errors
    assert "Traceback" not in errors
    assert sweep.returncode == 130

"""Sweeps on one machine: jobs are isolated, and what fails is said."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException

from finepruning import record as records
from finepruning.launcher import LocalLauncher
from tests.conftest import QUICK, ROOT


def test_no_jobs_at_a_time_is_refused() -> None:
    with pytest.raises(CompactHydraException, match=r"hydra\.launcher\.n_jobs=0 runs nothing"):
        LocalLauncher(n_jobs=0)


def test_a_job_that_is_killed_takes_no_other_with_it(tmp_path: Path) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    # the first job would train for very long: it is the one that is killed
    first, second = "defense=none", "trainer.max_epochs=100000,1"
    command = [sys.executable, "run.py", "-m", "hydra.launcher.n_jobs=1", *QUICK, *places, first, second]
    sweep = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 180
    while not list(tmp_path.glob("store/suspect/*.partial/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(child_of(sweep.pid), signal.SIGKILL)
    _, errors = sweep.communicate(timeout=240)
    assert sweep.returncode == 1
    assert "killed by signal 9" in errors
    assert "1 of 2 runs failed" in errors
    found = [records.read(path.parent) for path in (tmp_path / "runs").rglob("record.json")]
    assert [record["config"]["trainer"]["max_epochs"] for record in found if record] == [1]


def child_of(sweep: int) -> int:
    """Return the process that runs a job: the fork server's child."""
    stats = [path.read_text().split() for path in Path("/proc").glob("[0-9]*/stat")]
    # the 4th of 52 fields is the parent; counted from the end, since the 2nd may hold spaces
    parents = {int(fields[0]): int(fields[-49]) for fields in stats}
    servers = [pid for pid, parent in parents.items() if parent == sweep]
    return next(pid for pid, parent in parents.items() if parent in servers)

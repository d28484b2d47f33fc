"""A sweep that is stopped while it loads what its jobs are forked from."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import QUICK, ROOT


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.0, 1.0])  # seconds after the sweep said what it will do
def test_a_signal_to_the_whole_group_is_a_clean_stop(
    number: signal.Signals, delay: float, tmp_path: Path
) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    sweep = subprocess.Popen(
        [sys.executable, "run.py", "-m", *QUICK, *places, "defense=none", "seed=1,2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert sweep.stderr is not None
    said = next(line for line in sweep.stderr if "to do" in line)
    time.sleep(delay)
    os.killpg(sweep.pid, number)  # what a terminal does on Ctrl-C
    _, errors = sweep.communicate(timeout=120)
    assert "2 runs, 0 of them done" in said
    assert f"Stopped by {number.name}: 0 of 2 runs are done." in errors
    assert "The same command goes on with the rest." in errors
    assert "Traceback" not in errors
    assert sweep.returncode == 128 + number

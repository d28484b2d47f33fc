"""A training that is killed at any moment goes on, and what comes out is the same."""

import csv
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finepruning.pipeline import Refused
from finepruning.pipeline.epochs import last_checkpoint
from finepruning.store import checksum
from finepruning.store import lock as locks
from tests.conftest import QUICK, ROOT, run_here
from tests.test_main_job import RunHere, essence

JOB = (*QUICK[1:], "trainer.max_epochs=12", "defense=fineprune", "defense.tuning.max_epochs=4", "name=job")


def epochs(path: Path) -> list[int]:
    with path.open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def start(places: tuple[str, ...], stderr: int | None = None) -> subprocess.Popen[bytes]:
    environment = {key: value for key, value in os.environ.items() if key != "FINEPRUNING_DATA"}
    command = [sys.executable, "run.py", *JOB, *places]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stderr)


def wait_for(seen: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while not seen() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def kill_when(seen: Callable[[], bool], delay: float, process: subprocess.Popen[bytes]) -> None:
    wait_for(seen, process)
    time.sleep(delay)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def whole_run(tmp_path: Path) -> dict[str, Any]:
    return run_here(*JOB, f"runs_dir={tmp_path / 'whole'}", f"store_dir={tmp_path / 'other'}")


def check_equal(tmp_path: Path, record: dict[str, Any], whole: dict[str, Any]) -> None:
    assert essence(record) == essence(whole)
    for stage, count in (("suspect", 12), ("defended", 4)):
        metrics = tmp_path / "runs" / "job" / stage / "metrics.csv"
        assert epochs(metrics) == list(range(count))
        assert metrics.read_text() == (tmp_path / "whole" / "job" / stage / "metrics.csv").read_text()
    assert not list((tmp_path / "store").glob("*/*.partial"))
    assert not list((tmp_path / "store").rglob("last.ckpt*"))


@pytest.mark.slow
def test_a_run_that_is_killed_in_training_ends_with_the_same_record(tmp_path: Path) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    process = start(places)
    kill_when(lambda: any(tmp_path.glob("store/suspect/*.partial/last.ckpt")), random.random(), process)
    check_equal(tmp_path, run_here(*JOB, *places), whole_run(tmp_path))


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    whole = whole_run(tmp_path)
    kills = 0
    while kills < 10:
        process = start(places)
        try:
            process.wait(timeout=random.uniform(3, 20))
            if process.returncode == 0:  # finished between two kills: once more, from nothing
                check_equal(tmp_path, run_here(*JOB, *places), whole)
                for folder in ("runs", "store"):
                    (tmp_path / folder).rename(tmp_path / f"{folder}.{kills}")
        except subprocess.TimeoutExpired:
            process.kill()
            kills += process.wait() == -signal.SIGKILL
    check_equal(tmp_path, run_here(*JOB, *places), whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_stopped_ends_with_the_status_of_the_signal_and_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    process = start(places, stderr=subprocess.PIPE)
    wait_for(lambda: any(tmp_path.glob("store/suspect/*.partial/last.ckpt")), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    sentence = f"Stopped by {number.name}. The same command goes on from the last finished epoch."
    assert said.decode().splitlines()[-1] == sentence
    assert "Traceback" not in said.decode()
    assert not list(tmp_path.rglob("record.json"))
    check_equal(tmp_path, run_here(*JOB, *places), whole_run(tmp_path))


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C as it was, which Lightning switches off once it was hit."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_training_is_said_and_is_no_success(
    quick_run: RunHere,
    tmp_path: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from finepruning.modules import BackdooredClassifier

    caplog.set_level(logging.INFO)
    with monkeypatch.context() as patch:
        patch.setattr(BackdooredClassifier, "on_train_epoch_end", lambda _: os.kill(os.getpid(), number))
        with pytest.raises(SystemExit) as stopped:
            quick_run("defense=none", f"store_dir={tmp_path / 'store'}")
    assert stopped.value.code == 128 + number
    assert f"Stopped by {number.name}. The same command goes on" in caplog.text
    assert not list(tmp_path.rglob("record.json"))


def test_ctrl_c_outside_of_training_is_said(quick_run: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("finepruning.pipeline.build.pack", stop)
    with pytest.raises(SystemExit) as stopped:
        quick_run("defense=none")
    assert stopped.value.code == 130


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no checksums"])
def test_a_damaged_checkpoint_is_said_and_training_starts_anew(
    quick_run: RunHere,
    tmp_path: Path,
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from finepruning.modules import BackdooredClassifier

    job = ("defense=none", "trainer.max_epochs=3", "overwrite=true")
    whole = quick_run(*job)

    def die_in_the_last_epoch(self: BackdooredClassifier) -> None:
        if self.current_epoch == 2:
            raise SystemExit("killed")

    store = f"store_dir={tmp_path / 'store'}"
    with monkeypatch.context() as patch:
        patch.setattr(BackdooredClassifier, "on_train_epoch_end", die_in_the_last_epoch)
        with pytest.raises(SystemExit, match="killed"):
            quick_run(*job, store)
    last = next((tmp_path / "store" / "suspect").glob("*.partial/last.ckpt"))
    content = last.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]
    if damage == "no checksums":
        last.with_name("last.ckpt.sha256").unlink()
    else:
        last.write_bytes(content[:middle] if damage == "truncated" else flipped)
    assert essence(quick_run(*job, store)) == essence(whole)
    assert f"{last} is damaged; this training starts anew." in caplog.text
    assert epochs(next((tmp_path / "runs").rglob("metrics.csv"))) == [0, 1, 2]


@pytest.mark.parametrize(("defense", "option"), [("prune", "defense.max_drop=0.5"), ("clp", "defense.u=0.5")])
def test_a_defense_whose_lease_is_lost_is_refused_and_comes_out_the_same(
    quick_run: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defense: str, option: str
) -> None:
    from finepruning.pipeline import stages

    job, store = (f"defense={defense}", option, "views=false"), f"store_dir={tmp_path / 'store'}"
    whole = quick_run(*job)
    fit, lost = stages.fit, []

    def lose_the_lease(*arguments: Any, **options: Any) -> None:
        fit(*arguments, **options)
        leases = [] if lost else list((tmp_path / "store").glob("defended/*.lease"))
        for lease in leases:
            lost.append(lease)
            lease.unlink()  # another machine took it while this one slept, and died
            time.sleep(1.0)

    monkeypatch.setattr(locks, "SECONDS", 3.0)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.2)
    monkeypatch.setattr(stages, "fit", lose_the_lease)
    with pytest.raises(Refused, match=r"The lease of defended/\w+ is lost\. .* The same command goes on"):
        quick_run(*job, store, "overwrite=true")
    assert len(lost) == 1
    again = quick_run(*job, store)
    assert essence(again) == essence(whole)
    assert sum(map(len, again["pruned"].values())) > 0


def test_a_checkpoint_is_good_before_and_after_it_is_replaced(tmp_path: Path) -> None:
    last, sums = tmp_path / "last.ckpt", tmp_path / "last.ckpt.sha256"
    assert last_checkpoint(tmp_path) is None
    last.write_bytes(b"new")
    new = checksum(last)
    last.write_bytes(b"old")
    sums.write_text(f"{new}\n{checksum(last)}")
    assert last_checkpoint(tmp_path) == last
    last.write_bytes(b"new")
    assert last_checkpoint(tmp_path) == last
    last.write_bytes(b"third")
    assert last_checkpoint(tmp_path) is None
    assert not last.exists()

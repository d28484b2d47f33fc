"""Who makes a stage: one process at a time, also after others died, slept or lost their lock."""

import logging
import os
import shutil
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import SoftFileLease

from finepruning.store import Store
from finepruning.store import lock as locks
from tests.test_store_faults import FORK, SEED, contents, make


def hold_for_ever(root: Path) -> None:
    Store(root).stage("suspect", SEED, lambda directory: time.sleep(600) or {})


def started_holder(root: Path) -> Any:
    process = FORK.Process(target=hold_for_ever, args=(root,))
    process.start()
    deadline = time.monotonic() + 60
    while not list(root.glob("suspect/*.partial")) and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_the_lock_of_a_killed_process_is_taken_at_once(tmp_path: Path) -> None:
    process = started_holder(tmp_path)
    lock = next(tmp_path.glob("suspect/*.lease"))
    assert f"pid={process.pid}" in lock.read_text()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert lock.exists()
    start = time.monotonic()
    assert Store(tmp_path).stage("suspect", SEED, make).reused is False
    assert time.monotonic() - start < locks.SECONDS / 6
    assert not lock.exists()


def leave_lock(root: Path, **changes: str) -> Path:
    """Leave the lock of a maker, with some of its lines changed; return it."""
    key = Store(root).stage("suspect", SEED, make).directory
    shutil.rmtree(key)
    lease = SoftFileLease(f"{key}.lease", lease_duration=locks.SECONDS, heartbeat_interval=locks.SECONDS / 2)
    lease.acquire()
    lines = dict(line.split("=", 1) for line in Path(lease.lock_file).read_text().splitlines()[1:])
    lease.release()
    text = "".join(f"{name}={value}\n" for name, value in (lines | changes).items())
    Path(lease.lock_file).write_text(f"filelock/2\n{text}")
    return Path(lease.lock_file)


def test_a_lock_whose_process_started_at_another_time_is_taken(tmp_path: Path) -> None:
    leave_lock(tmp_path, start="1")  # this process lives, and its number is written there
    start = time.monotonic()
    Store(tmp_path).stage("suspect", SEED, make)
    assert time.monotonic() - start < locks.SECONDS / 6


def test_a_silent_machine_loses_its_lock_and_a_live_one_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "SECONDS", 1.5)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.3)
    caplog.set_level(logging.INFO)
    lock = leave_lock(tmp_path, host="elsewhere", pid="1", duration="1.5")
    beats = 4
    start = time.monotonic()

    def beat() -> None:
        for _ in range(beats):
            time.sleep(0.5)
            lock.touch()

    process = FORK.Process(target=beat)
    process.start()
    assert Store(tmp_path).stage("suspect", SEED, make).reused is False
    assert time.monotonic() - start >= beats * 0.5 + 1.4
    assert "is being made by process 1 on elsewhere; waiting for it" in caplog.text


def test_a_maker_that_slept_uses_what_another_one_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(locks, "SECONDS", 1.0)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.2)
    slept = []

    def sleep(directory: Path) -> Mapping[str, Any]:
        slept.append(1)
        lock = next(tmp_path.glob("suspect/*.lease"))
        lock.unlink()  # what the other one does after it has waited
        Store(tmp_path).stage("suspect", SEED, make)
        time.sleep(1.0)
        return make(directory)

    stage = Store(tmp_path).stage("suspect", SEED, sleep)
    assert len(slept) == 1
    assert stage.reused is True
    assert contents(stage.directory).keys() == {"network.safetensors", "more/table.txt"}
    assert "another one took over" in caplog.text


def act_once(directory: Path, acted: list[Path]) -> Mapping[str, Any]:
    """Make a stage as a callback does that prunes in its first fit only."""
    acted.append(directory)
    (directory / "network").write_text("pruned" if len(acted) == 1 else "not pruned")
    return {}


def test_a_maker_that_lost_its_lease_publishes_nothing_and_is_not_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SECONDS", 1.0)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.2)
    acted: list[Path] = []

    def lose_it(directory: Path) -> Mapping[str, Any]:
        if not acted:
            next(tmp_path.glob("suspect/*.lease")).unlink()  # another one took it, and died
            time.sleep(1.0)
        return act_once(directory, acted)

    with pytest.raises(OSError, match=r"The lease of suspect/\w+ is lost\. .* The same command goes on"):
        Store(tmp_path).stage("suspect", SEED, lose_it)
    assert len(acted) == 1
    assert Store(tmp_path).find("suspect", SEED) is None
    fresh = Store(tmp_path).stage("suspect", SEED, lambda directory: act_once(directory, []))
    assert (fresh.directory / "network").read_text() == "pruned"


def test_a_maker_that_lost_its_lease_waits_for_the_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "SECONDS", 1.0)
    monkeypatch.setattr(locks, "HEARTBEAT", 0.2)
    acted: list[Path] = []

    def make_slowly(directory: Path) -> Mapping[str, Any]:
        time.sleep(2.0)
        return act_once(directory, []) | {"maker": "the other"}

    other = FORK.Process(target=lambda: Store(tmp_path).stage("suspect", SEED, make_slowly))

    def lose_it(directory: Path) -> Mapping[str, Any]:
        lock = next(tmp_path.glob("suspect/*.lease"))
        lock.unlink()
        other.start()
        while not lock.exists():
            time.sleep(0.02)
        time.sleep(1.0)
        return act_once(directory, acted)

    stage = Store(tmp_path).stage("suspect", SEED, lose_it)
    other.join()
    assert len(acted) == 1
    assert (stage.reused, stage.about["result"]) == (True, {"maker": "the other"})

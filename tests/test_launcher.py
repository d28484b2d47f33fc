"""Sweeps on one machine: jobs are isolated, nothing is done twice, and what fails is said."""

import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import CompactHydraException

from finepruning.launcher import LocalLauncher
from finepruning.launcher.checks import CheckPlace, check_overrides
from finepruning.launcher.plan import available_cores
from finepruning.launcher.signals import stop_signals
from tests.conftest import QUICK, ROOT, composed, sweep_here

Sweep = Callable[..., None]


@pytest.fixture
def sweep(tmp_path: Path, shared_store: Path) -> Sweep:
    """A sweep over small networks, its parent in this process, so that one fork server does for all tests."""

    def run(*overrides: str, n_jobs: int | None = 2) -> None:
        places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={shared_store}")
        sweep_here(*QUICK, *places, *overrides, n_jobs=n_jobs)

    return run


def found_records(place: Path) -> dict[str, Any]:
    paths = sorted((place / "runs").glob("*/record.json"))
    return {path.parent.name: json.loads(path.read_text()) for path in paths}


def scores(place: Path) -> dict[str, Any]:
    return {name: (each["scores"], each["pruning"]) for name, each in found_records(place).items()}


@pytest.mark.parametrize("n_jobs", [0, -1, "two", 1.5])
def test_no_jobs_at_a_time_is_refused(n_jobs: Any) -> None:
    with pytest.raises(CompactHydraException, match=rf"hydra\.launcher\.n_jobs={n_jobs} runs nothing"):
        LocalLauncher(n_jobs=n_jobs)


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=1,2", "seed=3"],
        ["attack=badnet", "seed=1", "+seed=2"],
        ["hydra.launcher.n_jobs=1", "hydra.launcher.n_jobs=1"],
    ],
)
def test_a_key_that_is_given_twice_is_refused(overrides: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"is given twice: .* and .*\. Keep one of them"):
        check_overrides(overrides)


def test_overrides_are_checked_before_a_sweep_begins(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="seed is given twice"):
        CheckPlace().on_multirun_start(composed("seed=1", "seed=2", f"runs_dir={tmp_path}"))


def test_a_key_may_be_removed_and_set_anew() -> None:
    check_overrides(["~defense.callbacks", "+defense.callbacks={}", "seed=1", "defender.fraction=0.2"])


def test_runs_that_would_share_a_name_are_refused_before_any_starts(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(CompactHydraException, match=r"share the name 'x', such as 'seed=1' and 'seed=2'"):
        sweep("name=x", "seed=1,2")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("devices", ["auto", "-1", "[1,2]"])
def test_devices_that_are_no_number_are_refused(sweep: Sweep, devices: str) -> None:
    with pytest.raises(CompactHydraException, match=r"is no number of GPUs\. In a sweep the launcher hands"):
        sweep("trainer=gpu", f"trainer.devices={devices}")


@pytest.mark.parametrize("threads", ["0", "null", "two"])
def test_threads_that_are_no_number_are_refused(sweep: Sweep, threads: str) -> None:
    with pytest.raises(CompactHydraException, match=r"trainer\.threads=\w+ is no number of cores"):
        sweep(f"trainer.threads={threads}")


def test_more_devices_than_there_are_are_refused(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finepruning.launcher.local.gpu_names", lambda _: ["0", "1"])
    with pytest.raises(CompactHydraException, match=r"devices=3 asks for more GPUs than there are: 2 vis"):
        sweep("trainer=gpu", "trainer.devices=3")
    assert not (tmp_path / "runs").exists()


def test_a_second_call_starts_nothing(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep("defense=none,prune", "attack.poison_rate=0.1,0.1")  # equal runs are run once
    before = found_records(tmp_path)
    monkeypatch.setattr("finepruning.launcher.processes._start", lambda *_: pytest.fail("a job was started"))
    sweep("defense=none,prune", "attack.poison_rate=0.1")
    assert found_records(tmp_path) == before
    assert len(before) == 2
    printed = capfd.readouterr()
    assert "2 runs, 0 of them done, 2 to do, 2 at a time" in printed.err
    assert "2 runs, all of them done" in printed.err
    assert printed.out.count("│ digits") == 4


def test_a_failing_run_is_named_and_leaves_the_others_alone(sweep: Sweep, tmp_path: Path) -> None:
    with pytest.raises(CompactHydraException, match=r"1 of 2 runs failed:\n  attack.target_label=10: Target"):
        sweep("defense=none", "attack.target_label=0,10")
    assert len(found_records(tmp_path)) == 1


def test_a_job_that_needs_more_memory_than_there_is_leaves_the_others_alone(
    sweep: Sweep, tmp_path: Path
) -> None:
    with pytest.raises(
        CompactHydraException, match=r"(?s)1 of 2 runs failed:\n  dataset.size=99999: .*memory"
    ):
        sweep("defense=none", "dataset.size=99999,16")
    assert [each["config"]["dataset"]["size"] for each in found_records(tmp_path).values()] == [16]


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, r"killed by signal 9 \(SIGKILL\)"),
        (signal.SIGTERM, r"exit status 143|SIGTERM"),
    ],
)
def test_a_job_that_is_killed_takes_no_other_with_it(
    sweep: Sweep, tmp_path: Path, number: signal.Signals, reason: str
) -> None:
    store = tmp_path / "store"  # the first job would train for very long: it is the one that is killed

    def kill() -> None:
        wait_for(lambda: list(store.glob("suspect/*.partial/last.ckpt")))
        os.kill(next(each.pid for each in multiprocessing.active_children() if each.pid), number)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(CompactHydraException, match=rf"1 of 2 runs failed:\n  .*100000: ({reason})"):
        sweep("defense=none", "trainer.max_epochs=100000,1", f"store_dir={store}", n_jobs=1)
    killer.join()
    assert [each["config"]["trainer"]["max_epochs"] for each in found_records(tmp_path).values()] == [1]


def test_signals_are_received_and_their_effect_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_signals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.poll(5)
        assert signals.recv() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


GRID = ("attack=badnet", "defense=none,prune,finetune", "seed=1,2")


def start_sweep(place: Path, *overrides: str, **options: Any) -> subprocess.Popen[str]:
    """Start a sweep as a leader of a process group of its own, as a shell does."""
    all_given = (*QUICK, f"runs_dir={place / 'runs'}", f"store_dir={place / 'store'}", *overrides)
    given = {
        each.split("=")[0]: each for each in all_given
    }.values()  # the last of a key, which may come once
    return subprocess.Popen(
        [sys.executable, "run.py", "-m", *given],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


def jobs_of(place: Path) -> list[int]:
    """Return the processes that write a run's log in a place."""
    logs = [(path, target(path)) for path in Path("/proc").glob("[0-9]*/fd/1")]
    return [
        int(path.parts[2]) for path, log in logs if log.startswith(str(place)) and log.endswith("run.log")
    ]


def target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:  # the process has ended
        return ""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The scores of a sweep that nothing happened to."""
    place = tmp_path_factory.mktemp("whole")
    done = start_sweep(place, *GRID)
    _, errors = done.communicate(timeout=900)
    assert done.returncode == 0, errors
    return scores(place)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_ends_its_jobs_and_can_go_on(
    number: signal.Signals, tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    stopped = start_sweep(tmp_path, *GRID)
    wait_for(lambda: jobs_of(tmp_path))
    stopped.send_signal(number)
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 128 + number
    assert f"Stopped by {number.name}: " in errors
    assert "Traceback" not in errors
    assert not jobs_of(tmp_path)
    again = start_sweep(tmp_path, *GRID)
    again.communicate(timeout=900)
    assert again.returncode == 0
    assert scores(tmp_path) == uninterrupted


@pytest.mark.slow
def test_jobs_die_with_their_parent(tmp_path: Path) -> None:
    killed = start_sweep(tmp_path, "trainer.max_epochs=100000", "seed=1,2")
    wait_for(
        lambda: len(list(tmp_path.glob("store/suspect/*.partial/last.ckpt"))) == min(2, available_cores())
    )
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    wait_for(lambda: not jobs_of(tmp_path), seconds=30)


@pytest.mark.slow
def test_a_sweep_that_is_killed_ten_times_ends_with_the_same_records(
    tmp_path: Path, uninterrupted: dict[str, Any]
) -> None:
    moments = random.Random(0)
    for _ in range(10):
        sweep = start_sweep(tmp_path, *GRID)
        while not jobs_of(tmp_path) and sweep.poll() is None:
            time.sleep(0.1)
        time.sleep(moments.uniform(0, 3))
        os.killpg(sweep.pid, signal.SIGKILL)
        sweep.communicate()
    last = start_sweep(tmp_path, *GRID)
    last.communicate(timeout=900)
    assert last.returncode == 0
    assert scores(tmp_path) == uninterrupted


@pytest.mark.slow
def test_two_sweeps_at_once_share_a_store(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    store = f"store_dir={tmp_path / 'store'}"
    both = [start_sweep(tmp_path / name, *GRID, store) for name in ("a", "b")]
    for each in both:
        each.communicate(timeout=900)
    assert [each.returncode for each in both] == [0, 0]
    assert [scores(tmp_path / name) for name in ("a", "b")] == [uninterrupted] * 2
    logs = [path.read_text() for path in tmp_path.glob("*/runs/*/run.log")]
    assert sum("Training the suspect" in log for log in logs) == 2  # one a seed


@pytest.mark.slow
def test_twenty_jobs_that_start_together_train_one_attack(sweep: Sweep, tmp_path: Path) -> None:
    drops = ",".join(str(step / 100) for step in range(20))
    sweep("defense=prune", f"defense.max_drop={drops}", f"store_dir={tmp_path / 'store'}", n_jobs=20)
    found = found_records(tmp_path).values()
    assert len(found) == 20
    assert len({json.dumps(each["scores"]["suspect"]) for each in found}) == 1
    assert len(list((tmp_path / "store" / "suspect").glob("*/about.json"))) == 1
    logs = [path.read_text() for path in tmp_path.glob("runs/*/run.log")]
    assert sum("Training the suspect" in log for log in logs) == 1


@pytest.mark.slow
def test_a_memory_limit_on_the_whole_sweep_fails_only_the_job_that_needs_more(tmp_path: Path) -> None:
    limit = 12 << 30  # bytes of address space, of which loading torch takes 4
    limited = start_sweep(
        tmp_path,
        "defense=none",
        "dataset.size=16,3000",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    _, errors = limited.communicate(timeout=900)
    assert limited.returncode == 1
    assert "1 of 2 runs failed:\n  dataset.size=3000: " in errors
    assert len(found_records(tmp_path)) == 1


@pytest.mark.slow
def test_two_hundred_jobs_leave_the_parents_memory_flat(tmp_path: Path) -> None:
    drops = ",".join(str(step / 1000) for step in range(200))
    sweep = start_sweep(tmp_path, "defense=prune", f"defense.max_drop={drops}")
    resident: dict[int, int] = {}
    while sweep.poll() is None:
        done = len(list(tmp_path.glob("runs/*/record.json")))
        resident[done] = resident_memory(sweep.pid) or resident.get(done, 0)
        time.sleep(0.5)
    _, errors = sweep.communicate()
    assert sweep.returncode == 0, errors
    assert len(found_records(tmp_path)) == 200
    early, late = (
        max(resident[n] for n in resident if n in jobs) for jobs in (range(10, 30), range(180, 200))
    )
    assert late - early < 10 << 20


def resident_memory(process: int) -> int:
    """Return its bytes, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return 0

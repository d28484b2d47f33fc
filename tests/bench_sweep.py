"""What a sweep adds to the work in it, and what a second core brings.

The embedded digits, as configured, with W&B writing offline; every side starts with an empty store. Both have
torch loaded: here by this process, in a sweep by its fork server, which is warmed up first.
"""

import contextlib
import io
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

from tests.conftest import QUICK, run_here, sweep_here

DROPS, RATES = (0.02, 0.04, 0.1), (0.005, 0.01, 0.02, 0.05)  # twelve fine-prunings
ROUNDS = 5


def _seconds(work: Callable[[str], None]) -> float:
    """Return how long work takes with a store and a runs' folder of its own, its output aside."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        start = time.perf_counter()
        work(folder)
        return time.perf_counter() - start


def _places(folder: str) -> tuple[str, str]:
    return f"runs_dir={folder}/runs", f"store_dir={folder}/store"


def _warm_up() -> None:
    """Start the fork server, and load here what a first run loads."""
    _seconds(lambda folder: sweep_here(*QUICK[:-1], *_places(folder), n_jobs=1))
    _seconds(lambda folder: _run(*QUICK[:-1], *_places(folder)))


def _run(*overrides: str) -> None:
    run_here(*overrides)


def _among(name: str, values: Sequence[float]) -> str:
    return f"{name}={','.join(map(str, values))}"


def shared_attack_over_by_hand() -> float:
    """Twelve defenses on one attack, one job at a time, over the same in this process."""

    def by_hand(folder: str) -> None:
        for drop, rate in itertools.product(DROPS, RATES):
            run_here(f"defense.max_drop={drop}", f"defense.tuning.learning_rate={rate}", *_places(folder))

    def swept(folder: str) -> None:
        grid = _among("defense.max_drop", DROPS), _among("defense.tuning.learning_rate", RATES)
        sweep_here(*grid, *_places(folder), n_jobs=1)

    _warm_up()
    return _seconds(swept) / _seconds(by_hand)


def two_jobs_throughput() -> float:
    """Six attacks with a defense each, one job at a time over two, a thread each."""

    def swept(folder: str, n_jobs: int) -> None:
        sweep_here("seed=1,2,3,4,5,6", "trainer.threads=1", *_places(folder), n_jobs=n_jobs)

    _warm_up()
    return _seconds(lambda folder: swept(folder, 1)) / _seconds(lambda folder: swept(folder, 2))


def job_overhead() -> float:
    """Seconds of one more job in a sweep, less what the same run takes in this process; the median."""
    small = (*QUICK[:-1], "defense=prune")  # with the logger that is configured
    found: list[float] = []

    def compare(folder: str) -> None:
        places = _places(folder)
        sweep_here(*small, *places, n_jobs=1)  # trains the suspect that all others share
        for number in range(ROUNDS):
            own, first, second, third = (number / 100 + share / 1000 for share in (1, 2, 3, 4))
            start = time.perf_counter()
            sweep_here(*small, *places, f"defense.max_drop={first}", n_jobs=1)
            one = time.perf_counter()
            sweep_here(*small, *places, _among("defense.max_drop", (second, third)), n_jobs=1)
            two = time.perf_counter()
            run_here(*small, *places, f"defense.max_drop={own}")
            found.append((two - one) - (one - start) - (time.perf_counter() - two))

    _warm_up()
    _seconds(compare)
    return statistics.median(found)


FIGURES: dict[str, Callable[[], float]] = {
    "sweep.shared_attack.over_by_hand": shared_attack_over_by_hand,
    "sweep.two_jobs.throughput": two_jobs_throughput,
    "sweep.job_overhead_s": job_overhead,
}

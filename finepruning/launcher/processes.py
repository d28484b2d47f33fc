"""Jobs as processes: forked from a server that has torch loaded, watched, and ended."""

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import connection, forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from omegaconf import DictConfig

from finepruning import record as records
from finepruning.launcher.display import Display
from finepruning.launcher.jobs import work
from finepruning.launcher.plan import Job, Outcome, next_job, visible_gpus
from finepruning.launcher.signals import end_group, end_rest, lead_group, stop_signals

WARM = "finepruning.launcher.warm"  # is loaded before any job is forked
OF_LOGGER = {  # likewise: what a logger loads with its first run
    "wandb": (
        "opentelemetry.exporter.otlp.proto.http.metric_exporter",
        "requests",
        "wandb.sdk.launch",
        "wandb.wandb_run",
    )
}
GRACE = 10.0  # seconds from SIGTERM to SIGKILL
LONGEST_REASON = 4000  # characters; a pipe takes 64 KiB before its reader has to read


class Stopped(Exception):  # noqa: N818 - it is no error
    """A sweep was stopped by a signal, whose number it carries."""

    def __init__(self, number: int) -> None:
        self.number = number


@dataclass(frozen=True)
class Running:
    """A job at work: its process, where its reason to fail comes from, its GPUs and when it started."""

    job: Job
    process: ForkServerProcess
    reason: Connection
    gpus: tuple[str, ...]
    start: float

    @property
    def leader(self) -> int:
        """The process id, which is its group's, too."""
        assert self.process.pid is not None  # it has been started
        return self.process.pid


def server(logger: Collection[str] = ()) -> ForkServerContext:
    """Return the context whose processes are forked from one that has loaded what every job needs.

    Args:
        logger: The options of the group ``logger`` that the jobs use.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # torch counts GPUs without starting CUDA
    context = multiprocessing.get_context("forkserver")
    more = [module for name in logger for module in OF_LOGGER.get(name, ())]
    context.set_forkserver_preload([WARM, *more])
    return context


def _load() -> None:
    """Start the server that processes are forked from, deaf to Ctrl-C, which reaches it as it reaches us."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored is inherited
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)


def gpu_names(context: ForkServerContext) -> list[str]:
    """Return the GPUs that jobs may use, counted in a process of its own, so that none starts CUDA here."""
    _load()
    with ProcessPoolExecutor(1, context) as pool:
        count = pool.submit(_count_gpus).result()
    return visible_gpus(count, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def run_jobs(
    context: ForkServerContext,
    jobs: Sequence[Job],
    n_jobs: int,
    gpus: Sequence[str],
    made: Collection[str],
    display: Display,
) -> None:
    """Run jobs, ``n_jobs`` at a time, until all have ended.

    Args:
        context: Where processes come from.
        jobs: In order.
        n_jobs: How many at a time.
        gpus: Names of the GPUs that are handed out.
        made: Hashes of the networks that are there already.
        display: Is told of every start and end.

    Raises:
        Stopped: After a signal, when all processes have ended.
    """
    waiting, free, made = list(jobs), list(gpus), set(made)
    running: list[Running] = []
    with stop_signals() as signals:
        try:
            if waiting:
                _load()
            while waiting or running:
                while len(running) < n_jobs:
                    making = {network for each in running for network in each.job.shared}
                    job = next_job(waiting, making, made, len(free))
                    if job is None:
                        break
                    waiting.remove(job)
                    running.append(_start(context, job, [free.pop(0) for _ in range(job.gpus)]))
                    display.started(job)
                ready = connection.wait([signals, *(each.process.sentinel for each in running)])
                if signals in ready:
                    raise Stopped(signals.recv())
                for each in [each for each in running if each.process.sentinel in ready]:
                    running.remove(each)
                    free += each.gpus
                    outcome = _outcome(each)
                    if not outcome.error:
                        made |= each.job.shared
                    display.ended(outcome)
        except (EOFError, OSError):  # the server has ended
            if signals.poll(1):  # by the signal that came here, too
                raise Stopped(signals.recv()) from None
            raise
        finally:
            _stop(running, signals)


def _start(context: ForkServerContext, job: Job, gpus: Sequence[str]) -> Running:
    reason, sender = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=_work, args=(job.config, job.place, gpus, sender))
    process.start()
    sender.close()  # the process has its own
    return Running(job, process, reason, tuple(gpus), start)


def _outcome(ended: Running) -> Outcome:
    """Return how a job ended, from its record, its exit code and what it said."""
    ended.process.join()
    end_rest(ended.leader)
    seconds = time.perf_counter() - ended.start
    code = ended.process.exitcode or 0
    error: str | None = None
    scores: tuple[float | None, float | None] = (None, None)
    if code < 0:
        error = f"killed by signal {-code} ({signal.Signals(-code).name})"
        if -code == signal.SIGKILL:
            error += ", which is also what a system does that runs out of memory"
    elif code > 0:
        error = f"exit status {code}"
        with contextlib.suppress(EOFError):  # it could not say
            error = ended.reason.recv()
    else:
        try:
            scores = _scores(ended.job.place)
        except ValueError as wrong:
            error = str(wrong)
    ended.reason.close()
    ended.process.close()
    return Outcome(ended.job, seconds, scores, error)


def _scores(place: Path) -> tuple[float | None, float | None]:
    """Return clean accuracy and attack success of the defended network.

    Raises:
        ValueError: If there is no record, as after a training that was told to stop, or a damaged one.
    """
    record = records.read(place)
    if record is None:
        raise ValueError("ended without a record")
    scores = record["scores"]["defended"]
    return scores["clean_accuracy"], scores["attack_success_rate"]


def _stop(running: Sequence[Running], signals: Connection) -> None:
    """End jobs: ask, then kill those that have not ended after a while, or at the next signal."""
    for each in running:
        end_group(each.leader, signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    left = {each.process.sentinel for each in running}
    while left and (ready := connection.wait([signals, *left], max(0.0, deadline - time.monotonic()))):
        if signals in ready:
            break
        left.difference_update(ready)
    for each in running:
        if each.process.sentinel in left:
            end_group(each.leader, signal.SIGKILL)
        each.process.join()
        end_rest(each.leader)


def _work(config: DictConfig, place: Path, gpus: Sequence[str], reason: Connection) -> None:
    """Run one job in this fresh process, its terminal output going to ``run.log``."""
    lead_group()
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)  # in time: nothing has started CUDA yet
    why = work(config, place)
    if why is not None:
        reason.send(why[:LONGEST_REASON])
        sys.exit(1)

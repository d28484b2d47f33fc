"""The launcher of ``-m`` on one machine: a fresh process a job, forked from a server that has torch loaded.

A job leaves nothing behind in another one, and one that dies takes no other with it.
"""

import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from finepruning import pipeline
from finepruning import record as records

log = logging.getLogger(__name__)


@dataclass
class _Job:
    number: int
    overrides: str
    config: DictConfig
    place: Path
    process: ForkServerProcess | None = None
    reason: Connection | None = None
    started: float = 0.0
    error: str | None = None


class LocalLauncher(Launcher):
    """Run jobs in processes of their own, several at a time.

    Args:
        n_jobs: Jobs at a time; None for as many as the cores allow, given ``trainer.threads``.
    """

    def __init__(self, n_jobs: int | None = None) -> None:
        if n_jobs is not None and n_jobs < 1:
            raise CompactHydraException(
                f"hydra.launcher.n_jobs={n_jobs} runs nothing. Set it to 1 or more, or to null."
            )
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, print the table of their records, and fail if one of them did."""
        from finepruning.dashboard import show  # here, since --help has no table to print

        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [
            self._job(initial_job_idx + place, overrides) for place, overrides in enumerate(job_overrides)
        ]
        n_jobs = self.n_jobs or max(
            1, (os.cpu_count() or 1) // max(job.config.trainer.threads for job in jobs)
        )
        log.info("%d runs, %d at a time", len(jobs), min(n_jobs, len(jobs)))
        self._run(jobs, n_jobs)
        found = [records.read(job.place) for job in jobs if not job.error]
        show([record for record in found if record is not None])
        log.info("Runs: %s", Path(self.config.runs_dir).resolve())
        failed = [job for job in jobs if job.error]
        if failed:
            reasons = "\n".join(
                f"  {job.overrides}: {job.error} (see {job.place / 'run.log'})" for job in failed
            )
            raise CompactHydraException(f"{len(failed)} of {len(jobs)} runs failed:\n{reasons}")
        return [JobReturn(_return_value=0.0, status=JobStatus.COMPLETED) for _ in jobs]

    def _job(self, number: int, overrides: Sequence[str]) -> _Job:
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.group = self.config.group  # resolved here, so that all jobs have the same
        place = _place(config)
        return _Job(number, " ".join(filter_overrides(overrides)), config, place)

    def _run(self, jobs: list[_Job], n_jobs: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["finepruning.pipeline.stages"])
        waiting = list(jobs)
        running: list[_Job] = []
        try:
            while waiting or running:
                while waiting and len(running) < n_jobs:
                    job = waiting.pop(0)
                    job.started = time.perf_counter()
                    job.reason, reason = context.Pipe(duplex=False)
                    job.process = context.Process(target=_work, args=(job.config, str(job.place), reason))
                    job.process.start()
                    running.append(job)
                connection.wait([job.process.sentinel for job in running if job.process])
                for job in [job for job in running if job.process and job.process.exitcode is not None]:
                    running.remove(job)
                    self._finish(job, len(jobs) - len(waiting) - len(running), len(jobs))
        finally:
            for job in running:
                if job.process:
                    job.process.terminate()

    @staticmethod
    def _finish(job: _Job, done: int, total: int) -> None:
        assert job.process is not None
        code = job.process.exitcode or 0
        if code < 0:
            job.error = f"killed by signal {-code}"
        elif code > 0:
            job.error = job.reason.recv() if job.reason and job.reason.poll() else f"exit status {code}"
        word = "failed" if job.error else "done"
        log.info("[%d/%d] %s %s, %.0f s", done, total, word, job.overrides, time.perf_counter() - job.started)


def _place(config: DictConfig) -> Path:
    HydraConfig.instance().set_config(config)
    return Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)


def _work(config: DictConfig, place: str, reason: Connection) -> None:
    """Run one job in this fresh process, its terminal output going to ``run.log``."""
    Path(place).mkdir(parents=True, exist_ok=True)
    output = os.open(Path(place) / "run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    setup_globals()
    try:
        result = run_job(
            task_function=pipeline.run,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=HydraContext(config_loader=None, callbacks=Callbacks()),  # type: ignore[arg-type]
        )
        _ = result.return_value  # reading it raises what the job raised
    except Exception as error:
        if isinstance(error, CompactHydraException):
            print(error, file=sys.stderr)
        else:
            traceback.print_exc()
        reason.send(str(error) or type(error).__name__)
        sys.exit(1)

"""The launcher of ``-m`` on one machine: a fresh process a job, several at a time.

A job leaves nothing behind in another one, and one that dies takes no other with it. What is finished is not
run again, so the same command goes on where an interrupted one stopped.
"""

import logging
import signal
from collections.abc import Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from finepruning import pipeline
from finepruning.launcher.display import Display
from finepruning.launcher.forecast import announcement, earlier_runs
from finepruning.launcher.jobs import compose, conclude, stop
from finepruning.launcher.plan import (
    Job,
    Outcome,
    at_a_time,
    available_cores,
    check_gpus,
    cores_needed,
    defended_hash,
    epochs_planned,
    gpus_needed,
    start_hash,
    suspect_hash,
    telling,
    unique,
)
from finepruning.launcher.processes import Stopped, gpu_names, run_jobs, server
from finepruning.pipeline.devices import check_groups
from finepruning.pipeline.resolvers import choices_hash

log = logging.getLogger(__name__)


class LocalLauncher(Launcher):
    """Run jobs in processes of their own, several at a time.

    Args:
        n_jobs: Jobs at a time; None for as many as cores and GPUs allow, given ``trainer.threads`` and
            ``trainer.devices``.
    """

    def __init__(self, n_jobs: int | None = None) -> None:
        if n_jobs is not None and (not isinstance(n_jobs, int) or n_jobs < 1):
            raise CompactHydraException(
                f"hydra.launcher.n_jobs={n_jobs} runs nothing. Set it to 1 or more, or to null."
            )
        self.n_jobs = n_jobs

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run what is not finished, print the table of all records, and fail if a job did.

        Raises:
            CompactHydraException: If the sweep makes no sense, before any job, or jobs failed, at the end.
            SystemExit: If a signal stopped it.
        """
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        lines = telling([filter_overrides(each) for each in job_overrides])
        try:
            jobs = unique(
                [
                    self._job(initial_job_idx + place, list(overrides), line)
                    for place, (overrides, line) in enumerate(zip(job_overrides, lines, strict=True))
                ]
            )
            refused, left = _unfinished(jobs)
            context = server({job.choices["logger"] for job in left})
            gpus = gpu_names(context) if any(job.gpus for job in left) else []
            check_gpus(left, len(gpus))
        except ValueError as error:
            raise CompactHydraException(str(error)) from error
        except KeyboardInterrupt:
            stop(signal.SIGINT, "no run has begun")
        display = Display(len(jobs), len(jobs) - len(left) - len(refused), Console(stderr=True))
        for outcome in refused:
            display.ended(outcome)
        self._run(context, left, gpus, display)
        failed = [(each.job.overrides, each.error, each.job.place) for each in display.outcomes if each.error]
        conclude([job.place for job in jobs], failed, self.config.runs_dir)
        return [JobReturn(_return_value=0.0, status=JobStatus.COMPLETED) for _ in job_overrides]

    def _job(self, number: int, overrides: list[str], line: str) -> Job:
        config, place = compose(self.hydra_context, self.config, overrides, number)
        plain: Any = OmegaConf.to_container(
            OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]), resolve=True
        )
        check_groups(plain)
        return Job(
            number=number,
            overrides=line,
            config=config,
            place=place,
            chosen=choices_hash(config),
            choices=dict(config.hydra.runtime.choices),
            epochs=epochs_planned(plain["trainer"]),
            cores=cores_needed(plain["trainer"]),
            gpus=gpus_needed(plain["trainer"]),
            suspect=suspect_hash(plain),
            start=start_hash(plain),
            defended=defended_hash(plain),
        )

    def _run(
        self, context: ForkServerContext, jobs: Sequence[Job], gpus: Sequence[str], display: Display
    ) -> None:
        """Say what is to do, and do it.

        Raises:
            SystemExit: If a signal stopped it.
        """
        cores = available_cores()
        n_jobs = self.n_jobs or at_a_time(jobs, cores, len(gpus))
        try:
            earlier = earlier_runs(Path(self.config.runs_dir), Path(self.config.store_dir)) if jobs else []
            log.info(announcement(display.total, display.earlier, jobs, earlier, n_jobs))
            busy = min(n_jobs, len(jobs)) * max((job.cores for job in jobs), default=0)
            if busy > cores:
                log.info(
                    "They keep up to %d cores busy, and there are %d: lower n_jobs or threads.", busy, cores
                )
            made = {made_by for run in earlier for made_by in run.hashes}
            with display:
                run_jobs(context, jobs, n_jobs, gpus, made, display)
        except (Stopped, KeyboardInterrupt) as stopped:
            done = sum(not outcome.error for outcome in display.outcomes) + display.earlier
            number = stopped.number if isinstance(stopped, Stopped) else signal.SIGINT
            stop(number, f"{done} of {display.total} runs are done")


def _unfinished(jobs: Sequence[Job]) -> tuple[list[Outcome], list[Job]]:
    """Return the jobs that cannot be run where they would, and those that are still to do."""
    refused, left = [], []
    for job in jobs:
        HydraConfig.instance().set_config(job.config)
        try:
            if pipeline.finished_record(job.place, job.config) is None:
                left.append(job)
        except ValueError as error:
            refused.append(Outcome(job, 0.0, error=str(error)))
    return refused, left

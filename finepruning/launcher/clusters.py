"""What the launchers of clusters share: the check before any work, a job on a worker, the end of a sweep."""

import importlib.util
import json
import logging
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, setup_globals
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from finepruning.launcher.jobs import compose, conclude
from finepruning.launcher.plan import gpus_needed, unique
from finepruning.pipeline.devices import check_groups, threads
from finepruning.pipeline.resolvers import choices_hash

log = logging.getLogger(__name__)

EXTRAS = {"submitit_slurm": ("submitit", "slurm"), "ray": ("ray", "ray")}  # launcher: its package, our extra
ANSWER_WITHIN = 10  # seconds


class CheckCluster(Callback):
    """Stop before anything else where the cluster of ``hydra/launcher`` cannot be reached."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check the launcher that was chosen."""
        name = config.hydra.runtime.choices["hydra/launcher"]
        problem = missing_extra(name)
        if problem is None and name == "submitit_slurm":
            problem = unreachable_slurm()
        if problem is None and name == "ray":
            problem = unreachable_ray(config.hydra.launcher.ray.init.get("address"))
        if problem is not None:
            # SystemExit, since Hydra turns a callback's other exceptions into warnings
            sys.exit(f"hydra/launcher={name} cannot start: {problem}")


def missing_extra(launcher: str) -> str | None:
    """Return what to install for a launcher; None if nothing."""
    package, extra = EXTRAS.get(launcher, (None, None))
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f'{package} is not installed. Run: pip install -e ".[{extra}]"'


def unreachable_slurm() -> str | None:
    """Return why jobs cannot be given to SLURM from here, and the way out; None if they can."""
    if shutil.which("sbatch") is None:
        return (
            "there is no sbatch on this machine. Start the sweep on a login node of the cluster, or leave "
            "hydra/launcher at its default, local."
        )
    try:
        asked = subprocess.run(["sinfo", "--noheader"], capture_output=True, text=True, timeout=ANSWER_WITHIN)
        reason = asked.stderr.strip().rpartition("\n")[2] if asked.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    return None if reason is None else f"SLURM does not answer ({reason}). Try sinfo until it lists nodes."


def unreachable_ray(address: str | None) -> str | None:
    """Return why nothing listens at a Ray address, and the way out; None if something does, or none is given.

    Args:
        address: ``HOST:PORT``, ``ray://HOST:PORT``, ``auto`` or ``local``; None for a Ray of our own.
    """
    if address is None or address in ("auto", "local"):
        return None
    key = f"hydra.launcher.ray.init.address={address}"
    way_out = "Start it there with 'ray start --head', or set the address to null for a Ray on this machine."
    try:
        where = urlsplit(address if "//" in address else f"//{address}")
        host, port = where.hostname, where.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        return f"{key} is not HOST:PORT, such as 10.0.0.1:6379. {way_out}"
    try:
        socket.create_connection((host, port), timeout=ANSWER_WITHIN).close()
    except OSError as error:
        return f"nothing answers at {key} ({error.strerror or error}). {way_out}"
    return None


@dataclass
class Job:
    """A job of a sweep: its overrides, its configuration and its folder.

    Args:
        overrides: As a person reads them.
        config: The whole configuration, Hydra's own part included.
        place: The run's folder.
        chosen: Hash of all that was chosen for it.
        error: Why it failed; None while it has not.
        started: When it was handed over, in seconds.
    """

    overrides: str
    config: DictConfig
    place: Path
    chosen: str
    error: str | None = None
    started: float = field(default_factory=time.perf_counter)

    @property
    def launcher(self) -> dict[str, Any]:
        """The launcher's options, resolved with this job's own trainer and data set."""
        options = OmegaConf.to_container(self.config.hydra.launcher, resolve=True)
        assert isinstance(options, dict)  # a configuration group always is
        return {str(key): value for key, value in options.items() if key != "_target_"}


class ClusterLauncher(Launcher):
    """What SLURM's launcher and Ray's have in common. Options are read from each job's own configuration."""

    def __init__(self, **_: Any) -> None:
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        self.hydra_context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs, print the table of their records, and fail if one of them did.

        Raises:
            CompactHydraException: If the sweep makes no sense, before any job, or jobs failed, at the end.
        """
        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        try:
            jobs = unique(
                [self._job(initial_job_idx + place, list(each)) for place, each in enumerate(job_overrides)]
            )
        except ValueError as error:
            raise CompactHydraException(str(error)) from error
        self.run(jobs)
        failed = [(job.overrides, job.error, job.place) for job in jobs if job.error]
        conclude([job.place for job in jobs], failed, self.config.runs_dir)
        return [JobReturn(_return_value=0.0, status=JobStatus.COMPLETED) for _ in job_overrides]

    def run(self, jobs: list[Job]) -> None:
        """Run all jobs and set the ``error`` of those that fail."""
        raise NotImplementedError

    def _job(self, number: int, overrides: list[str]) -> Job:
        assert self.config is not None
        config, place = compose(self.hydra_context, self.config, overrides, number)
        check_groups(config)
        if not str(devices := config.trainer.devices).isdecimal():
            raise ValueError(
                f"trainer.devices={devices} is no number, by which a cluster hands out cores and GPUs. Set "
                "trainer.devices to how many each run needs."
            )
        gpus_needed(config.trainer)  # says it if that is left open,
        threads(config.trainer)  # and if this is no number
        return Job(" ".join(filter_overrides(overrides)), config, place, choices_hash(config))


def report(job: Job, done: int, total: int) -> None:
    """Say that a job has ended."""
    word = "failed" if job.error else "done"
    log.info("[%d/%d] %s %s, %.0f s", done, total, word, job.overrides, time.perf_counter() - job.started)


def alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return jobs in groups that have the same launcher options."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(json.dumps(job.launcher, sort_keys=True), []).append(job)
    return list(groups.values())

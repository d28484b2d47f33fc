"""What the launchers of clusters share: the check before any work, a job on a worker, the end of a sweep."""

import importlib.util
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from finepruning import pipeline
from finepruning import record as records

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
    return f'{package} is not installed. Run: pip install "finepruning[{extra}]"'


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
        error: Why it failed; None while it has not.
        started: When it was handed over, in seconds.
    """

    overrides: str
    config: DictConfig
    place: Path
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
        """Run all jobs, print the table of their records, and fail if one of them did."""
        from finepruning.dashboard import show  # here, since --help has no table to print

        assert self.config is not None
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self._job(initial_job_idx + place, list(each)) for place, each in enumerate(job_overrides)]
        self.run(jobs)
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

    def run(self, jobs: list[Job]) -> None:
        """Run all jobs and set the ``error`` of those that fail."""
        raise NotImplementedError

    def _job(self, number: int, overrides: list[str]) -> Job:
        assert self.config is not None
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
            config.hydra.job.chdir = False  # a worker does not know of version_base, which says so here
            config.group = self.config.group  # resolved here, so that all jobs have the same
        HydraConfig.instance().set_config(config)
        place = Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)
        return Job(" ".join(filter_overrides(overrides)), config, place)


def report(job: Job, done: int, total: int) -> None:
    """Say that a job has ended."""
    word = "failed" if job.error else "done"
    log.info("[%d/%d] %s %s, %.0f s", done, total, word, job.overrides, time.perf_counter() - job.started)


def work(config: DictConfig, place: str) -> str | None:
    """Run one job in this process of its own, on any machine; return why it failed, or None.

    Its terminal output goes to ``run.log`` in the run's folder, as with the local launcher.
    """
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
        return str(error) or type(error).__name__
    return None


def alike(jobs: Sequence[Job]) -> list[list[Job]]:
    """Return jobs in groups that have the same launcher options."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(json.dumps(job.launcher, sort_keys=True), []).append(job)
    return list(groups.values())

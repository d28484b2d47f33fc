"""The launcher of ``-m`` on Ray: this machine, or a cluster that ``ray start`` made."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from finepruning.launcher.clusters import ClusterLauncher, Job, report
from finepruning.launcher.jobs import work

log = logging.getLogger(__name__)

PASSED_ON = ("FINEPRUNING_", "WANDB_")  # a worker has the environment of 'ray start', not ours
OBJECT_STORE = 100 * 1024 * 1024  # bytes; runs talk through files


def work_there(directory: str, environment: Mapping[str, str], config: DictConfig, place: str) -> str | None:
    """Run one job on a worker, in the folder and with the variables of the sweep's start."""
    os.chdir(directory)
    os.environ.update(environment)
    return work(config, Path(place))


class RayLauncher(ClusterLauncher):
    """Run jobs as Ray tasks, each in a fresh process."""

    def run(self, jobs: list[Job]) -> None:
        """Hand all jobs to Ray and wait for them.

        Raises:
            CompactHydraException: If the cluster cannot be joined.
        """
        import ray

        if not ray.is_initialized():
            _join(jobs[0].launcher["ray"]["init"])
        task = ray.remote(max_calls=1)(work_there)  # a fresh process a job, into which no other one leaks
        passed = {key: value for key, value in os.environ.items() if key.startswith(PASSED_ON)}
        running = {
            task.options(**job.launcher["ray"]["remote"]).remote(
                str(Path.cwd()), passed, job.config, str(job.place)
            ): job
            for job in jobs
        }
        log.info("%d runs given to Ray", len(jobs))
        while running:
            for ended in ray.wait(list(running))[0]:
                job = running.pop(ended)
                try:
                    job.error = ray.get(ended)
                except ray.exceptions.RayError as error:
                    job.error = f"killed ({_first_line(error)})"
                report(job, len(jobs) - len(running), len(jobs))


def _join(init: dict[str, Any]) -> None:
    import ray

    if init.get("address") in (None, "local"):
        init = {"object_store_memory": OBJECT_STORE} | init  # a cluster has its own
    try:
        ray.init(**init)
    except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
        raise CompactHydraException(
            f"Ray does not start ({_first_line(error)}). Change hydra.launcher.ray.init: address="
            "HOST:6379 of a machine that ran 'ray start --head' (and RAY_AUTH_MODE=token in the environment "
            "if it has tokens), or null for a Ray on this machine."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

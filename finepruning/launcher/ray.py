"""The launcher of ``-m`` on Ray: this machine, or a cluster that ``ray start`` made."""

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from finepruning.launcher.clusters import ClusterLauncher, Job, report
from finepruning.launcher.jobs import stop, work

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
            CompactHydraException: If the cluster cannot be joined, or a Ray of our own has no room for a job.
            SystemExit: After Ctrl-C.
        """
        done = 0
        try:
            for job in _ended(jobs):
                done += 1
                report(job, done, len(jobs))
        except KeyboardInterrupt:
            stop(signal.SIGINT, f"{done} of {len(jobs)} runs have ended")


def _ended(jobs: Sequence[Job]) -> Iterator[Job]:
    """Hand all jobs to Ray; yield each when it has ended."""
    import ray

    own = not ray.is_initialized() and _join(jobs[0].launcher["ray"]["init"])
    check_room(jobs, [node["Resources"] for node in ray.nodes() if node["Alive"]], own)
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
            yield job


def check_room(jobs: Sequence[Job], machines: Sequence[Mapping[str, float]], own: bool) -> None:
    """Check that each job finds room on some machine, since Ray would wait for ever.

    Args:
        jobs: The jobs.
        machines: What each machine has, as Ray calls it: ``CPU``, ``GPU``, ``memory`` and others.
        own: Whether it is a Ray of our own. A cluster may grow, so that there a warning has to do.

    Raises:
        CompactHydraException: If one finds no room on a Ray of our own.
    """
    waiting = [job for job in jobs if not any(_fits(_needs(job), each) for each in machines)]
    if not waiting:
        return
    needs = _needs(waiting[0])
    asked = ", ".join(f"{count:g} {name}" for name, count in needs.items())
    most = ", ".join(f"{max(each.get(name, 0) for each in machines):g} {name}" for name in needs)
    sentence = (
        f"{len(waiting)} of {len(jobs)} runs find no room on Ray, such as '{waiting[0].overrides}': it asks "
        f"for {asked} on one machine, and the most there is {most}. Lower trainer.threads or "
        "trainer.devices, or change hydra.launcher.ray.remote."
    )
    if own:
        raise CompactHydraException(sentence)
    log.warning("%s They wait for a machine that has more.", sentence)


def _fits(needs: Mapping[str, float], machine: Mapping[str, float]) -> bool:
    return all(machine.get(name, 0) >= count for name, count in needs.items())


def _needs(job: Job) -> dict[str, float]:
    """Return what a job asks of the machine that it runs on."""
    options = job.launcher["ray"]["remote"]
    needs = {"CPU": options.get("num_cpus"), "GPU": options.get("num_gpus"), "memory": options.get("memory")}
    needs |= options.get("resources") or {}
    return {name: count for name, count in needs.items() if count}


def _join(init: dict[str, Any]) -> bool:
    """Start a Ray here or join a cluster; return whether it is a Ray of our own.

    Raises:
        CompactHydraException: If that fails.
    """
    import ray

    own = init.get("address") in (None, "local")
    if own:
        init = {"object_store_memory": OBJECT_STORE} | init  # a cluster has its own
    try:
        ray.init(**init)
    except (ConnectionError, RuntimeError, TypeError, ValueError) as error:
        raise CompactHydraException(
            f"Ray does not start ({_first_line(error)}). Change hydra.launcher.ray.init: address="
            "HOST:6379 of a machine that ran 'ray start --head' (and RAY_AUTH_MODE=token in the environment "
            "if it has tokens), or null for a Ray on this machine."
        ) from error
    return own


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]

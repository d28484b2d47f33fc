"""The launcher of ``-m`` on a SLURM cluster: job arrays, given to sbatch by submitit."""

import logging
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from hydra.errors import CompactHydraException
from omegaconf import DictConfig

from finepruning.launcher.clusters import ClusterLauncher, Job, alike, report
from finepruning.launcher.jobs import work

log = logging.getLogger(__name__)

CODE = Path(__file__).parents[2]
GENERIC = {  # what submitit calls by a name of its own; the other options are sbatch's
    "cpus_per_task",
    "gpus_per_node",
    "mem_gb",
    "name",
    "nodes",
    "stderr_to_stdout",
    "tasks_per_node",
    "timeout_min",
}
LOOK_EVERY = 2.0  # seconds
PATIENCE = 10.0  # seconds for a result to show up in a network folder, once its job has left the queue


class Work:
    """A job that SLURM may stop and start again: training goes on from its last epoch."""

    def __call__(self, config: DictConfig, place: str) -> str | None:
        """Run the job; return why it failed, or None."""
        return work(config, Path(place))

    def checkpoint(self, *arguments: Any) -> Any:
        """Return the same job, to be queued again after a timeout."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, *arguments)


class SlurmLauncher(ClusterLauncher):
    """Run jobs as tasks of SLURM arrays, one array for all jobs that ask for the same resources.

    Jobs go on when this process dies; Ctrl-C cancels them.
    """

    def run(self, jobs: list[Job]) -> None:
        """Submit all jobs and wait for them.

        Raises:
            CompactHydraException: If sbatch refuses what the launcher's options ask for.
        """
        running: list[tuple[Any, Job]] = []
        # sbatch passes the environment on: a worker imports the code that runs here, whatever is installed
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(CODE), os.environ.get("PYTHONPATH")]))
        try:
            for group in alike(jobs):
                running += zip(_submit(group), group, strict=True)
            log.info("%d runs given to SLURM: %s", len(jobs), ", ".join(task.job_id for task, _ in running))
            _wait(running)
        except BaseException:
            for task, _ in running:
                task.cancel(check=False)
            raise


def _submit(jobs: list[Job]) -> list[Any]:
    import submitit

    options = {key: value for key, value in jobs[0].launcher.items() if value is not None}
    folder, timeouts = options.pop("submitit_folder"), options.pop("max_num_timeout")
    try:
        executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        executor.update_parameters(
            **{key if key in GENERIC else f"slurm_{key}": value for key, value in options.items()}
        )
        tasks: list[Any] = executor.map_array(
            Work(), [job.config for job in jobs], [str(job.place) for job in jobs]
        )
    except (submitit.core.utils.FailedJobError, NameError, TypeError, ValueError) as error:
        reason = str(error).strip().rpartition("\n")[2]
        raise CompactHydraException(
            f"SLURM does not take the runs ({reason}). Change hydra.launcher.partition, timeout_min, "
            "cpus_per_task, mem_gb and their like; conf/hydra/launcher/submitit_slurm.yaml lists them."
        ) from error
    return tasks


def _wait(running: list[tuple[Any, Job]]) -> None:
    """Wait until every job has left a result, or has left the queue without one.

    SLURM's accounting is not asked: where a cluster has none, a killed job would be waited for for ever.
    """
    waiting, left = list(running), dict[str, float]()
    while waiting:
        time.sleep(LOOK_EVERY)
        queued = _queued()
        for task, job in list(waiting):
            now = time.monotonic()
            tasks = [task.task(number) for number in range(task.num_tasks)]
            if all(each.paths.result_pickle.exists() for each in tasks):
                job.error = _reason(tasks)
            elif queued is None or task.job_id in queued:
                left.pop(task.job_id, None)
                continue
            elif now - left.setdefault(task.job_id, now) < PATIENCE:
                continue
            else:
                job.error = f"killed or cancelled by SLURM, which wrote {tasks[0].paths.stdout}"
            waiting.remove((task, job))
            report(job, len(running) - len(waiting), len(running))


def _queued() -> set[str] | None:
    """Return the jobs that SLURM still knows; None while it does not answer."""
    command = ["squeue", "--me", "--array", "--noheader", "--format=%i %F"]
    asked = subprocess.run(command, capture_output=True, text=True)
    return set(asked.stdout.split()) if asked.returncode == 0 else None


def _reason(tasks: list[Any]) -> str | None:
    for task in tasks:
        outcome, result = task._get_outcome_and_result()
        if outcome == "error":
            return str(result).strip().rpartition("\n")[2]
        if result is not None:
            return str(result)
    return None

"""What all launchers share: a job's configuration and folder, the job itself, and the end of a sweep."""

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hydra._internal.callbacks import Callbacks
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import run_job, setup_globals
from hydra.errors import CompactHydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from finepruning import pipeline
from finepruning import record as records
from finepruning.pipeline.refusals import by_check
from finepruning.pipeline.resolvers import keep_precision

log = logging.getLogger(__name__)


def compose(
    hydra_context: HydraContext, sweep: DictConfig, overrides: Sequence[str], number: int
) -> tuple[DictConfig, Path]:
    """Return the configuration of one job of a sweep, and its folder.

    Args:
        hydra_context: Of the sweep.
        sweep: The sweep's own configuration.
        overrides: The job's.
        number: Its place in the sweep.
    """
    config = hydra_context.config_loader.load_sweep_config(sweep, list(overrides))
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
        config.hydra.job.chdir = False  # another machine's process does not know version_base, which says so
        config.group = sweep.group  # resolved here, so that all jobs have the same
        keep_precision(config)  # likewise, whatever CPU runs them
    HydraConfig.instance().set_config(config)  # names resolve with it
    return config, Path(str(config.hydra.sweep.dir)) / str(config.hydra.sweep.subdir)


def work(config: DictConfig, place: Path) -> str | None:
    """Run one job in this process of its own, on any machine; return why it failed, or None.

    Its terminal output goes to ``run.log`` in the run's folder.
    """
    place.mkdir(parents=True, exist_ok=True)
    output = os.open(place / "run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
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
        if not isinstance(error, CompactHydraException):
            traceback.print_exc()
        else:
            if error.__cause__ is not None and not by_check(error.__cause__):
                traceback.print_exception(error.__cause__)
            print(error, file=sys.stderr)
        return str(error) or type(error).__name__
    return None


def conclude(places: Sequence[Path], failed: Sequence[tuple[str, str, Path]], runs_dir: str) -> None:
    """Print the table of a sweep's records, and fail if a job did.

    Args:
        places: Folders of all jobs.
        failed: Overrides, reason and folder of each job that failed.
        runs_dir: Where the folders lie.

    Raises:
        CompactHydraException: If there is one; the message lists them.
    """
    from finepruning.dashboard import show  # here, since --help has no table to print

    broken = {place for _, _, place in failed}
    found = [records.read(place) for place in places if place not in broken]
    show([record for record in found if record is not None])
    log.info("Runs: %s", Path(runs_dir).resolve())
    if failed:
        reasons = "\n".join(f"  {line}: {why}{_log_in(place)}" for line, why, place in failed)
        raise CompactHydraException(f"{len(failed)} of {len(places)} runs failed:\n{reasons}")


def stop(number: int, standing: str) -> NoReturn:
    """End a sweep that a signal stopped.

    Args:
        number: The signal's.
        standing: How far the sweep is.

    Raises:
        SystemExit: With the status that shells know the signal by.
    """
    log.info("Stopped by %s: %s.", signal.Signals(number).name, standing)
    log.info("The same command goes on with the rest.")
    sys.exit(128 + number)


def _log_in(place: Path) -> str:
    file = place / "run.log"  # a job that was refused has none
    return f" (see {file})" if file.exists() else ""

"""The composition root: a configuration becomes objects, stages, scores and a record.

Beside ``run.py`` and the launcher this is the only room that knows Hydra. What loads torch is imported inside
functions, so that ``--help`` and the parent of a sweep never do.
"""

import logging
import shlex
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from finepruning import record as records
from finepruning.pipeline import devices
from finepruning.pipeline.places import claim, finished_record
from finepruning.pipeline.refusals import Refused, ended_by_signals, refusals
from finepruning.pipeline.resolvers import attack_name
from finepruning.store import Store, read_sources

__all__ = ["Refused", "begin_store", "finished_record", "run"]

log = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Run one configuration and write its record; show the record if this run is finished already.

    Raises:
        Refused: If the configuration cannot be run; the message says why and which key to change.
        SystemExit: If a signal stopped it, with the status of a shell, 128 and the signal's number.
    """
    read_sources()  # before any of it is imported
    devices.keep_freed_memory()
    place = Path(HydraConfig.get().runtime.output_dir)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    with ended_by_signals(), refusals(traced=sweep):
        devices.check_groups(config)
        with devices.hidden_gpus(config.trainer):
            devices.check_processes(config.trainer, HydraConfig.get().launcher._target_ if sweep else None)
            if devices.rank(config.trainer) > 0:
                take_part(config)
                return
            record = finished_record(place, config)
            if record is not None:
                log.info("Finished earlier; overwrite=true runs it anew.")
                if devices.launched(config.trainer):
                    _dismiss(config)
            else:
                record = _new_record(place, config)
    if not sweep:
        from finepruning.dashboard import show  # here, since --help has no table to print

        show([record])
        log.info("Record: %s", place / records.FILE)


def _new_record(place: Path, config: DictConfig) -> dict[str, Any]:
    """Run the stages and write the record, a failed one if training diverges."""
    from finepruning.modules import DivergedError
    from finepruning.pipeline.build import build_parts
    from finepruning.pipeline.loggers import log_record, run_loggers
    from finepruning.pipeline.processes import together
    from finepruning.pipeline.stages import Run

    start = time.perf_counter()
    hydra = HydraConfig.get()
    about: dict[str, Any] = {
        "name": config.name,
        **{group: hydra.runtime.choices[group] for group in ("dataset", "model", "defense")},
        "attack": attack_name(hydra.runtime.choices),
        "seed": config.seed,
        "group": config.group,
        "command": shlex.join(["python", "run.py", *hydra.overrides.task]),
        "config": OmegaConf.to_container(config, resolve=True),
    }
    begin_store(config)
    parts = build_parts(config)
    claim(place, config)  # what cannot be built was never begun
    about |= records.environment()
    try:
        with together(config, take_part) as team:
            about["processes"] = team.size
            team.share(True)  # there is work
            with run_loggers(config, place, about) as loggers:
                outcome = Run(config, parts, place, loggers, team).outcome()
                record = _write(place, about | outcome, start)
                log_record(loggers, record, place)
    except DivergedError as error:
        _write(place, {**about, "status": "failed", "error": str(error), "seconds": {}}, start)
        raise Refused(f"{error} The record is marked failed: {place / records.FILE}") from error
    return record


def _write(place: Path, record: dict[str, Any], start: float) -> dict[str, Any]:
    """Write and return the record of a run that began at ``start``."""
    record["seconds"]["run"] = time.perf_counter() - start
    record["peak_memory_mb"] = records.peak_memory_mb()
    records.write(place, record)
    return record


def take_part(config: DictConfig) -> None:
    """Be one of the other processes of a run: make the stages with the first one, and write nothing."""
    import warnings

    from finepruning.modules import DivergedError
    from finepruning.pipeline.build import build_parts
    from finepruning.pipeline.processes import together
    from finepruning.pipeline.stages import Run

    devices.keep_freed_memory()
    logging.disable(logging.WARNING)  # the first process says it all
    warnings.simplefilter("ignore")
    with suppress(DivergedError), together(config) as team:  # the first process reports that one
        if team.share():
            begin_store(config)
            Run(config, build_parts(config), Path(config.runs_dir), [], team).stages()


def begin_store(config: DictConfig) -> None:
    """Make a store of the folder that data are packed into; one that can only be read stays as it is."""
    with suppress(OSError):
        Store(Path(config.store_dir)).begin()


def _dismiss(config: DictConfig) -> None:
    """Tell the other processes that a run is finished."""
    from finepruning.pipeline.processes import together

    with together(config) as team:
        team.share(False)

"""The composition root: a configuration becomes objects, stages, scores and a record.

Beside ``run.py`` and the launcher this is the only room that knows Hydra. What loads torch is imported inside
functions, so that ``--help`` and the parent of a sweep never do.
"""

import logging
import shlex
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from finepruning import record as records
from finepruning.pipeline import devices
from finepruning.pipeline.refusals import Refused, sentence
from finepruning.pipeline.resolvers import attack_name, choices_hash, file_hashes
from finepruning.store import read_sources

__all__ = ["Refused", "finished_record", "run"]

log = logging.getLogger(__name__)
CONFIG_FILE = "config.yaml"
LEFT_BY_RUNS = ("repaired", "report", "views")  # folders that a run writes when it ends


def run(config: DictConfig) -> None:
    """Run one configuration and write its record; show the record if this run is finished already.

    Raises:
        Refused: If the configuration cannot be run; the message says why and which key to change.
    """
    read_sources()  # before any of it is imported
    place = Path(HydraConfig.get().runtime.output_dir)
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
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
    except (InstantiationException, ValueError, TypeError, OSError) as error:
        wrapped = isinstance(error, InstantiationException)  # as Hydra wraps what a class's own check says
        cause = (error.__cause__ if wrapped else None) or error
        raise Refused(sentence(cause, traced=sweep)) from cause
    if not sweep:
        from finepruning.dashboard import show  # here, since --help has no table to print

        show([record])
        log.info("Record: %s", place / records.FILE)


def finished_record(place: Path, config: DictConfig) -> dict[str, Any] | None:
    """Return the record in a run's folder if this very run is finished there, and may stay.

    Raises:
        ValueError: If a run with another configuration, or with other files, has this name, or the record
            is damaged.
    """
    file = place / CONFIG_FILE
    if config.overwrite or not file.exists():
        return None
    theirs = _claim_of(file)
    if theirs["choices_hash"] != choices_hash(config):
        raise ValueError(
            f"The name {config.name!r} belongs to a run with another configuration ({file}). Choose "
            "another name, leave it to the default, or set overwrite=true to replace that run."
        )
    record = records.read(place)
    if record is None or record["status"] != "finished":
        return None
    _check_files(config, theirs["files"], file_hashes(config))
    return record


def _claim_of(file: Path) -> Mapping[str, Any]:
    """Return what a run's folder was taken for."""
    try:
        found = yaml.safe_load(file.read_text())
        return {"choices_hash": found["choices_hash"], "files": found.get("files", {})}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it to run again.") from error


def _claim(place: Path, config: DictConfig) -> None:
    """Take a run's folder for a run that is still to do; what an earlier one left there goes."""
    from finepruning.store import write_file

    (place / records.FILE).unlink(missing_ok=True)
    for folder in LEFT_BY_RUNS:
        shutil.rmtree(place / folder, ignore_errors=True)
    about = {
        "choices_hash": choices_hash(config),
        "files": file_hashes(config),
        "config": OmegaConf.to_container(config, resolve=True),
    }
    write_file(place / CONFIG_FILE, yaml.safe_dump(about, sort_keys=False).encode())


def _check_files(config: DictConfig, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise ValueError if a file is another one than the finished run read."""
    for key, content in now.items():
        if before.get(key, content) != content:
            raise ValueError(
                f"{key}={OmegaConf.select(config, key)} has another content than the run {config.name!r} "
                "read. Set overwrite=true to replace that run, or choose another name."
            )


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
    parts = build_parts(config)
    _claim(place, config)  # what cannot be built was never begun
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

    logging.disable(logging.WARNING)  # the first process says it all
    warnings.simplefilter("ignore")
    with suppress(DivergedError), together(config) as team:  # the first process reports that one
        if team.share():
            Run(config, build_parts(config), Path(config.runs_dir), [], team).stages()


def _dismiss(config: DictConfig) -> None:
    """Tell the other processes that a run is finished."""
    from finepruning.pipeline.processes import together

    with together(config) as team:
        team.share(False)

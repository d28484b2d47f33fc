"""The composition root: a configuration becomes objects, stages, scores and a record.

Beside ``run.py`` and the launcher this is the only room that knows Hydra. What loads torch is imported inside
functions, so that ``--help`` and the parent of a sweep never do.
"""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import CompactHydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from finepruning import record as records
from finepruning.pipeline.resolvers import choices_hash, file_hashes

__all__ = ["Refused", "run"]

log = logging.getLogger(__name__)
CONFIG_FILE = "config.yaml"


class Refused(CompactHydraException):
    """A configuration that cannot be run. Hydra prints the sentence, without a traceback."""


def run(config: DictConfig) -> None:
    """Run one configuration and write its record; show the record if this run is finished already.

    Raises:
        Refused: If the configuration cannot be run; the message says why and which key to change.
    """
    place = Path(HydraConfig.get().runtime.output_dir)
    try:
        record = _claim(place, config)
        if record is not None:
            log.info("Finished earlier; overwrite=true runs it anew.")
        else:
            record = _new_record(place, config)
    except InstantiationException as error:  # Hydra wraps what a class's own check says
        raise Refused(str(error.__cause__ or error)) from error
    except (ValueError, TypeError, OSError) as error:
        raise Refused(str(error)) from error
    if HydraConfig.get().mode == RunMode.RUN:
        from finepruning.dashboard import show  # here, since --help has no table to print

        show([record])
        log.info("Record: %s", place / records.FILE)


def _claim(place: Path, config: DictConfig) -> dict[str, Any] | None:
    """Take a run's folder; return the record if this very run is finished.

    Raises:
        ValueError: If a run with another configuration, or with other files, has this name.
    """
    mine, files = choices_hash(config), file_hashes(config)
    file = place / CONFIG_FILE
    if file.exists() and not config.overwrite:
        theirs = yaml.safe_load(file.read_text())
        if theirs["choices_hash"] != mine:
            raise ValueError(
                f"The name {config.name!r} belongs to a run with another configuration ({file}). Choose "
                "another name, leave it to the default, or set overwrite=true to replace that run."
            )
        record = records.read(place)
        if record is not None and record["status"] == "finished":
            _check_files(config, theirs.get("files", {}), files)
            return record
    (place / records.FILE).unlink(missing_ok=True)
    plain = OmegaConf.to_container(config, resolve=True)
    about = {"choices_hash": mine, "files": files, "config": plain}
    file.write_text(yaml.safe_dump(about, sort_keys=False))
    return None


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
    from finepruning.pipeline.loggers import run_loggers
    from finepruning.pipeline.stages import Run

    start = time.perf_counter()
    hydra = HydraConfig.get()
    about: dict[str, Any] = {
        "name": config.name,
        **{group: hydra.runtime.choices[group] for group in ("dataset", "model", "attack", "defense")},
        "seed": config.seed,
        "group": config.group,
        "command": " ".join(["python run.py", *hydra.overrides.task]),
        "config": OmegaConf.to_container(config, resolve=True),
    }
    parts = build_parts(config)
    about |= records.environment()
    try:
        with run_loggers(config, place, about) as loggers:
            outcome = Run(config, parts, place, loggers).outcome()
    except DivergedError as error:
        outcome = {"status": "failed", "error": str(error), "seconds": {}}
    outcome["seconds"]["run"] = time.perf_counter() - start
    record = {**about, **outcome, "peak_memory_mb": records.peak_memory_mb()}
    records.write(place, record)
    if record["status"] == "failed":
        raise Refused(f"{record['error']} The record is marked failed: {place / records.FILE}")
    return record

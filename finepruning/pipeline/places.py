"""The folder of a run: whose it is, whether the run is finished there, and what goes when it is run anew."""

import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from finepruning import record as records
from finepruning.pipeline.resolvers import choices_hash, file_hashes, folder_hashes
from finepruning.store.code import ROOMS

CONFIG_FILE = "config.yaml"
LEFT_BY_RUNS = ("repaired", "report", "views")  # folders that a run writes when it ends

log = logging.getLogger(__name__)


def finished_record(place: Path, config: DictConfig) -> dict[str, Any] | None:
    """Return the record in a run's folder if this very run is finished there, and may stay.

    Where images came, went or changed since in a folder of somebody's own, the run is to do again.

    Raises:
        ValueError: If the name leaves ``runs_dir``, a run with another configuration, or with other files,
            has it, or the record is damaged.
    """
    _check_name(config.name)
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
    if changed := _changed(theirs["files"], file_hashes(config)):
        key = changed[0]
        raise ValueError(
            f"{key}={OmegaConf.select(config, key)} has another content than the run {config.name!r} "
            "read. Set overwrite=true to replace that run, or choose another name."
        )
    if changed := _changed(theirs["files"], folder_hashes(config)):
        named = OmegaConf.select(config, changed[0])
        log.info("%s=%s has changed since %s; it is run again.", changed[0], named, config.name)
        return None
    return record


def _check_name(name: Any) -> None:
    """Raise ValueError if a run's folder would not be one inside ``runs_dir``."""
    inside = os.path.normpath("" if name is None else str(name))
    if inside == os.curdir or Path(inside).is_absolute() or Path(inside).parts[0] == os.pardir:
        raise ValueError(
            f"name={name} names no folder inside runs_dir. Choose another name, or leave it to the default; "
            "runs_dir says where runs lie."
        )


def _claim_of(file: Path) -> Mapping[str, Any]:
    """Return what a run's folder was taken for."""
    try:
        found = yaml.safe_load(file.read_text())
        return {"choices_hash": found["choices_hash"], "files": found.get("files", {})}
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}). Delete it to run again.") from error


def claim(place: Path, config: DictConfig) -> None:
    """Take a run's folder for a run that is still to do; what an earlier run left there goes.

    Where no run was before, nothing goes but a run's record.

    Raises:
        ValueError: If what lies there by the name of a run's file is another thing, or damaged.
    """
    from finepruning.store import write_file

    file = place / CONFIG_FILE
    theirs = _claim_of(file) if file.exists() else None
    chosen, files = choices_hash(config), file_hashes(config) | folder_hashes(config)
    if theirs is None:
        records.read(place)
    else:
        for folder in LEFT_BY_RUNS:
            shutil.rmtree(place / folder, ignore_errors=True)
        if theirs["choices_hash"] != chosen or _changed(theirs["files"], files):
            _remove_metrics(place)
    (place / records.FILE).unlink(missing_ok=True)
    plain = OmegaConf.to_container(config, resolve=True)
    about = {"choices_hash": chosen, "files": files, "config": plain}
    write_file(file, yaml.safe_dump(about, sort_keys=False).encode())


def _remove_metrics(place: Path) -> None:
    """Remove what trainings told of themselves: one whose stage is found in the store writes nothing anew."""
    from finepruning.pipeline.epochs import METRICS  # here, since it loads torch

    for stage in (*ROOMS, "clean"):
        for table in (place / stage).rglob(METRICS):
            table.unlink()


def _changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return the keys of files that are other ones than they were."""
    return [key for key, content in now.items() if before.get(key, content) != content]

"""Runs found in a folder: finished, failed and unfinished ones, and those that cannot be read."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from finepruning import record as records

CONFIG, LOG = "config.yaml", "run.log"  # what the pipeline and the launcher leave beside the record
DEPTH = 3  # folders below the given one that are searched; a run's own folders are not
QUIET_SECONDS = 900  # a run whose files have not changed for so long is taken for interrupted
TAIL = 2000  # characters of a log that are kept
GROUPS = ("dataset", "attack", "defense")
UNKNOWN = "?"  # a name that a run without a record does not tell
DEFAULT_NAME = re.compile(r"(.+?)-(.+?)-(.+?)-s(\d+)-[0-9a-f]{8}")


class Run(NamedTuple):
    """A run's folder and what is known of the run: its record, or its configuration while it has none."""

    folder: Path
    record: Mapping[str, Any]


class Skipped(NamedTuple):
    """A folder whose record cannot be read, and why."""

    name: str
    reason: str


def find_runs(root: Path) -> tuple[list[Run], list[Skipped]]:
    """Return the runs below a folder in the order of their names, and the folders that were skipped."""
    runs: list[Run] = []
    skipped: list[Skipped] = []
    for folder in run_folders(root):
        try:
            record = records.read(folder)
            runs.append(Run(folder, _unfinished(folder) if record is None else record))
        except Exception as error:  # a foreign record, or configuration, raises anything
            name = folder.name if folder == root else str(folder.relative_to(root))
            said = str(error).replace(f"{folder}/", "").strip() or type(error).__name__
            skipped.append(Skipped(name, said.splitlines()[0]))
    return runs, skipped


def run_folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield each folder that holds a record, or the configuration of a run that has none yet."""
    if (root / records.FILE).exists() or (root / CONFIG).exists():
        yield root
    elif depth and root.is_dir():
        for path in sorted(root.iterdir()):
            if path.is_dir() and not path.name.startswith("."):
                yield from run_folders(path, depth - 1)


def log_tail(folder: Path) -> str:
    """Return the end of a run's log, whole lines; empty without one."""
    try:
        with (folder / LOG).open("rb") as file:
            start = max(0, file.seek(0, 2) - TAIL)
            file.seek(start)
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    return text.split("\n", 1)[-1] if start else text


def _unfinished(folder: Path) -> dict[str, Any]:
    """Describe a run without a record from its configuration, its name and its log."""
    found = yaml.load((folder / CONFIG).read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(found, dict) or not isinstance(found.get("config"), dict):
        raise ValueError(f"{CONFIG} is not a run's configuration.")
    config = json.loads(json.dumps(found["config"], default=str))  # plain values, as a record's
    name = str(config.get("name", folder.name))
    parts = DEFAULT_NAME.fullmatch(name)
    named = dict(zip(GROUPS, parts.groups(), strict=False)) if parts else dict.fromkeys(GROUPS, UNKNOWN)
    status, error = _state(folder)
    about = {"name": name, "model": UNKNOWN, "seed": config.get("seed"), "config": config}
    return {**about, **named, "status": status, "error": error}


def _state(folder: Path) -> tuple[str, str | None]:
    """Tell a run that goes on from one that was interrupted and from one whose log ends in an error."""
    lines = [line for line in log_tail(folder).splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines) and re.match(r"[\w.]+(:|$)", lines[-1]):
        return "failed", lines[-1]
    quiet = quiet_seconds(folder)
    if quiet < QUIET_SECONDS:
        return "running", None
    return "interrupted", f"no record, and no file has changed for {quiet / 3600:.1f} hours"


def quiet_seconds(folder: Path) -> float:
    """Return for how long no file of a run has changed."""
    changed = 0.0
    for path in (folder, *folder.rglob("*")):
        with suppress(OSError):  # it has just been removed
            changed = max(changed, path.stat().st_mtime)
    return time.time() - changed

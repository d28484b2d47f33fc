"""What a run leaves behind: one JSON file, written once. Tables, W&B and the dashboard are made from it."""

import functools
import importlib.metadata
import json
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from finepruning.store import write_file

SCHEMA, OLDEST_SCHEMA = 1, 1
IN_EACH = ("status", "dataset", "model", "attack", "defense", "config")  # of finished and of failed runs
FILE = "record.json"
STANDS_OUT = "something stands out"  # an inspection's verdict
PACKAGES = ("finepruning", "torch", "torchvision", "pytorch-lightning", "hydra-core", "torchmetrics", "numpy")


def write(directory: Path, record: Mapping[str, Any]) -> None:
    """Write ``record.json``, which is there whole or not at all, also after a power cut."""
    text = json.dumps({"schema": SCHEMA, **record}, indent=1, allow_nan=False)
    write_file(directory / FILE, text.encode())


def read(directory: Path) -> dict[str, Any] | None:
    """Return the record of a run's folder; None when there is none."""
    path = directory / FILE
    if not path.exists():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if record["schema"] > SCHEMA:
            raise ValueError(
                f"{path} is of schema {record['schema']}, this version reads up to {SCHEMA}. Update it."
            )
        if record["schema"] < OLDEST_SCHEMA:
            raise ValueError(
                f"{path} is of schema {record['schema']}, too old: {OLDEST_SCHEMA} to {SCHEMA} are read."
            )
        if missing := [key for key in IN_EACH if key not in record]:
            raise ValueError(
                f"{path} is not a record of a run: it has no {', '.join(missing)}. Move it away."
            )
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it to run again.") from error
    return record


def read_all(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of runs' folders, or of folders of such; and a sentence for each that is damaged.

    In each folder the oldest comes first.
    """
    found, problems = [], []
    for folder in folders:
        for path in sorted(folder.rglob(FILE), key=changed):
            try:
                record = read(path.parent)
                if record is not None:
                    found.append(record)
            except (ValueError, OSError) as error:
                problems.append(str(error))
    return found, problems


def changed(path: Path) -> tuple[float, Path]:
    """Return what sorts files by when they were last changed."""
    try:
        return path.stat().st_mtime, path
    except OSError:  # its run has just begun anew
        return 0.0, path


def scored_rungs(record: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Return a ladder's rungs, each with its true scores; none unless all were scored (``stress=rungs``)."""
    scored = (record.get("stress") or {}).get("rungs") or []
    return list(zip(record["ladder"]["rungs"], scored, strict=True)) if scored else []


def channels_pruned(record: Mapping[str, Any]) -> int | None:
    """Return how many channels a defense pruned; None if it pruned none and walked no curve."""
    if record.get("pruning"):
        return sum(bool(step["pruned"]) for step in record["pruning"])
    return sum(len(channels) for channels in (record.get("pruned") or {}).values()) or None


def environment() -> dict[str, Any]:
    """Return where a run happens: commit, versions, hardware."""
    import torch  # here, so that reading records never loads it

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": gpus,
        },
    }


@functools.cache
def commit() -> str | None:
    """Return the commit of this checkout, ``+changes`` if files differ from it; None outside a checkout.

    It is that of the first call in this process or in the one that it was forked from.
    """

    def git(*arguments: str) -> str:
        root = Path(__file__).parent.parent
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory_mb() -> float:
    """Return the largest resident memory that this process had, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)

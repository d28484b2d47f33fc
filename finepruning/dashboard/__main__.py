"""Build the dashboard: ``python -m finepruning.dashboard runs/`` writes ``runs/dashboard.html``."""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finepruning import record as records
from finepruning.dashboard.data import page_data
from finepruning.dashboard.page import render, write_page
from finepruning.dashboard.pictures import Pictures
from finepruning.dashboard.reading import (
    CONFIG,
    LOG,
    QUIET_SECONDS,
    find_runs,
    quiet_seconds,
    run_folders,
)
from finepruning.dashboard.verdict import BUDGET

FILE = "dashboard.html"
WATCH_SECONDS = 3.0  # between looks at the files
RELOAD_SECONDS = 10.0  # between loads of an open page


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the page once, or again and again; return the exit status."""
    options = _parser().parse_args(arguments)
    root: Path = options.runs
    file: Path = options.output or root / FILE
    if not root.is_dir():
        return _refuse(f"{root} is not a folder. Name the folder that runs_dir names, usually runs.")
    if not file.parent.is_dir():
        return _refuse(f"{file.parent} is not a folder. Name another place with --output.")
    if not 0 <= options.budget <= 1:
        return _refuse(f"--budget {options.budget} is outside [0, 1]. It is a share: 0.01 is one point.")
    if options.watch:
        return watch(root, file, options.budget)
    try:
        print(build(root, file, options.budget))
    except (ValueError, OSError) as error:
        return _refuse(str(error))
    return 0


def watch(root: Path, file: Path, budget: float) -> int:
    """Build the page whenever a run's files have changed, or no longer do, until Ctrl-C."""
    seen = None
    try:
        while True:
            if (state := _state(root)) != seen:
                seen = state
                try:
                    print(build(root, file, budget, reload=True), flush=True)
                except (ValueError, OSError) as error:  # the first run has not begun, or the disk is full
                    print(error, flush=True)
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        return 0


def _state(root: Path) -> dict[Path, float]:
    """Return when each file of the page was changed, and which unfinished runs have fallen quiet."""
    folders = list(run_folders(root))
    files = [folder / name for folder in folders for name in (records.FILE, CONFIG, LOG)]
    unfinished = [folder for folder in folders if not (folder / records.FILE).exists()]
    times = {folder: float(quiet_seconds(folder) >= QUIET_SECONDS) for folder in unfinished}
    for path in files:
        with suppress(OSError):  # it is not there, or a run has just begun anew
            times[path] = path.stat().st_mtime
    return times


def build(root: Path, file: Path, budget: float, reload: bool = False) -> str:
    """Build the page of all runs below a folder and return a sentence about it.

    Args:
        root: The folder.
        file: The page.
        budget: Loss of clean accuracy that a defense may cost, a fraction.
        reload: Whether the page loads itself anew while it is open.

    Raises:
        ValueError: If there is no run in the folder.
    """
    runs, skipped = find_runs(root)
    if not runs and not skipped:
        raise ValueError(
            f"No runs in {root}: no folder there holds a record.json. Run one first: "
            f"python run.py attack=badnet defense=fineprune runs_dir={root}"
        )
    data = page_data(runs, skipped, budget, Pictures())
    about = {
        "title": root.resolve().name,
        "folder": str(root),
        "counted": counted(data),
        "built": time.strftime("%Y-%m-%d %H:%M"),
        "watch": RELOAD_SECONDS if reload else None,
    }
    write_page(render(data, about), file)
    return f"{file}: {counted(data)}"


def counted(data: Mapping[str, Any]) -> str:
    """Return how many records there are, how many runs are unfinished, and which folders were skipped."""
    unfinished = sum(run["status"] in ("running", "interrupted") for run in data["runs"])
    names = ", ".join(skip["name"] for skip in data["skipped"])
    parts = [f"{len(data['runs']) - unfinished} records"]
    parts += [f"{unfinished} unfinished"] if unfinished else []
    return ", ".join([*parts, f"{len(data['skipped'])} skipped{names and ': ' + names}"])


def _refuse(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m finepruning.dashboard", description="One page from records.")
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"), help="folder of the runs")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"the page; by default RUNS/{FILE}")
    parser.add_argument(
        "--watch", action="store_true", help="build it again while runs go on; Ctrl-C ends it"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET,
        metavar="SHARE",
        help=f"clean accuracy that a defense may cost: {BUDGET}",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

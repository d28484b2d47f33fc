"""What the dashboard costs for 200 runs: the whole command, the page's size, the first paint in Chromium."""

import functools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT
from tests.dashboard_runs import write_many

RUNS, ROUNDS = 200, 3


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()  # kept as long as the process lives
    write_many(Path(folder.name), RUNS)
    return folder


def _seconds() -> float:
    """Median of the whole command, with Python's start, in a process of its own."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        command = [sys.executable, "-m", "finepruning.dashboard", _folder().name]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _page() -> Path:
    page = Path(_folder().name) / "dashboard.html"
    if not page.exists():
        _seconds()
    return page


def _first_paint() -> float:
    """Median of the first contentful paint that Chromium itself measured; NaN without Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        return float("nan")
    from playwright.sync_api import sync_playwright

    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime / 1000"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        times = []
        for _ in range(ROUNDS):
            page = browser.new_page()
            page.goto(_page().as_uri())
            page.wait_for_selector("body[data-ready]")
            times.append(page.evaluate(paint))
            page.close()
        browser.close()
    return statistics.median(times)


FIGURES: dict[str, Callable[[], float]] = {
    "dashboard.200_runs_s": _seconds,
    "dashboard.200_runs_mb": lambda: _page().stat().st_size / 1e6,
    "dashboard.first_paint_s": _first_paint,
}

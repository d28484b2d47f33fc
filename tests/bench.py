"""Benchmarks: ``python -m tests.bench [PREFIX]`` prints one line per figure, ``name value``.

Each ``bench_*.py`` beside this file has ``FIGURES``: a name for each function that measures. Ratios are
measured in one run, both sides in turns, since machines are noisy.
"""

import importlib
import sys
from pathlib import Path

from finepruning.pipeline.devices import keep_freed_memory


def main(prefix: str = "") -> None:
    """Measure the figures whose name begins with ``prefix``."""
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        figures = importlib.import_module(f"tests.{path.stem}").FIGURES
        for name, measure in figures.items():
            if name.startswith(prefix):
                keep_freed_memory()  # as runs do
                print(f"{name} {measure():.4g}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What the packed cache saves."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from finepruning.data import pack
from finepruning.data.packed import Source
from finepruning.data.signs import GTSRB


def cold_over_warm(make: Callable[[], Source], cache_dir: Path) -> float:
    """Return how many times longer the first start takes, which decodes, than the next ones, which do not.

    Of three such starts the median counts, since each takes well under a second.

    Args:
        make: Makes the source, finding its files as a new process would.
        cache_dir: An empty folder.
    """
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        pack(make(), cache_dir)
        seconds.append(time.perf_counter() - start)
    return seconds[0] / statistics.median(seconds[1:])


def gtsrb_cold_over_warm() -> float:
    """Measure GTSRB, 51,839 files, in a fresh folder."""
    with tempfile.TemporaryDirectory() as folder:
        return cold_over_warm(lambda: GTSRB("data", [32, 32], "fail"), Path(folder))


FIGURES = {"data.gtsrb.cold_over_warm": gtsrb_cold_over_warm}

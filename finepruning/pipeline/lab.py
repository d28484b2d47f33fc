"""What the pruning lab's sweep leaves beside its runs."""

import logging
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from finepruning import record as records

log = logging.getLogger(__name__)


class WriteLab(Callback):
    """Write the lab's table and curve at the end of its sweep, from all finished runs of its network.

    Args:
        folder: Name of the folder in ``runs_dir`` that they go to.
    """

    same = ("dataset", "model", "attack", "suspect")  # what runs of one network have in common

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Read the records and write both files."""
        from finepruning.dashboard.lab import write_lab  # here, since --help has nothing to draw

        runs_dir = Path(config.runs_dir)
        found, problems = records.read_all([runs_dir])
        for problem in problems:
            log.warning(problem)
        wanted = {key: OmegaConf.to_container(config[key], resolve=True) for key in self.same}
        runs = [
            run
            for run in found
            if run["status"] == "finished"
            and "goodnet" in run["scores"]
            and (run["config"].get("defense") or {}).get("max_drop") is not None
            and all(run["config"].get(key) == value for key, value in wanted.items())
        ]
        if runs:
            write_lab(runs, runs_dir / self.folder)
            log.info("Table and curve: %s", runs_dir / self.folder)

"""What is checked before any job starts."""

import os
import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class CheckPlace(Callback):
    """Stop before anything else where the runs' folder cannot be written."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check ``runs_dir``."""
        self._check(config.runs_dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check ``runs_dir``."""
        self._check(config.runs_dir)

    @staticmethod
    def _check(runs_dir: str) -> None:
        try:
            Path(runs_dir).mkdir(parents=True, exist_ok=True)
            probe = Path(runs_dir) / f".writable.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            # SystemExit, since Hydra turns a callback's other exceptions into warnings
            sys.exit(
                f"runs_dir={runs_dir} cannot be written ({error.strerror}). Set runs_dir to another folder."
            )

"""What is checked before any job starts."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class CheckPlace(Callback):
    """Stop before anything else where an override contradicts another one or ``runs_dir`` is not writable."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Check overrides and ``runs_dir``."""
        check_overrides([*config.hydra.overrides.hydra, *config.hydra.overrides.task])
        self._check(config.runs_dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Check overrides and ``runs_dir``."""
        self.on_run_start(config)

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


def check_overrides(overrides: Sequence[str]) -> None:
    """Stop where two overrides set the same key, of which Hydra would take the last without a word.

    Raises:
        SystemExit: With the sentence; Hydra turns a callback's other exceptions into warnings.
    """
    first: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+")
        if override.is_delete():  # ~key, after which key can be set anew
            continue
        given = str(override.input_line)
        if key in first:
            sys.exit(f"{key} is given twice: {first[key]} and {given}. Keep one of them.")
        first[key] = given

"""What is kept after each epoch: a checkpoint to go on from, and a row of metrics."""

import csv
import io
import logging
import os
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint

from finepruning.store import LAST, checksum, sync, write_file

log = logging.getLogger(__name__)
METRICS = "metrics.csv"
CHECKSUMS = f"{LAST}.sha256"


class KeepEpochs(Checkpoint):
    """Keep the last epoch's checkpoint, and one row of metrics for every epoch, through any interruption.

    Lightning's own callback and logger write both in place, and the logger drops what an interrupted attempt
    wrote. Here the rows are part of the checkpoint, and both files are replaced in one step.

    Args:
        directory: The stage's folder; its ``last.ckpt`` is replaced after each epoch.
        metrics: The folder of ``metrics.csv``.
    """

    def __init__(self, directory: Path, metrics: Path) -> None:
        self.directory = directory
        self.metrics = metrics
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the epoch's row and write both files."""
        values = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
        self.rows.append({"epoch": trainer.current_epoch, "step": trainer.global_step, **values})
        beside = self.directory / f".{LAST}.{os.getpid()}"
        try:
            trainer.save_checkpoint(beside)
            if trainer.is_global_zero:
                sync(beside)
                # of the epoch before, too: the process may end before the checkpoint is in its place
                sums = [checksum(path) for path in (beside, self.directory / LAST) if path.exists()]
                write_file(self.directory / CHECKSUMS, "\n".join(sums).encode())
                beside.replace(self.directory / LAST)
                sync(self.directory)
        finally:
            beside.unlink(missing_ok=True)
        self._write(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the rows of an earlier attempt, which the run's folder may have lost."""
        if self.rows and trainer.is_global_zero:
            log.info("Going on after epoch %d.", len(self.rows))
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not self.rows or not trainer.is_global_zero:
            return
        text = io.StringIO()
        names = dict.fromkeys(name for row in self.rows for name in row)
        table = csv.DictWriter(text, names, lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows)
        self.metrics.mkdir(parents=True, exist_ok=True)
        write_file(self.metrics / METRICS, text.getvalue().encode())

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the rows of a checkpoint."""
        self.rows = list(state_dict["rows"])


def last_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint that a training goes on from; None if there is none, or it is damaged."""
    path, sums = directory / LAST, directory / CHECKSUMS
    if not path.exists():
        return None
    if sums.exists() and checksum(path).encode() in sums.read_bytes().split():
        return path
    log.warning("%s is damaged; this training starts anew.", path)
    path.unlink()
    return None

"""Where metrics go beside the run's own CSV files."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger

from finepruning.pipeline.build import build


@contextmanager
def run_loggers(config: DictConfig, place: Path, about: Mapping[str, Any]) -> Iterator[list[Logger]]:
    """Give the loggers of a run beside CSV, and finish them in every case."""
    if not config.get("logger"):
        yield []
        return
    tracked = None
    if config.logger["_target_"].endswith("WandbLogger"):
        tracked = wandb.init(
            project=config.logger.project,
            mode=config.logger.mode,
            name=about["name"],
            id=hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:16],  # a rerun goes on with it
            resume="allow",
            group=about["group"],
            job_type=about["defense"],
            tags=[about["dataset"], about["attack"], about["defense"]],
            dir=place,
            settings=wandb.Settings(silent=True, console="off", x_disable_stats=True),
        )
    try:
        logger: Logger = build(config.logger, **({"experiment": tracked} if tracked else {}))
        shown = ("dataset", "model", "attack", "defense", "seed", "config")
        logger.log_hyperparams({key: about[key] for key in shown})
        yield [logger]
    finally:
        if tracked:
            tracked.finish()

"""Training of one stage: Lightning's trainer, and going on after an interruption."""

import copy
import sys
from pathlib import Path
from typing import Any

import torch.distributed
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from pytorch_lightning.loggers import Logger

from finepruning.data import AttackerData, DefenderData
from finepruning.modules import Classifier
from finepruning.pipeline.epochs import KeepEpochs, last_checkpoint
from finepruning.pipeline.targets import build
from finepruning.pruning.masks import MASK
from finepruning.store import WEIGHTS, save_weights

OUR_TRAINER_KEYS = ("threads", "channels_last", "compile")  # the others are Lightning's
QUIET = {"enable_model_summary": False, "num_sanity_val_steps": 0, "log_every_n_steps": 50}  # unless wanted
FIXED = ("logger", "callbacks", "use_distributed_sampler")  # what a run's own parts decide


def build_trainer(
    config: DictConfig, loggers: list[Logger], callbacks: list[Callback], **changes: Any
) -> Trainer:
    """Build the trainer of one stage."""
    wanted = {key: value for key, value in config.trainer.items() if key not in OUR_TRAINER_KEYS}
    bar = wanted.pop("enable_progress_bar", sys.stdout.isatty())
    trainer: Trainer = build(
        OmegaConf.create({**QUIET, **wanted}),
        callbacks=[*callbacks, RichProgressBar()] if bar else callbacks,
        logger=loggers,
        enable_progress_bar=bar,
        use_distributed_sampler=False,  # the data modules share out batches themselves
        **changes,
    )
    return trainer


def check_trainer(trainer: DictConfig) -> None:
    """Check that the configuration leaves alone what a run decides itself.

    Raises:
        ValueError: If it does not.
    """
    if named := [key for key in FIXED if key in trainer]:
        raise ValueError(
            f"trainer.{named[0]} has no effect: a run's own parts decide it. Leave it out; loggers are "
            "chosen by logger=, callbacks by defense=."
        )


def check_world_size(trainer: Trainer) -> None:
    """Check that the processes which the trainer counts on are there.

    Raises:
        ValueError: If their number is another one; training would silently use a part of the images.
    """
    there = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if there != trainer.world_size:
        raise ValueError(
            f"The trainer counts on {trainer.world_size} processes, but {there} are connected. Make "
            "trainer.devices times trainer.num_nodes what was started."
        )


class _CheckMasks(Callback):
    """Refuse masks on layers that ``sync_batchnorm`` replaces: they would be lost."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look when all others have put theirs on, and nothing is replaced yet."""
        masked = [name.removesuffix(MASK) for name, _ in pl_module.named_buffers() if name.endswith(MASK)]
        lost = [layer for layer in masked if hasattr(pl_module.get_submodule(layer), "running_mean")]
        if lost:
            named = ", ".join(layer.removeprefix("network.") for layer in lost)
            raise ValueError(
                f"trainer.sync_batchnorm=true cannot keep the mask of {named}. Choose "
                "defense.layers behind BatchNorm, or another defense, or set it to false."
            )


def fit(
    config: DictConfig,
    place: Path,
    loggers: list[Logger],
    module: Classifier,
    data: AttackerData | DefenderData,
    callbacks: list[Callback],
    directory: Path,
    logs: str | None = None,
    **changes: Any,
) -> None:
    """Fit from the last finished epoch that ``directory`` holds, then write the network there.

    Args:
        config: The run's configuration.
        place: The run's folder.
        loggers: Of the run.
        module: What is trained.
        data: On what.
        callbacks: What acts while it is.
        directory: The stage's folder.
        logs: Where metrics go in the run's folder; by default named like the stage.
        changes: Of the trainer's configuration.
    """
    kept = KeepEpochs(directory, place / (logs or directory.parent.name))
    synchronised = bool(config.trainer.get("sync_batchnorm"))
    checks = [_CheckMasks()] if synchronised else []
    trainer = build_trainer(config, loggers, [*callbacks, kept, *checks], **changes)
    check_world_size(trainer)
    network = module.network
    if synchronised:
        module.network = copy.deepcopy(network)  # Lightning replaces its BatchNorm layers, for good
    module.train()
    last = trainer.strategy.broadcast(last_checkpoint(directory))  # the first process's folder
    trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt
    save_weights(module.network, directory / WEIGHTS)
    module.network = network

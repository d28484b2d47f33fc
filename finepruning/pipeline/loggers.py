"""Where a run is shown beside its own record and CSV files: W&B, TensorBoard or MLflow."""

import hashlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from filelock import FileLock
from omegaconf import DictConfig
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from finepruning.pipeline.targets import build
from finepruning.record import channels_pruned

SHOWN = ("dataset", "model", "attack", "defense", "seed", "config")
EXTRAS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}  # a class's package and extra
OF_WANDB = ("_target_", "project", "entity", "mode")
CURVE = ("validation_accuracy", "clean_accuracy", "attack_success_rate", "robust_accuracy")


@contextmanager
def run_loggers(config: DictConfig, place: Path, about: Mapping[str, Any]) -> Iterator[list[Logger]]:
    """Give the loggers of a run beside CSV, and finish them in every case.

    Raises:
        ValueError: If the logger's package is not installed.
    """
    if not config.get("logger") or rank_zero_only.rank:  # type: ignore[attr-defined]
        yield []
        return
    kind = config.logger["_target_"].rsplit(".", 1)[-1]
    package = EXTRAS.get(kind)
    if package and importlib.util.find_spec(package) is None:
        raise ValueError(
            f"logger={package} needs a package that is not installed: pip install -e "
            f"'.[{package}]', or choose logger=wandb or logger=none."
        )
    more = {"WandbLogger": _start_wandb, "MLFlowLogger": _prepare_mlflow}.get(kind, lambda *_: {})
    options = more(config, place, about)
    try:
        logger: Logger = build(config.logger, **options)
        if not isinstance(logger, TensorBoardLogger):  # it takes them with the final scores
            logger.log_hyperparams({key: about[key] for key in SHOWN})
        yield [logger]
    except BaseException:
        if kind == "WandbLogger":
            wandb.finish(exit_code=1)
        raise
    if kind == "WandbLogger":
        wandb.finish()


def log_record(loggers: list[Logger], record: Mapping[str, Any], place: Path) -> None:
    """Give the loggers what a record says: final scores, pruning curve and, for W&B, tables and pictures."""
    final = final_values(record)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            _log_wandb(logger.experiment, record, place)
            continue
        for step in record["pruning"]:
            logger.log_metrics(_curve_values(step), step["channels_pruned"])
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams({key: record[key] for key in SHOWN}, metrics=final)
        else:
            logger.log_metrics(final)
        logger.finalize("success")


def final_values(record: Mapping[str, Any]) -> dict[str, float]:
    """Return a record's numbers under plain names, such as ``test/suspect/clean_accuracy``."""
    scores = record["scores"]
    values = {
        f"test/{network}/{name}": found[name]
        for network, found in scores.items()
        for name in ("clean_accuracy", "attack_success_rate", "robust_accuracy")
    }
    for name, key in (("clean_accuracy", "clean_accuracy_drop"), ("attack_success_rate", "attack_reduction")):
        before, after = (scores[network][name] for network in ("suspect", "defended"))
        values[f"test/{key}"] = None if before is None or after is None else before - after
    values["channels_pruned"] = pruned = channels_pruned(record)
    if record["pruning"] and pruned is not None:
        values["share_pruned"] = pruned / (len(record["pruning"]) - 1)
    values |= {f"seconds/{stage}": seconds for stage, seconds in record["seconds"].items()}
    return {name: float(value) for name, value in values.items() if value is not None}


def _curve_values(step: Mapping[str, Any]) -> dict[str, float]:
    return {f"curve/{name}": step[name] for name in CURVE if step[name] is not None}


def _start_wandb(config: DictConfig, place: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Start W&B's run: one a job, offline by default.

    Raises:
        ValueError: If the configuration has a key that nothing would come of.
    """
    if unknown := sorted(set(config.logger) - set(OF_WANDB)):
        raise ValueError(
            f"logger.{unknown[0]} has no effect: a run's name, group and tags are its own. Keys of "
            f"logger=wandb are {', '.join(OF_WANDB[1:])}."
        )
    run = wandb.init(
        project=config.logger.project,
        entity=config.logger.entity,
        mode=config.logger.mode,
        name=about["name"],
        id=hashlib.sha256(str(place.resolve()).encode()).hexdigest()[:16],  # a rerun goes on with it
        resume="allow",
        group=about["group"],
        job_type=about["defense"],
        tags=[about["dataset"], about["attack"], about["defense"]],
        dir=place,
        settings=wandb.Settings(
            silent=True,
            console="off",
            x_disable_stats=True,
            x_save_requirements=False,
            x_transaction_log_flush_interval=1,  # seconds; by default a killed run loses up to 15
        ),
    )
    run.define_metric("curve/channels_pruned", summary="none")
    run.define_metric("curve/*", step_metric="curve/channels_pruned", summary="none")
    return {"experiment": run}


def _log_wandb(run: Any, record: Mapping[str, Any], place: Path) -> None:
    steps = record["pruning"]
    shown: dict[str, Any] = {
        name: wandb.Image(str(place / file)) for name, file in record.get("views", {}).items()
    }
    if steps:
        columns: list[str | int] = ["channels_pruned", "layer", "number", "pruned", *CURVE]
        shown["pruning_steps"] = wandb.Table(
            columns, [[step[column] for column in columns] for step in steps]
        )
        lines = [name for name in CURVE if steps[0][name] is not None]
        shown["pruning_curve"] = wandb.plot.line_series(
            [step["channels_pruned"] for step in steps],
            [[step[name] for step in steps] for name in lines],
            keys=lines,
            title="Pruning curve",
            xname="channels pruned",
        )
    for network, counts in record.get("confusion", {}).items():
        pairs = [(i, j) for i, row in enumerate(counts) for j, count in enumerate(row) for _ in range(count)]
        shown[f"confusion/{network}"] = wandb.plot.confusion_matrix(
            y_true=[i for i, _ in pairs],
            preds=[j for _, j in pairs],
            class_names=[str(number) for number in range(len(counts))],
            title=f"Clean test images, {network}",
        )
    for step in steps:
        run.log({"curve/channels_pruned": step["channels_pruned"], **_curve_values(step)})
    run.log(shown)
    run.summary.update(final_values(record) | {"dead": record["dead"], "oracle": record["oracle"]})


def _prepare_mlflow(config: DictConfig, _: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Make MLflow's experiment, once for all processes, and name the run."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs packages and half a minute
    tags = {key: str(about[key]) for key in ("dataset", "attack", "defense", "seed", "group")}
    options = {"run_name": about["name"], "tags": tags}
    folder = Path(config.runs_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".mlflow.lock"):
        logger: MLFlowLogger = build(config.logger, **options)
        return options | {"run_id": logger.run_id}

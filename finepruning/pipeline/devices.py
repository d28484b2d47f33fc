"""What a configuration and the environment say about a run's processes, read without loading torch."""

import ctypes
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
GPUS = ("gpu", "cuda")  # names of the accelerator
BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
STARTS_ITSELF = ("ddp_spawn", "ddp_fork", "ddp_notebook")
SHARDING = ("fsdp", "deepspeed", "model_parallel")  # strategies that no process holds a whole network with
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT = 2**30  # bytes of the largest tensor that uses freed memory again, and of what is kept free at most


def check_groups(config: Mapping[str, Any] | DictConfig) -> None:
    """Check that the groups are there that a run is planned with.

    Raises:
        ValueError: If one is missing, or a key of the trainer is.
    """
    for group, key in (("trainer", "max_epochs"), ("defender", "fraction")):
        found = config.get(group)
        if not isinstance(found, Mapping):
            raise ValueError(
                f"{group}={found} leaves a run without the keys of {group}. Leave it as conf/ has it, or "
                f"change one of its keys, such as {group}.{key}."
            )
    for key in ("accelerator", "devices"):
        if key not in config["trainer"]:
            raise ValueError(f"trainer.{key} is missing. Leave it as conf/trainer/ has it, or set another.")


def several(trainer: DictConfig) -> bool:
    """Whether a trainer may need more than one process; ``devices=auto`` may or may not."""
    return bool(trainer.devices != 1 or trainer.get("num_nodes", 1) != 1)


def threads(trainer: Mapping[str, Any] | DictConfig) -> int:
    """Return how many cores each of a trainer's processes keeps busy.

    Raises:
        ValueError: If that is no number of cores.
    """
    wanted = trainer.get("threads")
    if not isinstance(wanted, int) or isinstance(wanted, bool) or wanted < 1:
        raise ValueError(f"trainer.threads={wanted} is no number of cores. Set it to 1 or more.")
    return wanted


def launched(trainer: DictConfig, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun or SLURM started this process as one of several of a run."""
    by_slurm = int(environment.get("SLURM_NTASKS", 1)) > 1
    return several(trainer) and ("TORCHELASTIC_RUN_ID" in environment or by_slurm)


def keep_freed_memory() -> None:
    """Let glibc use freed memory again, in place of giving it back: else each large tensor is of new pages.

    Filling these takes a part of the time of training on a CPU (``make bench ONLY=train.gtsrb.kept``).
    Other C libraries have no such switch, and nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for switch in (TRIM_THRESHOLD, MMAP_THRESHOLD):
        mallopt(switch, KEPT)


@contextmanager
def hidden_gpus(trainer: DictConfig, environment: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Let a run on the CPU see no GPU; who only asks for one starts CUDA, which fails with an old driver."""
    before = environment.get(VISIBLE)
    if trainer.accelerator == "cpu":
        environment[VISIBLE] = ""
    try:
        yield
    finally:
        if before is None:
            environment.pop(VISIBLE, None)
        else:
            environment[VISIBLE] = before


def rank(trainer: DictConfig, environment: Mapping[str, str] = os.environ) -> int:
    """Return which process of its run this one is; 0 leads."""
    if not launched(trainer, environment):
        return 0
    return int(environment.get("RANK") or environment.get("SLURM_PROCID") or 0)


def check_processes(
    trainer: DictConfig, launcher: str | None, environment: Mapping[str, str] = os.environ
) -> None:
    """Check that a run's processes can be started as asked for.

    Args:
        trainer: The configuration's ``trainer``.
        launcher: Target of the launcher of this sweep; None for a single run.
        environment: Variables of the environment.

    Raises:
        ValueError: If they cannot, with the reason.
    """
    nodes, strategy = trainer.get("num_nodes", 1), str(trainer.get("strategy", "auto"))
    torchrun = "TORCHELASTIC_RUN_ID" in environment
    if strategy.startswith(SHARDING):
        raise ValueError(
            f"trainer.strategy={strategy} spreads a network over processes, and pruning, scores and stages "
            "need it whole. Use trainer.strategy=ddp: each network here fits on one GPU."
        )
    if torchrun and launcher is not None:
        raise ValueError(
            "torchrun starts the processes of one run; of a sweep it would start every run several times. "
            "Leave torchrun out: with -m each run starts trainer.devices processes itself."
        )
    if torchrun and trainer.devices not in ("auto", -1, "-1"):
        started, each = int(environment["WORLD_SIZE"]), _count(trainer.devices)
        if started != each * nodes:
            raise ValueError(
                f"torchrun started {started} processes, but trainer.devices={each} times trainer.num_nodes="
                f"{nodes} is {each * nodes}. Use trainer=ddp (or ddp_cpu) and equal numbers."
            )
    if not several(trainer):
        return
    if launcher == BASIC_LAUNCHER:
        raise ValueError(
            "hydra/launcher=basic runs all jobs in one process, which keeps the process group of its first "
            f"job; trainer.devices={trainer.devices} would train on a part of the images. Use "
            "hydra/launcher=local, or trainer.devices=1."
        )
    if strategy.startswith(STARTS_ITSELF):
        raise ValueError(
            f"trainer.strategy={strategy} starts processes in the middle of a run. Use trainer.strategy=ddp: "
            "processes are started at the beginning of the run."
        )
    if nodes != 1 and not launched(trainer, environment):
        raise ValueError(
            f"trainer.num_nodes={nodes}, but only this process was started. Start the run on each node with "
            "torchrun or srun, or set trainer.num_nodes=1."
        )
    if trainer.get("sync_batchnorm") and trainer.accelerator == "cpu":
        raise ValueError("trainer.sync_batchnorm=true works on GPUs only. Set it to false on a CPU.")


def _count(devices: object) -> int:
    """Return how many devices ``2``, ``"2"`` or ``[0, 1]`` are."""
    return int(devices) if isinstance(devices, int | str) else len(list(devices))  # type: ignore[call-overload]

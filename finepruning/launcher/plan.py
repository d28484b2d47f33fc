"""What a sweep does next, as plain decisions: which job starts, on which GPUs, how many at a time."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from omegaconf import DictConfig

from finepruning.pipeline.devices import GPUS, threads
from finepruning.store import keep_order

# what decides a suspect, beside its share of images: pipeline.suspects.SUSPECT_KEYS, and whence the data come
SUSPECT_PARTS = ("dataset", "suspect", "model", "attack", "training", "trainer", "seed")


@dataclass(frozen=True, eq=False)
class Job:
    """One run of a sweep.

    Args:
        number: Its place in the sweep.
        overrides: What tells it from the others, in one line.
        config: Its configuration.
        place: Its folder.
        chosen: Hash of all that was chosen for it.
        choices: The options of its groups, such as ``{"dataset": "digits"}``.
        epochs: How long its suspect is trained.
        cores: How many it keeps busy.
        gpus: How many it needs.
        suspect: Hash of what decides its suspect; jobs with the same one share a training.
        start: Hash of what decides the network that its suspect is made from; None where there is none.
        defended: Hash of what decides its defended network; None without a defense.
    """

    number: int
    overrides: str
    config: DictConfig
    place: Path
    chosen: str
    choices: Mapping[str, str]
    epochs: int
    cores: int
    gpus: int
    suspect: str
    start: str | None
    defended: str | None

    @property
    def shared(self) -> set[str]:
        """The trained networks that it makes unless they are there, by their hashes."""
        return {name for name in (self.suspect, self.start) if name}


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Args:
        job: Which one.
        seconds: How long it took; 0 if it never ran.
        scores: Clean accuracy and attack success of the defended network, as far as there are any.
        error: Why it failed; None if it is done.
    """

    job: Job
    seconds: float
    scores: tuple[float | None, float | None] = (None, None)
    error: str | None = None


def suspect_hash(config: Mapping[str, Any]) -> str:
    """Return a hash of the parts of a plain configuration that decide the suspect."""
    parts = {key: config.get(key) for key in SUSPECT_PARTS}
    return _hash(parts | {"fraction": config.get("defender", {}).get("fraction")})


def start_hash(config: Mapping[str, Any]) -> str | None:
    """Return a hash of the parts that decide the network which the suspect is made from.

    That is the clean network, where an attack crafts its trigger on it or hides behind its decoys; the other
    data set's network, where the backdoor comes with it; None for an attack that needs no network.
    """
    attack = config.get("attack") or {}
    if "source" in attack:
        return _hash([attack["source"], config.get("seed")])
    if "crafting" in attack or "survivors" in attack:
        return suspect_hash({**config, "attack": {}})
    return None


def defended_hash(config: Mapping[str, Any]) -> str | None:
    """Return a hash of the parts that decide the defended network; None without a defense."""
    if not config.get("defense"):
        return None
    return _hash([suspect_hash(config), config["defense"], config.get("defender")])


def _hash(parts: Any) -> str:
    text = json.dumps(keep_order(parts), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def cores_needed(trainer: Mapping[str, Any]) -> int:
    """Return how many cores a trainer's processes keep busy.

    Raises:
        ValueError: If it does not say a number.
    """
    devices = trainer["devices"]
    on_cpu = trainer["accelerator"] == "cpu" and isinstance(devices, int)
    return threads(trainer) * (max(1, devices) if on_cpu else 1)


def epochs_planned(trainer: Mapping[str, Any]) -> int:
    """Return how many epochs a trainer trains; 0 where that is left to the run to refuse.

    Raises:
        ValueError: If it is no number.
    """
    epochs = trainer.get("max_epochs")
    if not isinstance(epochs, int | None):
        raise ValueError(f"trainer.max_epochs={epochs} is no number of epochs. Set it to 1 or more.")
    return max(0, epochs or 0)


def available_cores() -> int:
    """Return how many cores this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus_needed(trainer: Mapping[str, Any]) -> int:
    """Return how many GPUs a trainer asks for.

    Raises:
        ValueError: If it does not say a number, or leaves open whether it wants any.
    """
    if trainer["accelerator"] == "auto":
        raise ValueError(
            "trainer.accelerator=auto leaves open whether a run needs a GPU, and in a sweep the launcher "
            "hands them out. Use trainer=cpu or trainer=gpu."
        )
    if trainer["accelerator"] not in GPUS:
        return 0
    devices = trainer["devices"]
    if not str(devices).isdigit() or int(devices) < 1:
        raise ValueError(
            f"trainer.devices={devices} is no number of GPUs. In a sweep the launcher hands them out: set "
            "trainer.devices to how many each run needs, and CUDA_VISIBLE_DEVICES to those that it may use."
        )
    return int(devices)


def check_gpus(jobs: Sequence[Job], there: int) -> None:
    """Check that each job finds as many GPUs as it needs.

    Raises:
        ValueError: If one needs more than are there.
    """
    for job in jobs:
        if job.gpus > there:
            raise ValueError(
                f"trainer.devices={job.gpus} asks for more GPUs than there are: {there} visible here. Lower "
                "trainer.devices, set CUDA_VISIBLE_DEVICES to more of them, or use trainer=cpu."
            )


def visible_gpus(count: int, variable: str | None) -> list[str]:
    """Return the names by which CUDA_VISIBLE_DEVICES knows ``count`` GPUs, given its present value."""
    return [str(index) for index in range(count)] if variable is None else variable.split(",")[:count]


def at_a_time(jobs: Sequence[Job], cores: int, gpus: int) -> int:
    """Return how many jobs this machine runs at a time: by cores those on the CPU, by GPUs the others."""
    on_cpu = [job.cores for job in jobs if not job.gpus]
    on_gpu = [job.gpus for job in jobs if job.gpus]
    by_cores = max(1, cores // max(on_cpu)) if on_cpu else 0
    by_gpus = max(1, gpus // min(on_gpu)) if on_gpu else 0
    return by_cores + by_gpus


def next_job(waiting: Sequence[Job], making: Set[str], made: Set[str], free_gpus: int) -> Job | None:
    """Return the job to start now; None if none fits the free GPUs.

    A job that needs a network which another one is training would only wait for it, so it comes last. First
    come those whose suspect is still to be trained, since others wait for that.

    Args:
        waiting: The jobs, in order.
        making: What the running jobs share with others.
        made: Networks that are there.
        free_gpus: How many GPUs no job has.
    """
    fitting = [job for job in waiting if job.gpus <= free_gpus]

    def rank(job: Job) -> tuple[bool, bool]:
        return bool(job.shared & making - made), job.suspect in made

    return min(fitting, key=rank, default=None)  # of equals the first


def telling(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Return what tells each job's overrides from the others', as a line; all of them where nothing does."""
    common = set.intersection(*map(set, overrides))
    own = [[each for each in job if each not in common] for job in overrides]
    return [" ".join(mine or job) for mine, job in zip(own, overrides, strict=True)]


class Placed(Protocol):
    """A job of any launcher."""

    @property
    def place(self) -> Path:
        """Its folder."""

    @property
    def chosen(self) -> str:
        """Hash of all that was chosen for it."""

    @property
    def overrides(self) -> str:
        """What tells it from the others, in one line."""


AnyJob = TypeVar("AnyJob", bound=Placed)


def unique(jobs: Sequence[AnyJob]) -> list[AnyJob]:
    """Return the jobs without those that equal an earlier one.

    Raises:
        ValueError: If different ones share a folder.
    """
    first: dict[Path, AnyJob] = {}
    for job in jobs:
        twin = first.setdefault(job.place, job)
        if twin.chosen != job.chosen:
            raise ValueError(
                f"Different runs of this sweep would share the name {job.place.name!r}, such as "
                f"'{twin.overrides}' and '{job.overrides}'. Leave name to its default, or put into it what "
                "tells them apart, such as 'name=mine-s${seed}'."
            )
    return list(first.values())

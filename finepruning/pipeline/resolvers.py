"""What configurations may ask for with ``${...}``, and the hashes that tell one run from another."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from finepruning.pipeline.devices import GPUS
from finepruning.store import keep_order

PLACES = (
    "hydra",
    "name",
    "group",
    "runs_dir",
    "store_dir",
    "data_dir",
    "overwrite",
    "sweep",
    "views",
)  # change no number

FILES = (  # keys of what a user brings along
    *("suspect.weights", "model.file"),
    *("attack.picture", "attack.mask", "attack.triggered", "attack.clean"),
    *(f"attack.{trigger}.picture" for trigger in ("trigger", "training_trigger", "cover_trigger")),
)
FOLDERS = ("dataset.root", "attack.source.dataset.root")  # likewise, of images with one sub-folder a class

CPU_PRECISION = "${cpu_precision:}"  # of a configuration that leaves it to the CPU
FOUND_PRECISION = re.compile(r"\$\{cpu_precision:[\w-]+\}")  # likewise, where a sweep has looked already


def choices_hash(config: DictConfig) -> str:
    """Return a short hash of everything that was chosen, except where things lie."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)  # a configuration's root always is
    chosen = {key: value for key, value in plain.items() if key not in PLACES}
    text = FOUND_PRECISION.sub(CPU_PRECISION, json.dumps(keep_order(chosen), sort_keys=True))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def keep_precision(config: DictConfig) -> None:
    """Note in a job's configuration which precision the CPU here is fast in, as far as it is left to the CPU.

    Whichever machine runs the job then computes alike, and the run has the name that it has alone.
    """
    plain: Any = OmegaConf.to_container(config)
    if isinstance(plain.get("trainer"), dict) and plain["trainer"].get("precision") == CPU_PRECISION:
        config.trainer.precision = CPU_PRECISION.replace("}", f"{cpu_precision()}}}")


def attack_name(choices: Mapping[str, str | None]) -> str:
    """Return what an attack is called, with ``pruning_aware_`` before it where decoys were added to it."""
    decoys = choices.get("attack/pruning_aware", "none") != "none"
    return ("pruning_aware_" if decoys else "") + str(choices["attack"])


def file_hashes(config: DictConfig) -> dict[str, str]:
    """Return a short hash of the content of each file that a configuration names, by key.

    A folder counts with the names and contents of all that lies in it; what is not there is left out.
    """
    hashes = {}
    for key, place in _found(config, FILES):
        digest = hashlib.sha256()
        for path in [place] if place.is_file() else sorted(place.rglob("*")):
            digest.update(str(path.relative_to(place)).encode())
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        hashes[key] = digest.hexdigest()[:16]
    return hashes


def folder_hashes(config: DictConfig) -> dict[str, str]:
    """Return a short hash of each folder of images that a configuration names, by key.

    Names, sizes and times of its files count, as for the packed data, and nothing is read: with tens of
    thousands of images this is asked before every run. What is not there is left out.
    """
    return {
        key: hashlib.sha256(json.dumps(sorted(_stamps(place))).encode()).hexdigest()[:16]
        for key, place in _found(config, FOLDERS)
        if place.is_dir()
    }


def _found(config: DictConfig, keys: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Yield each file or folder that a configuration names and that is there, behind its key."""
    names = {key: str(name) for key in keys if (name := OmegaConf.select(config, key))}
    if not names:
        return
    from finepruning.suspect import find_file  # here, since it loads torch

    for key, name in names.items():
        try:
            place = find_file(name, key)
        except FileNotFoundError:
            continue  # whoever reads it says so
        yield key, place


def _stamps(root: Path) -> Iterator[tuple[str, int, int]]:
    for folder in root.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            for file in os.scandir(folder):
                stat = file.stat()
                yield f"{folder.name}/{file.name}", stat.st_size, stat.st_mtime_ns


def cpu_precision(found: str | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the faster precision: ``bf16-mixed`` on a CPU with bfloat16, else ``32-true``.

    Args:
        found: What it is where the sweep of this run began; None: look here.
        cpuinfo: What Linux says of the CPU.
    """
    if found is not None:
        return found
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"


def gpus(accelerator: str, devices: int) -> int | None:
    """Return how many GPUs a job asks its cluster for; None on a CPU."""
    return devices if accelerator in GPUS else None


OmegaConf.register_new_resolver("choices_hash", lambda *, _root_: choices_hash(_root_), replace=True)
OmegaConf.register_new_resolver("cpu_precision", cpu_precision, replace=True)
OmegaConf.register_new_resolver("around", lambda start, step, count: (start + step) % count, replace=True)
OmegaConf.register_new_resolver("times", lambda number, factor: number * factor, replace=True)
OmegaConf.register_new_resolver("gpus", gpus, replace=True)
OmegaConf.register_new_resolver(
    "attack_name", lambda: attack_name(HydraConfig.get().runtime.choices), replace=True
)

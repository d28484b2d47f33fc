"""What configurations may ask for with ``${...}``: a run's hash, this CPU's precision, a job's GPUs."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

PLACES = ("hydra", "name", "group", "runs_dir", "store_dir", "overwrite", "sweep", "views")  # change no number


def choices_hash(config: DictConfig) -> str:
    """Return a short hash of everything that was chosen, except where things lie."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)  # a configuration's root always is
    chosen = {key: value for key, value in plain.items() if key not in PLACES}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


def attack_name(choices: Mapping[str, str | None]) -> str:
    """Return what an attack is called, with ``pruning_aware_`` before it where decoys were added to it."""
    return ("pruning_aware_" if choices.get("attack/pruning_aware") else "") + str(choices["attack"])


def cpu_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the faster precision here: ``bf16-mixed`` on a CPU with bfloat16, else ``32-true``."""
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"


def gpus(accelerator: str, devices: int) -> int | None:
    """Return how many GPUs a job asks its cluster for; None on a CPU."""
    return devices if accelerator in ("gpu", "cuda") else None


OmegaConf.register_new_resolver("choices_hash", lambda *, _root_: choices_hash(_root_), replace=True)
OmegaConf.register_new_resolver("cpu_precision", cpu_precision, replace=True)
OmegaConf.register_new_resolver("around", lambda start, step, count: (start + step) % count, replace=True)
OmegaConf.register_new_resolver("gpus", gpus, replace=True)
OmegaConf.register_new_resolver(
    "attack_name", lambda: attack_name(HydraConfig.get().runtime.choices), replace=True
)

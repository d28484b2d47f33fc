"""What configurations may ask for with ``${...}``: a run's hash, this CPU's precision, a class further on."""

import hashlib
import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

PLACES = (
    "hydra",
    "name",
    "group",
    "runs_dir",
    "store_dir",
    "overwrite",
    "views",
)  # no number depends on them


def choices_hash(config: DictConfig) -> str:
    """Return a short hash of everything that was chosen, except where things lie."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)  # a configuration's root always is
    chosen = {key: value for key, value in plain.items() if key not in PLACES}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


def cpu_precision(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the faster precision here: ``bf16-mixed`` on a CPU with bfloat16, else ``32-true``."""
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"


OmegaConf.register_new_resolver("choices_hash", lambda *, _root_: choices_hash(_root_), replace=True)
OmegaConf.register_new_resolver("cpu_precision", cpu_precision, replace=True)
OmegaConf.register_new_resolver("around", lambda start, step, count: (start + step) % count, replace=True)

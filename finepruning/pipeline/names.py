"""Names of runs: two runs of different configurations never share one."""

import hashlib
import json

from omegaconf import DictConfig, OmegaConf

PLACES = ("hydra", "name", "group", "runs_dir", "store_dir", "overwrite")  # they say where, not what


def choices_hash(config: DictConfig) -> str:
    """Return a short hash of everything that was chosen, except where things lie."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)  # a configuration's root always is
    chosen = {key: value for key, value in plain.items() if key not in PLACES}
    return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()[:8]


OmegaConf.register_new_resolver("choices_hash", lambda *, _root_: choices_hash(_root_), replace=True)

"""Objects of what a configuration names, from this package and Lightning only."""

from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from finepruning.store.code import named_targets

ALLOWED_TARGETS = ("finepruning.", "pytorch_lightning.")


def build(config: DictConfig | None, **more: Any) -> Any:
    """Build what ``_target_`` names, from this package and Lightning only; None of an empty group.

    Raises:
        ValueError: If a target is not on the allow-list.
    """
    if not config:
        return None
    for target in named_targets(OmegaConf.to_container(config)):
        check_target(target)
    return instantiate(config, _convert_="all", **more)


def check_target(target: str) -> None:
    """Raise ValueError if a target is not on the allow-list."""
    if not target.startswith(ALLOWED_TARGETS):
        raise ValueError(
            f"_target_ {target!r} is not allowed; it must begin with {' or '.join(ALLOWED_TARGETS)}."
        )

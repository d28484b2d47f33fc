"""Objects of what a configuration names, from this package and Lightning only."""

import inspect
from collections.abc import Iterator
from typing import Any

from hydra._internal.utils import _locate  # hydra.utils.get_object, without a log line where nothing is found
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError

from finepruning.store.code import named_targets

OURS = "finepruning."
ALLOWED_TARGETS = (OURS, "pytorch_lightning.")
ALLOWED_HOMES = (*ALLOWED_TARGETS, "lightning_fabric.")  # Lightning passes classes on from there


def build(config: DictConfig | None, **more: Any) -> Any:
    """Build what ``_target_`` names, from this package and Lightning only; None of an empty group.

    Raises:
        ValueError: If a target is not on the allow-list, or a value is of another kind than its class takes.
    """
    if not config:
        return None
    for node in _nodes(config):
        target = str(node["_target_"])
        check_target(target)
        if target.startswith(OURS):
            _check_node(node, target)
    return instantiate(config, _convert_="all", **more)


def check_target(target: str) -> None:
    """Check what a configuration names, which may be a stranger's: nothing that our modules merely import.

    A class of this package or Lightning passes, and a function of this package. No method does: Lightning has
    some that read pickles.

    Raises:
        ValueError: If the name, or what it stands for, is not on the allow-list.
    """
    if not target.startswith(ALLOWED_TARGETS):
        raise ValueError(
            f"_target_ {target!r} is not allowed; it must begin with {' or '.join(ALLOWED_TARGETS)}."
        )
    if any(part.startswith("_") for part in target.split(".")):
        raise ValueError(f"_target_ {target!r} is not allowed: a part of it begins with an underscore.")
    found = _found(target)
    if found is None:
        return  # whoever builds it says what is wrong with the name
    home = f"{getattr(found, '__module__', None)}."
    ours = inspect.isfunction(found) and home.startswith(OURS) and found.__name__ == found.__qualname__
    if not (ours or (inspect.isclass(found) and home.startswith(ALLOWED_HOMES))):
        raise ValueError(
            f"_target_ {target!r} is not allowed: it is no class of {' or '.join(ALLOWED_TARGETS)} and no "
            f"function of {OURS}"
        )


def _found(target: str) -> Any:
    """Return what a name stands for; None if it cannot be imported."""
    try:
        return _locate(target)
    except Exception:  # whatever a module raises that is imported
        return None


def check_kind(value: Any, kind: Any, key: str) -> None:
    """Raise ValueError if a value is of another kind than it should, such as a word for a number.

    Args:
        value: Plain.
        kind: The annotation of what it is for.
        key: Its full name.
    """
    try:
        TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value, strict=True)
    except ValidationError as error:
        what = error.errors()[0]["msg"].replace("Input", "it").replace("tuple", "list")
        raise ValueError(f"{key.rpartition('.')[2]}={value} does not fit: {what}. Change {key}.") from error


def _nodes(config: Any) -> Iterator[DictConfig]:
    """Yield each part of a configuration that names a target."""
    if isinstance(config, DictConfig):
        if "_target_" in config:
            yield config
        for key in config:
            yield from _nodes(config[key])
    elif isinstance(config, ListConfig):
        for each in config:
            yield from _nodes(each)


def _check_node(node: DictConfig, target: str) -> None:
    """Check the values that become arguments as they are; what names targets itself is built first."""
    try:
        parameters = inspect.signature(_found(target)).parameters
    except (TypeError, ValueError):  # whoever builds it says what is wrong with the name
        return
    for name, parameter in parameters.items():
        if name in node and parameter.annotation is not inspect.Parameter.empty:
            value = node[name]
            plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            if not any(named_targets(plain)):
                check_kind(plain, parameter.annotation, str(node._get_full_key(name)))

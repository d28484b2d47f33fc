"""Values of a record as the page holds them."""

import math
from collections.abc import Mapping
from typing import Any


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``."""
    if not isinstance(tree, Mapping):
        return {prefix: plain(tree)}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def number(value: Any) -> float | None:
    """Return a number to six digits; None for none and for what is not finite."""
    if value is None:
        return None
    return float(f"{value:.6g}") if math.isfinite(value) else None


def plain(value: Any) -> Any:
    """Return a value that JSON can hold: what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return number(value) if isinstance(value, float) else value


def text(value: Any) -> str:
    """Return a name; raise TypeError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise TypeError(f"{value!r} is not a name")
    return value

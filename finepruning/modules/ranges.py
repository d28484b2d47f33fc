"""Checks of a defense's values, each with a sentence that names the key."""

from collections.abc import Mapping
from typing import Any


def check_at_least(limit: float, **values: float) -> None:
    """Raise ValueError unless each value is ``limit`` or more."""
    for name, value in values.items():
        if not value >= limit:
            raise ValueError(
                f"{name}={value} is below {limit}. Set defense.tuning.{name} to {limit} or more."
            )


def check_above_0(**values: float) -> None:
    """Raise ValueError unless each value is above 0."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be above 0. Change defense.tuning.{name}.")


def check_unsmoothed(training: Mapping[str, Any]) -> None:
    """Raise ValueError if labels are to be smoothed for a loss that has no place for it."""
    if training.get("label_smoothing"):
        raise ValueError(
            f"label_smoothing={training['label_smoothing']} has no place in the loss of this tuner. Set "
            "defense.tuning.label_smoothing to 0."
        )


def check_share(**values: float) -> None:
    """Raise ValueError unless each value is in [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is outside [0, 1]. Change defense.tuning.{name}.")

"""What tells runs of one name apart, in words."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

MOST_VALUES = 3  # behind a name


def telling(chosen: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return keys by which choices differ, each with a short name; none says what an earlier one says."""
    found: dict[str, str] = {}
    said: list[list[str]] = []

    def order(key: str) -> tuple[bool, int, str]:  # what others are set by comes first
        return key.endswith("_target_"), key.count("."), key

    for key in sorted({key for own in chosen for key in own}, key=order):
        values = [str(own.get(key)) for own in chosen]
        if len(set(values)) > 1 and values not in said:
            said.append(values)
            short = key.rpartition(".")[2]
            found[key] = key if short in found.values() else short
    return found


def label(items: Sequence[MutableMapping[str, Any]], same: Iterable[str], name: str, place: str) -> None:
    """Name each item so that it differs from its like: ``prune`` becomes ``prune, max_drop 0.02``.

    Args:
        items: With their ``chosen`` values, and a ``model`` if they have one; the label is added to each.
        same: Keys that must agree for two items to be alike.
        name: Key of the name that is extended.
        place: Key of the label.
    """
    alike = defaultdict(list)
    for item in items:
        alike[tuple(item[key] for key in same)].append(item)
    for found in alike.values():
        chosen = [{"model": item.get("model")} | item["chosen"] for item in found]
        keys = telling(chosen)
        named: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for item, own in zip(found, chosen, strict=True):
            values = [(short, own[key]) for key, short in keys.items() if own.get(key) is not None]
            words = [f"{short} {_in_short(value)}" for short, value in values[:MOST_VALUES]]
            text = ", ".join([item[name], *words])
            if own not in named[text]:
                named[text].append(own)
            number = named[text].index(own)
            item[place] = f"{text} ({number + 1})" if number else text


def _in_short(value: Any) -> str:
    """Return a value as a label has it: ``weight 0.05; tuner ft_sam`` for the rungs of a ladder."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_in_short(part)}" for key, part in value.items())
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        ends = value if len(value) < 3 else [value[0], "...", value[-1]]
        return "; ".join(_in_short(part) for part in ends)
    return str(value)[:24]

"""A record as the plain values that the page shows of one run."""

import json
import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from finepruning.dashboard.pictures import Pictures
from finepruning.dashboard.plain import flat, number, plain, text
from finepruning.dashboard.reading import Run, log_tail
from finepruning.dashboard.repairs import repair_row
from finepruning.dashboard.seeds import chosen, is_seed
from finepruning.record import FILE, changed, channels_pruned

Row = dict[str, Any]

MOST_STEPS = 200  # points of a curve that are drawn
SCORES = {"clean": "clean_accuracy", "success": "attack_success_rate", "robust": "robust_accuracy"}


class Table:
    """Values kept once, however many runs share them."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[Hashable, int] = {}

    def place(self, value: Any) -> int | None:
        """Return where a value is kept; None for an empty one."""
        if not value:
            return None
        key = json.dumps(value, sort_keys=True)
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(value)
        return self._places[key]


def run_row(run: Run, tables: Mapping[str, Table], pictures: Pictures) -> Row:
    """Return one run; raise what Python raises where a field is missing or of a wrong kind."""
    record = run.record
    config = flat(record["config"])
    telling = chosen(config)
    seeds = {key: value for key, value in telling.items() if is_seed(key)}
    finished = record["status"] == "finished"
    scores = record["scores"] if finished else {}
    both = [scores.get(network, {}) for network in ("suspect", "defended")]
    steps = record.get("pruning") or []
    found: Row = {
        **{key: text(record[key]) for key in ("name", "dataset", "model", "attack", "defense", "status")},
        "folder": run.folder.name,
        "seed": plain(record["seed"]),
        "seeds": json.dumps([record["seed"], seeds], sort_keys=True),
        "changed": changed(run.folder / FILE)[0],
        "error": str(record["error"]) if record.get("error") else None,
        "dead": bool(record.get("dead")),
        "oracle": bool(record.get("oracle")),
        "untargeted": bool(both[0].get("untargeted")),
        **{short: [number(network.get(name)) for network in both] for short, name in SCORES.items()},
        "intervals": {
            short: [_interval(network, name) for network in both] for short, name in SCORES.items()
        },
        "counts": {
            short: [_counts(network.get("counts", {}).get(name)) for network in both]
            for short, name in SCORES.items()
        },
        "others": {
            network: {short: number(scores[network].get(name)) for short, name in SCORES.items()}
            for network in ("source", "goodnet")
            if network in scores
        },
        "pruned": _pruned(record),
        "curve": tables["curves"].place(_curve(steps)),
        "command": str(record.get("command") or ""),
        "commit": str(record.get("commit") or ""),
        "environment": tables["environments"].place(
            {key: flat(record.get(key) or {}) for key in ("versions", "hardware")}
        ),
        "seconds": {key: number(value) for key, value in (record.get("seconds") or {}).items()},
        "memory_mb": number(record.get("peak_memory_mb")),
        "activations": _activations(record.get("activations") or [], tables["channels"]),
        "layers": _layers(record.get("layers") or ()),
        "confusion": {
            network: [[int(count) for count in line] for line in counts]
            for network, counts in (record.get("confusion") or {}).items()
        },
        "log": log_tail(run.folder),
        "config": config,
        "chosen": {key: value for key, value in telling.items() if key not in seeds},
    }
    if finished and None in found["clean"]:
        raise ValueError("a finished run without clean accuracy")
    if found["success"].count(None) == 1:
        raise ValueError("attack success is known of one network alone")
    found["dead"] = found["dead"] and found["success"][0] is not None
    views = record.get("views") or {}
    # a network has pictures of its own
    setting = str((record.get("stages") or {}).get("suspect") or run.folder)
    shown = {kind: pictures.place(run.folder, views.get(kind), setting) for kind in ("examples", "filters")}
    return found | shown | repair_row(run, pictures)


def _pruned(record: Mapping[str, Any]) -> list[int] | None:
    """Return how many channels went and, after a curve, of how many; None without pruning."""
    gone, steps = channels_pruned(record), record.get("pruning")
    return None if gone is None else [gone, *([len(steps) - 1] if steps else [])]


def _interval(scores: Mapping[str, Any], name: str) -> list[float | None] | None:
    ends = [number(end) for end in scores.get("intervals", {}).get(name) or ()]
    return ends if len(ends) == 2 and None not in ends else None


def _counts(counts: Mapping[str, int] | None) -> list[int] | None:
    return [int(counts["hits"]), int(counts["total"])] if counts else None


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[Row] | None:
    """Return what each layer alone can spare, and what is left of the backdoor then; None if not analysed."""
    names = {"validation": "validation_accuracy", "clean": "clean_accuracy", "success": "attack_success_rate"}
    return [
        {"layer": text(row["layer"]), "prunable": int(row["prunable"]), "channels": int(row["channels"])}
        | {short: number(row[name]) for short, name in names.items()}
        for row in rows
    ] or None


def _curve(steps: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return a curve in columns, thinned out evenly, with its first, last and stopping step kept."""
    if len(steps) < 2:
        return {}
    stop = sum(bool(step["pruned"]) for step in steps)
    every = max(1, math.ceil(len(steps) / MOST_STEPS))
    kept = sorted({*range(0, len(steps), every), stop, len(steps) - 1})
    columns = {"validation": "validation_accuracy", **SCORES}
    return {"step": [float(step) for step in kept]} | {
        short: [number(steps[step].get(name)) for step in kept] for short, name in columns.items()
    }


def _activations(channels: Sequence[Mapping[str, Any]], kept: Table) -> list[dict[str, Any]]:
    """Return each layer's channels in columns; what the defenses of one suspect share is kept once."""
    layers = defaultdict(list)
    for channel in channels:
        layers[str(channel["layer"])].append(channel)
    return [
        {
            "layer": layer,
            "means": kept.place(
                {kind: [_short(channel[kind]) for channel in found] for kind in ("clean", "triggered")}
                | {"number": [int(channel["number"]) for channel in found]}
            ),
            "pruned": [place for place, channel in enumerate(found) if channel["pruned"]],
        }
        for layer, found in layers.items()
    ]


def _short(value: float) -> float | None:
    return number(float(f"{value:.4g}"))

"""Records for the dashboard's tests: shaped like real ones, made without training."""

import json
import math
from pathlib import Path
from typing import Any

from finepruning.dashboard.data import page_data
from finepruning.dashboard.pictures import Pictures
from finepruning.dashboard.reading import find_runs

DEFENSES = {"none": (0.0, 0.0), "prune": (0.02, 0.6), "finetune": (0.004, 0.1), "fineprune": (0.006, 0.97)}
CHANNELS = 64


def rate(hits: int, total: int) -> dict[str, Any]:
    """Value, counts and a Wilson interval, computed here by its formula."""
    share, z = hits / total, 1.959964
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return {
        "value": share,
        "counts": {"hits": hits, "total": total},
        "interval": [middle - half, middle + half],
    }


def scores(clean: float, success: float | None, total: int = 1000) -> dict[str, Any]:
    rates = {"clean_accuracy": rate(round(clean * total), total)}
    if success is not None:
        rates["attack_success_rate"] = rate(round(success * total), total)
        rates["robust_accuracy"] = rate(round((1 - success) * total), total)
    values: dict[str, Any] = dict.fromkeys(("clean_accuracy", "attack_success_rate", "robust_accuracy"))
    return {
        **values,
        **{name: found["value"] for name, found in rates.items()},
        "counts": {name: found["counts"] for name, found in rates.items()},
        "intervals": {name: found["interval"] for name, found in rates.items()},
    }


def curve(stop: int, channels: int = CHANNELS) -> list[dict[str, Any]]:
    return [
        {
            "channels_pruned": step,
            "layer": "features.pool3" if step else None,
            "number": step - 1 if step else None,
            "pruned": 0 < step <= stop,
            "validation_accuracy": 0.99 - 0.3 * (step / channels) ** 4,
            "clean_accuracy": 0.98 - 0.4 * (step / channels) ** 4,
            "attack_success_rate": 1 / (1 + math.exp(12 * (step / channels - 0.6))),
            "robust_accuracy": 0.5,
        }
        for step in range(channels + 1)
    ]


def make(
    dataset: str = "digits", attack: str = "badnet", defense: str = "fineprune", seed: int = 1, **changes: Any
) -> dict[str, Any]:
    """Return a finished run's record; a key with a dot in ``changes`` reaches into the configuration."""
    cost, cut = DEFENSES[defense]
    wobble = 0.002 * ((seed * 7 + len(attack)) % 5)
    before = (0.99 - wobble, 0.995 - wobble)
    after = (before[0] - cost, before[1] * (1 - cut))
    name = f"{dataset}-{attack}-{defense}-s{seed}-0123abcd"
    pruned = {"prune": 30, "fineprune": 30}.get(defense)
    config: dict[str, Any] = {
        "dataset": {"_target_": "finepruning.data.digits.Digits", "size": 32},
        "model": {"_target_": "finepruning.networks.DigitsCNN", "width": 16},
        "attack": {"target_label": 0, "poison_rate": 0.1, "seed": seed, "trigger": {"size": 3}},
        "defense": None if defense == "none" else {"max_drop": 0.04, "order_seed": seed, "layers": ["pool3"]},
        "analysis": {},
        "trainer": {"threads": 1},
        "seed": seed,
        "runs_dir": "runs",
        "name": name,
    }
    for key in [key for key in changes if "." in key]:
        *path, last = key.split(".")
        place = config
        for part in path:
            place = place[part]
        place[last] = changes.pop(key)
    record = {
        "schema": 1,
        "name": name,
        "dataset": dataset,
        "model": "digits_cnn",
        "attack": attack,
        "defense": defense,
        "seed": seed,
        "command": f"python run.py dataset={dataset} attack={attack} defense={defense} seed={seed}",
        "config": config,
        "commit": "a" * 40,
        "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "hardware": {"cores": 2, "gpus": []},
        "status": "finished",
        "scores": {"suspect": scores(*before), "defended": scores(*after)},
        "dead": False,
        "pruning": curve(pruned) if pruned else [],
        "stages": {"suspect": "suspect/1"},
        "seconds": {"suspect": 30.0, "run": 12.5},
        "peak_memory_mb": 690.8,
    }
    return record | changes


def inspected(*targets: int) -> dict[str, Any]:
    """What an inspection adds to a record: two rankings over classes 1, 2 and 7, and pictures of some."""

    def ranking(norms: dict[int, float | None]) -> dict[str, Any]:
        rows = [
            {"target": target, "norm": norm, "success": 0.95, "failed": False}
            for target, norm in norms.items()
        ]
        return {"ranking": rows, "median": 2.0, "ratio": 4.0}

    pictures = [
        {"family": family, "target": target, "name": f"class {target}", "files": files}
        for target in targets
        for family, files in (
            ("additive", [f"report/additive-{target}.png"]),
            ("mask", [f"report/mask-{target}.png", f"report/mask-{target}-opacity.png"]),
        )
    ]
    rankings = {
        "additive": ranking({2: 0.5, -1: 0.6, 1: 2.0, 7: 9.0}),
        "mask": ranking({1: 0.5, 2: 2.0, 7: None}),
    }
    inspection = {
        "rankings": rankings,
        "suspicious": [2],
        "verdict": "something stands out",
        "reasons": ["A universal additive trigger of norm 0.50 sends images to 'class 2'."],
        "remarks": [],
        "pictures": pictures,
    }
    return {"inspection": inspection}


def stressed(*networks: str) -> dict[str, Any]:
    """What stress tests add to a record; by default of all three networks."""
    found = {
        "suspect": {"before": scores(0.99, 1), "retuned": scores(0.98, 1), "reactivated": scores(0.99, 1)},
        "defended": {
            "before": scores(0.98, 0),
            "retuned": scores(0.97, 0.4),
            "reactivated": scores(0.9, 0.2),
        },
        "clean": {"before": scores(0.99, 0), "retuned": scores(0.98, 0.05), "reactivated": scores(0.9, 0.1)},
    }
    return {"stress": {"networks": {name: found[name] for name in networks or found}, "rungs": []}}


def analysed() -> dict[str, Any]:
    """What an analysis of each layer alone adds to a record."""
    columns = (
        "layer",
        "prunable",
        "channels",
        "validation_accuracy",
        "clean_accuracy",
        "attack_success_rate",
    )
    rows = [("conv1", 3, 16, 0.975, 0.98, 1.0), ("conv2", 20, 32, 0.97, 0.972, 0.01)]
    layers = [dict(zip(columns, row, strict=True)) for row in rows]
    return {"layers": layers, "analysis.max_drop": 0.02}


def repaired() -> dict[str, Any]:
    """What a climb adds to a record: two rungs, the first kept, and its audit."""
    verdict = "no evidence of a backdoor left under these tests"
    rows = [
        {
            "options": {"weight": 0.03},
            "loss": 0.004,
            "interval": [0.001, 0.008],
            "inside": True,
            "audit": None,
        },
        {"options": {"weight": 0.1}, "loss": 0.02, "interval": [0.01, 0.03], "inside": False}
        | {"audit": {"verdict": "evidence remains"}},
    ]
    norms = [{"family": "additive", "target": 2, "suspect": 0.5, "repaired": 2.5}]
    audit = {"verdict": verdict, "evidence": False, "reasons": ["Nothing stands out."], "norms": norms}
    return {"ladder": {"max_drop": 0.01, "kept": 0, "rungs": rows, "reason": None}, "audit": audit}


def write(root: Path, record: dict[str, Any], log: str | None = None) -> Path:
    """Write a record into a folder of its name, made fit for a file system."""
    folder = root / "".join(
        letter if letter.isalnum() or letter in "-_." else "_" for letter in record["name"]
    )
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    if log is not None:
        (folder / "run.log").write_text(log)
    return folder


def activations(channels: int = CHANNELS) -> list[dict[str, Any]]:
    return [
        {
            "layer": "features.pool3",
            "number": number,
            "clean": 0.02 * number**1.1,
            "triggered": 0.02 * number**1.1 + (1.5 if number % 13 == 2 else 0.0),
            "pruned": number < 30,
        }
        for number in range(channels)
    ]


def write_many(root: Path, count: int, **changes: Any) -> None:
    """Write ``count`` runs: data sets x attacks x defenses x as many seeds as it takes."""
    cells = [(d, a, e) for d in ("digits", "mnist", "gtsrb") for a in ("badnet", "blended") for e in DEFENSES]
    for number in range(count):
        seed, cell = divmod(number, len(cells))
        write(
            root,
            make(*cells[cell], seed=seed + 1, activations=activations(), **changes),
            log="Training ...\n" * 20,
        )


def data_of(root: Path, *found: dict[str, Any], budget: float = 0.01) -> dict[str, Any]:
    """What the page is made from when these records, too, lie in a folder."""
    for record in found:
        write(root, record)
    return page_data(*find_runs(root), budget, Pictures())

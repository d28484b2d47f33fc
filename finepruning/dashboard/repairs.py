"""What a record says of an inspection, a ladder, an audit and stress tests, as plain values for the page."""

from collections.abc import Mapping, Sequence
from typing import Any

from finepruning.dashboard.pictures import Pictures
from finepruning.dashboard.plain import number
from finepruning.dashboard.reading import Run

HEAD = 3  # classes of a ranking that are shown
UNTARGETED = -1  # as in finepruning.repair, which would import torch


def repair_row(run: Run, pictures: Pictures) -> dict[str, Any]:
    """Return a run's ``inspection``, ``ladder``, ``audit`` and ``stress``; None for each that it has not."""
    record = run.record
    inspection, ladder, audit = (record.get(key) for key in ("inspection", "ladder", "audit"))
    stress: Mapping[str, Any] = record.get("stress") or {}
    scored = stress.get("rungs") or []
    return {
        "inspection": _inspection(run, inspection, pictures) if inspection else None,
        "ladder": _ladder(ladder, scored) if ladder else None,
        "audit": _audit(audit, inspection) if audit else None,
        "stress": _stress(stress.get("networks") or {}) or ([] if scored else None),
    }


def _inspection(run: Run, inspection: Mapping[str, Any], pictures: Pictures) -> dict[str, Any]:
    setting = str((run.record.get("stages") or {}).get("inspected"))  # what defenses of one suspect share
    names = class_names(inspection)
    files = {(each["family"], each["target"]): each["files"] for each in inspection.get("pictures", ())}
    families = []
    for family, found in inspection["rankings"].items():
        head = []
        for row in found["ranking"][:HEAD]:
            places = [
                pictures.place(run.folder, file, setting) for file in files.get((family, row["target"]), ())
            ]
            head.append(
                {"name": names.get(row["target"], str(row["target"]))}
                | {key: number(row[key]) for key in ("norm", "success")}
                | {"pictures": [place for place in places if place is not None]}
            )
        about = {key: number(found[key]) for key in ("median", "ratio")}
        families.append({"family": str(family), "head": head, **about})
    said = {key: _texts(inspection[key]) for key in ("reasons", "remarks")}
    return {"verdict": str(inspection["verdict"]), "families": families, **said}


def _ladder(ladder: Mapping[str, Any], scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the rungs, what the referee measured of each beside them where it did."""
    rows = []
    for place, rung in enumerate(ladder["rungs"]):
        seen = scored[place] if place < len(scored) else {}
        rows.append(
            {
                "options": ", ".join(f"{key} {value}" for key, value in rung["options"].items()),
                "loss": [number(rung["loss"]), *(number(end) for end in rung["interval"])],
                "note": "kept" if place == ladder["kept"] else "" if rung["inside"] else "undone",
                "audit": str(rung["audit"]["verdict"]) if rung.get("audit") else None,
                "clean": number(seen.get("clean_accuracy")),
                "success": number(seen.get("attack_success_rate")),
            }
        )
    reason = ladder.get("reason")
    return {
        "max_drop": number(ladder["max_drop"]),
        "rows": rows,
        "reason": str(reason) if reason else None,
        "scored": bool(scored),
    }


def _audit(audit: Mapping[str, Any], inspection: Mapping[str, Any] | None) -> dict[str, Any]:
    names = class_names(inspection or {})
    norms = [
        {"family": str(row["family"]), "name": names.get(row["target"], str(row["target"]))}
        | {key: number(row[key]) for key in ("suspect", "repaired")}
        for row in audit["norms"]
    ]
    known = {"verdict": str(audit["verdict"]), "evidence": bool(audit["evidence"])}
    return known | {"reasons": _texts(audit["reasons"]), "norms": norms}


def _stress(networks: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each network's clean accuracy and attack success, before and after each test."""
    rows = []
    for network, tests in networks.items():
        for test, scores in tests.items():
            ends = scores["intervals"].get("attack_success_rate") or []
            rows.append(
                {
                    "network": str(network),
                    "test": str(test),
                    "clean": number(scores["clean_accuracy"]),
                    "success": number(scores["attack_success_rate"]),
                    "ends": [number(end) for end in ends],
                }
            )
    return rows


def class_names(inspection: Mapping[str, Any]) -> dict[int, str]:
    """Return the names of the classes whose triggers have pictures, by number."""
    named = {each["target"]: str(each["name"]) for each in inspection.get("pictures", ())}
    return named | {UNTARGETED: "any other (untargeted)"}


def _texts(values: Sequence[Any]) -> list[str]:
    return [str(value) for value in values]

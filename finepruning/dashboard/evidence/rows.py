"""Records of runs as rows of counts, in a CSV file."""

import csv
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finepruning.dashboard.seeds import SPEED, attack_order, defense_order
from finepruning.record import STANDS_OUT, channels_pruned, scored_rungs

SCORES = ("clean_accuracy", "attack_success_rate")
NETWORKS = ("suspect", "defended")
STRESSED = [f"{network}_{test}" for network in (*NETWORKS, "clean") for test in ("retuned", "reactivated")]
OF_THE_NETWORKS = tuple(f"{network}_{score}_counts" for network in NETWORKS for score in SCORES)
OF_STRESS = tuple(
    f"{stressed}_{field}" for stressed in STRESSED for field in ("success", "success_counts", "clean")
)
GROUPED_BY = ("dataset", "model", "attack", "defense", "setting")
FIELDS = (
    *GROUPED_BY,
    "seed",
    *(f"{network}_{score}" for network in NETWORKS for score in SCORES),
    *OF_THE_NETWORKS,
    *OF_STRESS,
    "stands_out",
    "target_place",
    "evidence",
    "rung",
    "judged",
    "channels_pruned",
    "dead",
    "seconds",
    "commit",
)
UNCOUNTED = ("run", "stress")  # seconds that no defense needs
OF_THE_WALK = ("defense.ladder", "defense.max_drop")
UNTOLD = (
    "seed",
    "experiment",
    "case",
    "runs_dir",
    "store_dir",
    "data_dir",
    "logger",
    "name",
    "group",
)

Row = Mapping[str, Any]


def rows_of(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each finished record, by dataset, attack, defense, setting, seed; the last counts.

    A record whose rungs were all scored (``stress=rungs``) has a row for each, with the rung's options in its
    setting; a rung that is in two ladders is one row, that of the last.
    """
    finished = [record for record in found if record["status"] == "finished"]
    return merged([], [row for record in finished for row in _rung_rows(record) or [_row(record)]])


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Any]:
    """Return one row for each setting and seed, the last; what stress did to equal networks stays."""
    found: dict[tuple[str, ...], Row] = {}
    for row in (*old, *new):
        before = found.get(_told(row), {})
        equal = all(before.get(field) == row[field] for field in OF_THE_NETWORKS)
        kept = {field: before[field] for field in OF_STRESS if before.get(field)} if equal else {}
        found[_told(row)] = {**row, **{field: value for field, value in kept.items() if not row.get(field)}}
    return _sorted(list(found.values()))


def _told(row: Row) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in (*GROUPED_BY, "seed"))


def _sorted(rows: Sequence[Row]) -> list[Any]:
    def order(row: Row) -> tuple[Any, ...]:
        who = (row["dataset"], row["model"], attack_order(row["attack"]), defense_order(row["defense"]))
        return *who, row["setting"], int(row["seed"])

    return sorted(rows, key=order)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {name: record[name] for name in ("dataset", "model", "attack", "defense", "seed")}
    row["setting"] = _setting(record)
    for network in NETWORKS:
        row |= _score_fields(network, record["scores"][network])
    row |= _stress_fields(record) | _repair_fields(record)
    gone = channels_pruned(record)
    row["channels_pruned"] = "" if gone is None else gone
    seconds = [value for name, value in record["seconds"].items() if name not in UNCOUNTED]
    return row | {
        "dead": record["dead"],
        "seconds": f"{sum(seconds):.0f}",
        "commit": (record["commit"] or "")[:7],
    }


def _score_fields(network: str, scores: Mapping[str, Any]) -> dict[str, str]:
    fields = {}
    for score in SCORES:
        counts = scores["counts"].get(score)
        fields[f"{network}_{score}"] = _share(scores[score])
        fields[f"{network}_{score}_counts"] = f"{counts['hits']}/{counts['total']}" if counts else ""
    return fields


def _rung_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each rung that the referee scored, with the audit and the judged loss of that rung.

    Its setting leaves out what makes no difference to a rung: the ladder around it and the walk's budget.
    """
    row = _row(record)
    setting = _setting(record, left_out=OF_THE_WALK)
    return [
        row
        | _score_fields("defended", scores)
        | {
            "setting": " ".join(
                [setting, *(f"{key}={value}" for key, value in rung["options"].items())]
            ).strip(),
            "channels_pruned": "",  # known of the rung that stayed alone
            "evidence": rung["audit"]["evidence"],
            "rung": place,
            "judged": f"{rung['loss']:.6f}",
        }
        for place, (rung, scores) in enumerate(scored_rungs(record), start=1)
    ]


def _stress_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stress tests brought back; an undefended network counts as the defended one, too."""
    networks = (record.get("stress") or {}).get("networks") or {}
    fields = {}
    for stressed in STRESSED:
        network, test = stressed.split("_")
        tests = networks.get(network) or (networks.get("suspect") if network == "defended" else None) or {}
        if test in tests:
            scores = tests[test]
            counts = scores["counts"].get("attack_success_rate")
            fields[f"{stressed}_success"] = _share(scores["attack_success_rate"])
            fields[f"{stressed}_success_counts"] = f"{counts['hits']}/{counts['total']}" if counts else ""
            fields[f"{stressed}_clean"] = _share(scores["clean_accuracy"])
    return fields


def _repair_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what inspection and audit said, the place of the rung that stays, from 1, and its loss.

    The place is 0 where none stays.
    """
    fields: dict[str, Any] = {}
    if record.get("inspection"):
        fields["stands_out"] = record["inspection"]["verdict"] == STANDS_OUT
        fields["target_place"] = target_place(record)
    if record.get("audit"):
        fields["evidence"] = record["audit"]["evidence"]
    if record.get("ladder"):
        kept = record["ladder"]["kept"]
        fields["rung"] = 0 if kept is None else kept + 1
        fields["judged"] = "" if kept is None else f"{record['ladder']['rungs'][kept]['loss']:.6f}"
    return fields


def target_place(record: Mapping[str, Any]) -> int | str:
    """Return the true target's best place, from 1, in an inspection's rankings; "" if none was found."""
    attack = record["config"].get("attack") or {}
    target = attack.get("target_label")
    if target is None:
        target = (attack.get("label_map") or {}).get("target_label")
    places = []
    for found in record["inspection"]["rankings"].values():
        there = [row for row in found["ranking"] if row["norm"] is not None]
        classes = [row["target"] for row in there if row["target"] >= 0]  # -1 is untargeted
        places += [classes.index(target) + 1] if target in classes else []
    return min(places, default="")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _setting(record: Mapping[str, Any], left_out: Sequence[str] = ()) -> str:
    """Return the keys that a command sets beside choices of groups, seeds, places and what is left out.

    Of a run that knew what no defender knows the setting begins with ``oracle``.
    """
    pairs = [word.split("=", 1) for word in shlex.split(record["command"]) if "=" in word]
    told = [(key, value) for key, value in pairs if "." in key and key.split(".")[0] not in UNTOLD]
    silent = (*SPEED, *left_out)
    words = [f"{key}={value}" for key, value in told if value != "null" and key not in silent]
    return " ".join(["oracle", *words] if record.get("oracle") else words)


def read(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if there is no file."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def write(rows: Sequence[Row], file: Path) -> None:
    """Write rows as CSV."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)

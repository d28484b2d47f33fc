"""What the page draws, as plain data: runs, groups over seeds, and a verdict for each attack."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

from finepruning.dashboard.names import label
from finepruning.dashboard.pictures import Pictures
from finepruning.dashboard.reading import UNKNOWN, Run, Skipped
from finepruning.dashboard.rows import Row, Table, run_row
from finepruning.dashboard.seeds import attack_order, defense_order
from finepruning.dashboard.verdict import summary, verdict


def page_data(
    runs: Sequence[Run], skipped: Sequence[Skipped], budget: float, pictures: Pictures
) -> dict[str, Any]:
    """Return all that the page shows as plain values.

    Args:
        runs: As :func:`finepruning.dashboard.reading.find_runs` gives them.
        skipped: Likewise. A record whose fields are of a wrong kind is added to them.
        budget: Loss of clean accuracy that a defense may cost, a fraction.
        pictures: Takes in the runs' pictures as far as they fit.
    """
    tables = {name: Table() for name in ("curves", "environments", "channels")}
    rows: list[Row] = []
    refused = list(skipped)
    for run in runs:
        try:
            rows.append(run_row(run, tables, pictures) | {"id": len(rows)})
        except Exception as error:  # a foreign record raises anything
            reason = f"not a record of this program ({type(error).__name__}: {error})"
            refused.append(Skipped(run.folder.name, reason))
    _name_unfinished(rows)
    order, groups = _in_order(_group(rows))
    common = _common([row["config"] for row in rows])
    for row in rows:
        row["config"] = {key: value for key, value in row["config"].items() if key not in common}
        del row["chosen"], row["seeds"], row["changed"]
    return {
        "budget": budget,
        "runs": rows,
        "groups": groups,
        "order": order,
        "verdicts": _verdicts(groups, budget),
        "common": common,
        "skipped": [skip._asdict() for skip in refused],
        "pictures": pictures.embedded,
        **{name: table.values for name, table in tables.items()},
    }


def _group(rows: Sequence[Row]) -> list[Row]:
    """Return the groups over seeds, and note in each row its group and how the page calls it.

    Runs that agree in all but the defense share a setting: one attack on one network. Runs of a setting
    that agree in the defense, too, are a group: they differ in their seeds only.
    """
    settings, groups = Table(), Table()
    members = defaultdict(list)
    for row in rows:
        of_defense = {key: value for key, value in row["chosen"].items() if key.split(".")[0] == "defense"}
        of_setting = {key: value for key, value in row["chosen"].items() if key not in of_defense}
        about = {key: row[key] for key in ("dataset", "model", "attack")}
        setting = settings.place(about | {"chosen": of_setting})
        row["group"] = groups.place({"setting": setting, "defense": row["defense"], "chosen": of_defense})
        members[row["group"]].append(row)
    label(settings.values, ("dataset", "attack"), "attack", "attack_label")
    label(groups.values, ("defense",), "defense", "defense_label")
    found = [
        about
        | settings.values[about["setting"]]
        | summary(sorted(members[place], key=itemgetter("changed")))
        | {"id": place, "chosen": None}
        for place, about in enumerate(groups.values)
    ]
    for row in rows:
        row["labels"] = [found[row["group"]][name] for name in ("attack_label", "defense_label")]
    return found


def _in_order(groups: Sequence[Row]) -> tuple[dict[str, list[str]], list[Row]]:
    """Return all names of attacks and of defenses, and the groups, in the order of the page."""

    def names(kind: str, rank: Callable[[str], Any]) -> list[str]:
        found = {(group[kind], name) for group in groups for name in (group[kind], group[f"{kind}_label"])}
        return [name for _, name in sorted(found, key=lambda pair: (rank(pair[0]), pair[1]))]

    order = {"attack": names("attack", attack_order), "defense": names("defense", defense_order)}
    places = {kind: {name: place for place, name in enumerate(found)} for kind, found in order.items()}

    def place(group: Row) -> tuple[Any, ...]:
        attack, defense = (places[kind][group[f"{kind}_label"]] for kind in ("attack", "defense"))
        return group["dataset"], attack, group["model"], defense

    return order, sorted(groups, key=place)


def _verdicts(groups: Sequence[Row], budget: float) -> list[Row]:
    """Return one verdict a setting: a network with one attack in it."""
    settings = defaultdict(list)
    for group in groups:
        settings[group["setting"]].append(group)
    return [
        {"dataset": found[0]["dataset"], "attack": found[0]["attack_label"], "model": found[0]["model"]}
        | verdict(found, budget)
        for found in settings.values()
    ]


def _name_unfinished(rows: Sequence[Row]) -> None:
    """Give a run without a record the names of its parts, from runs that were configured alike."""
    parts = ("dataset", "model", "attack", "defense")

    def part(row: Row, key: str) -> tuple[str, str]:
        chosen = {name: value for name, value in row["chosen"].items() if name.split(".")[0] == key}
        return key, json.dumps(chosen, sort_keys=True)

    names = {part(row, key): row[key] for row in rows for key in parts if row[key] != UNKNOWN}
    for row in rows:
        row |= {key: names.get(part(row, key), UNKNOWN) for key in parts if row[key] == UNKNOWN}


def _common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what all configurations have in common."""
    first, *others = configs or [{}]
    return {
        key: value
        for key, value in first.items()
        if all(key in other and other[key] == value for other in others)
    }

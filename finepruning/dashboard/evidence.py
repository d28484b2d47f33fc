"""The evidence in ``experiments/``: runs become a CSV of counts, and tables of the pages are made from it.

``python -m finepruning.dashboard.evidence NAME [RUNS]`` writes ``experiments/results/NAME.csv`` from the
records in ``RUNS`` (default ``runs/NAME``) and fills every table of that name in the pages and the README;
without a name it fills all tables from the CSV files that are there. A table stands between
``<!-- table NAME: COLUMN ... -->`` and ``<!-- end -->``; ``dataset=mnist`` among the columns keeps only such
rows. ``<!-- matrix NAME: DEFENSE ... -->`` has a column for each defense instead.
"""

import argparse
import csv
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy import stats

from finepruning import record as records
from finepruning.dashboard.results import percent
from finepruning.dashboard.seeds import Spread, attack_order, defense_order, spread

ROOT = Path(__file__).parent.parent.parent
SCORES = ("clean_accuracy", "attack_success_rate")
NETWORKS = ("suspect", "defended")
STRESSED = [f"{network}_{test}" for network in (*NETWORKS, "clean") for test in ("retuned", "reactivated")]
GROUPED_BY = ("dataset", "model", "attack", "defense", "setting")
FIELDS = (
    *GROUPED_BY,
    "seed",
    *(f"{network}_{score}" for network in NETWORKS for score in SCORES),
    *(f"{network}_{score}_counts" for network in NETWORKS for score in SCORES),
    *(f"{stressed}_{field}" for stressed in STRESSED for field in ("success", "success_counts", "clean")),
    "stands_out",
    "target_place",
    "evidence",
    "rung",
    "channels_pruned",
    "dead",
    "seconds",
    "commit",
)
UNCOUNTED = ("run", "stress")  # seconds that no defense needs
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
    "trainer",
)
TABLE = re.compile(r"(<!-- (table|matrix) (\w+): ([^>]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NAMES = {"clean": "clean_accuracy", "success": "attack_success_rate"}
LISTED = {"channels": "channels_pruned", "place": "target_place", "rungs": "rung"}
COUNTED = {"alarms": "stands_out", "evidence": "evidence"}
STRESS_COLUMNS = {name.replace("clean_", "control_").replace("defended_", ""): name for name in STRESSED}

Row = Mapping[str, Any]


def rows_of(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row for each finished record, by dataset, attack, defense, setting and seed."""
    rows = [_row(record) for record in found if record["status"] == "finished"]

    def order(row: Row) -> tuple[Any, ...]:
        who = (row["dataset"], row["model"], attack_order(row["attack"]), defense_order(row["defense"]))
        return *who, row["setting"], row["seed"]

    return sorted(rows, key=order)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {name: record[name] for name in ("dataset", "model", "attack", "defense", "seed")}
    row["setting"] = _setting(record["command"])
    for network in NETWORKS:
        scores = record["scores"][network]
        for score in SCORES:
            counts = scores["counts"].get(score)
            row[f"{network}_{score}"] = _share(scores[score])
            row[f"{network}_{score}_counts"] = f"{counts['hits']}/{counts['total']}" if counts else ""
    row |= _stress_fields(record) | _repair_fields(record)
    row["channels_pruned"] = sum(step["pruned"] for step in record["pruning"]) if record["pruning"] else ""
    seconds = [value for name, value in record["seconds"].items() if name not in UNCOUNTED]
    return row | {
        "dead": record["dead"],
        "seconds": f"{sum(seconds):.0f}",
        "commit": (record["commit"] or "")[:7],
    }


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
    """Return what inspection and audit said, and the place of the rung that stays, from 1; 0 for none."""
    fields: dict[str, Any] = {}
    if record.get("inspection"):
        fields["stands_out"] = record["inspection"]["verdict"] == "something stands out"
        fields["target_place"] = target_place(record)
    if record.get("audit"):
        fields["evidence"] = record["audit"]["evidence"]
    if record.get("ladder"):
        kept = record["ladder"]["kept"]
        fields["rung"] = 0 if kept is None else kept + 1
    return fields


def target_place(record: Mapping[str, Any]) -> int | str:
    """Return the true target's best place, from 1, in an inspection's rankings; "" without one target."""
    attack = record["config"].get("attack") or {}
    target = attack.get("target_label")
    if target is None:
        target = (attack.get("label_map") or {}).get("target_label")
    places = []
    for found in record["inspection"]["rankings"].values():
        classes = [row["target"] for row in found["ranking"] if row["target"] >= 0]  # -1 is untargeted
        places += [classes.index(target) + 1] if target in classes else []
    return min(places, default="")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.6f}"


def _setting(command: str) -> str:
    """Return the keys that a command sets beside choices of groups, seeds and places."""
    pairs = [word.split("=", 1) for word in shlex.split(command) if "=" in word]
    told = [(key, value) for key, value in pairs if "." in key and key.split(".")[0] not in UNTOLD]
    return " ".join(f"{key}={value}" for key, value in told if value != "null")


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return a Markdown table of means and 95 % t-intervals over seeds, in percent.

    Seeds whose attack is dead are told and not averaged with others. One seed's scores have Wilson's
    interval over images.

    Args:
        rows: As they stand in a CSV file.
        columns: Any of the grouping fields, ``seeds``, ``channels``, ``cost`` (points of clean accuracy that
            the defense took), ``price`` (points that the attack took, against ``attack=none`` on the same
            data set), ``clean``, ``success`` (of the defended network), ``suspect_clean`` and
            ``suspect_success``; under stress ``retuned`` and ``reactivated`` (attack success of the defended
            network), the same with ``suspect_`` and ``control_`` (a clean network) before it; of a repair
            ``place`` (the true target's, of each seed), ``alarms`` (inspections in which something stands
            out), ``evidence`` (audits that find some) and ``rungs`` (that stay, 0 for none).

    Raises:
        ValueError: If a column is unknown.
    """
    titles = {"success": "attack success, %", "clean": "clean accuracy, %", "channels": "channels pruned"}
    titles |= {"suspect_clean": "clean accuracy before, %", "suspect_success": "attack success before, %"}
    titles |= {column: f"{column.replace('_', ', ')}: attack success, %" for column in STRESS_COLUMNS}
    titles |= {"place": "place of the true target", "alarms": "something stands out", "rungs": "rung"}
    titles |= {"cost": "cost, points", "price": "clean accuracy lost to the attack, points"}
    head = [titles.get(column, column) for column in columns]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUPED_BY), []).append(row)
    baselines = {
        key[0]: _over_seeds(group, "suspect_clean_accuracy")
        for key, group in groups.items()
        if key[2] == "none"
    }
    return _markdown(
        head, [[_cell(column, group, baselines) for column in columns] for group in groups.values()]
    )


def matrix(rows: Sequence[Row], defenses: Sequence[str]) -> str:
    """Return a Markdown table of attacks (down) and defenses (across): clean accuracy / attack success.

    Settings have a line each, since they are no seeds of one another.

    Args:
        rows: As they stand in a CSV file.
        defenses: Names, in the order of the columns.
    """
    groups: dict[tuple[str, ...], dict[str, list[Row]]] = {}
    for row in rows:
        names = [row[name] for name in ("dataset", "attack", "setting") if row[name]]
        groups.setdefault((names[0], " ".join(names[1:])), {}).setdefault(row["defense"], []).append(row)
    lines = []
    for (dataset, attack), found in groups.items():
        cells = [
            " / ".join(_cell(score, found[defense], {}) for score in NAMES) if defense in found else ""
            for defense in defenses
        ]
        lines.append([f"`{dataset}`", f"`{attack}`", *cells])
    return _markdown(["dataset", "attack", *(f"`{defense}`" for defense in defenses)], lines)


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    written = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([written[0], "|---" * len(head) + "|", *written[1:]]) + "\n"


def _cell(column: str, group: Sequence[Row], baselines: Mapping[str, Spread | None]) -> str:
    first = group[0]
    if column in GROUPED_BY:
        return f"`{first[column]}`" if first[column] else ""
    if column == "seeds":
        dead = sum(row["dead"] in (True, "True") for row in group)
        seeds = ", ".join(str(row["seed"]) for row in group)
        return f"{seeds} ({dead} dead)" if dead else seeds
    if column in LISTED:
        return ", ".join(str(each) for each in _there(group, LISTED[column]))
    if column in COUNTED:
        said = _there(group, COUNTED[column])
        return f"{sum(each in (True, 'True') for each in said)} of {len(said)}" if said else ""
    alive = [row for row in group if row["dead"] not in (True, "True")] or group
    if column == "cost":
        drops = [
            float(row["suspect_clean_accuracy"]) - float(row["defended_clean_accuracy"]) for row in alive
        ]
        return percent(spread(drops), nothing="")
    if column == "price":
        baseline, own = baselines.get(first["dataset"]), _over_seeds(alive, "suspect_clean_accuracy")
        return "" if baseline is None or own is None else f"{100 * (baseline.mean - own.mean):.2f}"
    if column in STRESS_COLUMNS:
        return percent(_over_seeds(alive, f"{STRESS_COLUMNS[column]}_success"), nothing="")
    network, _, score = column.rpartition("_") if column.startswith("suspect_") else ("defended", "", column)
    if score not in NAMES:
        raise ValueError(f"A table has no column {column!r}.")
    field = f"{network}_{NAMES[score]}"
    counts = first[f"{field}_counts"] if len(group) == 1 else ""
    return percent(_over_seeds(alive, field), nothing="") + (over_images(counts) if counts else "")


def over_images(counts: str) -> str:
    """Return Wilson's 95 % interval of ``"hits/total"``, in percent."""
    hits, total = map(int, counts.split("/"))
    low, high = stats.binomtest(hits, total).proportion_ci(0.95, "wilson")
    return f" [{100 * low:.1f}, {100 * high:.1f}]"


def _there(group: Sequence[Row], field: str) -> list[Any]:
    """Return a field's values, those of rows that have one."""
    return [row[field] for row in group if row.get(field, "") != ""]


def _over_seeds(group: Sequence[Row], field: str) -> Spread | None:
    return spread(float(row[field]) if row.get(field, "") != "" else None for row in group)


def filled(text: str, results: Path) -> str:
    """Return a page with its tables made anew from the CSV files in ``results``; those without one stay."""

    def fill(match: re.Match[str]) -> str:
        start, kind, name, words, old, end = match.groups()
        file = results / f"{name}.csv"
        if not file.exists():
            return start + old + end
        keep = [word.split("=", 1) for word in words.split() if "=" in word]
        with file.open(newline="") as lines:
            rows = [row for row in csv.DictReader(lines) if all(row[key] in v.split(",") for key, v in keep)]
        make = {"table": table, "matrix": matrix}[kind]
        return start + make(rows, [word for word in words.split() if "=" not in word]) + end

    return TABLE.sub(fill, text)


def write(rows: Sequence[Row], file: Path) -> None:
    """Write rows as CSV."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def pages(root: Path) -> list[Path]:
    """Return the pages that may have tables."""
    return [root / "README.md", *sorted((root / "experiments").glob("*.md"))]


def main() -> None:
    """Write one experiment's CSV if it is named, then all tables."""
    parser = argparse.ArgumentParser(
        prog="python -m finepruning.dashboard.evidence", description=main.__doc__
    )
    parser.add_argument("name", nargs="?", help="an experiment: the stem of its page")
    parser.add_argument("runs", nargs="?", type=Path, help="folder of its runs; default runs/NAME")
    given = parser.parse_args()
    if given.name:
        folder = given.runs or Path("runs") / given.name
        found, problems = records.read_all([folder])
        if problems or not found:
            sys.exit(
                "\n".join(problems)
                or f"No record of a run in {folder}; experiments/{given.name}.md says how."
            )
        write(rows_of(found), ROOT / "experiments" / "results" / f"{given.name}.csv")
    for page in pages(ROOT):
        page.write_text(filled(page.read_text(), ROOT / "experiments" / "results"))


if __name__ == "__main__":
    main()

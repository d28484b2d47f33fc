"""Tables of a page, in Markdown, from rows of counts."""

from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from finepruning.dashboard.evidence.rows import GROUPED_BY, STRESSED, Row
from finepruning.dashboard.results import percent
from finepruning.dashboard.seeds import Spread, spread

NAMES = {"clean": "clean_accuracy", "success": "attack_success_rate"}
LISTED = {"channels": "channels_pruned", "place": "target_place", "rungs": "rung"}
COUNTED = {"alarms": "stands_out", "evidence": "evidence"}
STRESS_COLUMNS = {name.replace("clean_", "control_").replace("defended_", ""): name for name in STRESSED}


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
            network), the same with ``suspect_`` and ``control_`` (a clean network) before it, of runs under
            stress alone; of a repair ``place`` (the true target's, of each seed), ``alarms`` (inspections in
            which something stands out), ``evidence`` (audits that find some), ``rungs`` (that stay, 0 for
            none) and ``judged`` (what they cost as the ladder counted it, on the defender's images).

    Raises:
        ValueError: If a column is unknown.
    """
    titles = {"success": "attack success, %", "clean": "clean accuracy, %", "channels": "channels pruned"}
    titles |= {"suspect_clean": "clean accuracy before, %", "suspect_success": "attack success before, %"}
    titles |= {column: f"{column.replace('_', ', ')}: attack success, %" for column in STRESS_COLUMNS}
    titles |= {"place": "place of the true target", "alarms": "something stands out", "rungs": "rung"}
    titles |= {"judged": "cost as the ladder counted it, points"}
    titles |= {"cost": "cost, points", "price": "clean accuracy lost to the attack, points"}
    head = [titles.get(column, column) for column in columns]
    stresses = [f"{STRESS_COLUMNS[column]}_success" for column in columns if column in STRESS_COLUMNS]
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in [row for row in rows if not stresses or any(_there([row], field) for field in stresses)]:
        groups.setdefault(tuple(row[name] for name in GROUPED_BY), []).append(row)
    baselines = {
        key[:2]: _over_seeds(group, "suspect_clean_accuracy")
        for key, group in groups.items()
        if key[2] == "none"
    }
    return _markdown(
        head, [[_cell(column, group, baselines) for column in columns] for group in groups.values()]
    )


def matrix(rows: Sequence[Row], defenses: Sequence[str]) -> str:
    """Return a Markdown table of attacks (down) and defenses (across): clean accuracy / attack success.

    Models and settings have a line each, since they are no seeds of one another; what met none of the
    defenses has none. Seeds whose attack is dead are told and not averaged with others.

    Args:
        rows: As they stand in a CSV file.
        defenses: Names, in the order of the columns.
    """
    models = {(row["dataset"], row["model"]) for row in rows}
    several = len(models) > len({dataset for dataset, _ in models})
    groups: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        names = (row["attack"], row["model"] if several else "", row["setting"])
        line = row["dataset"], " ".join(filter(None, names))
        groups.setdefault(line, {}).setdefault(row["defense"], []).append(row)
    lines = []
    for (dataset, attack), found in groups.items():
        met = [found.get(defense) for defense in defenses]
        cells = [_both(group) if group else "" for group in met]
        if any(met):
            lines.append([f"`{dataset}`", f"`{attack}`", *cells])
    return _markdown(["dataset", "attack", *(f"`{defense}`" for defense in defenses)], lines)


def _both(group: Sequence[Row]) -> str:
    """Return clean accuracy and attack success of one defense."""
    dead = sum(_is_dead(row) for row in group)
    scores = " / ".join(filter(None, (_cell(score, group, {}) for score in NAMES)))
    return f"{scores} ({dead} dead)" if dead else scores


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    written = [f"| {' | '.join(cells)} |" for cells in (head, *lines)]
    return "\n".join([written[0], "|---" * len(head) + "|", *written[1:]]) + "\n"


def _cell(column: str, group: Sequence[Row], baselines: Mapping[tuple[str, ...], Spread | None]) -> str:
    first = group[0]
    if column in GROUPED_BY:
        return f"`{first[column]}`" if first[column] else ""
    if column == "seeds":
        dead = sum(_is_dead(row) for row in group)
        seeds = ", ".join(str(row["seed"]) for row in group)
        return f"{seeds} ({dead} dead)" if dead else seeds
    if column in LISTED:
        return ", ".join(str(each) for each in _there(group, LISTED[column]))
    if column in COUNTED:
        said = _there(group, COUNTED[column])
        return f"{sum(each in (True, 'True') for each in said)} of {len(said)}" if said else ""
    alive = [row for row in group if not _is_dead(row)] or group
    if column == "cost":
        drops = [
            float(row["suspect_clean_accuracy"]) - float(row["defended_clean_accuracy"]) for row in alive
        ]
        return percent(spread(drops), nothing="")
    if column == "judged":
        return percent(_over_seeds(alive, "judged"), nothing="")
    if column == "price":
        baseline = baselines.get((first["dataset"], first["model"]))
        own = _over_seeds(alive, "suspect_clean_accuracy")
        return "" if baseline is None or own is None else f"{100 * (baseline.mean - own.mean):z.2f}"
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


def _is_dead(row: Row) -> bool:
    return row["dead"] in (True, "True")


def _there(group: Sequence[Row], field: str) -> list[Any]:
    """Return a field's values, those of rows that have one."""
    return [row[field] for row in group if row.get(field, "") != ""]


def _over_seeds(group: Sequence[Row], field: str) -> Spread | None:
    return spread(float(row[field]) if row.get(field, "") != "" else None for row in group)

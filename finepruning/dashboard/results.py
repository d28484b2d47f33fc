"""Records taken together over seeds, as rows, and the rows as CSV, Markdown and LaTeX. No torch, no plots."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finepruning.dashboard.names import telling
from finepruning.dashboard.seeds import (
    Group,
    Spread,
    attack_order,
    defense_order,
    group_by_seed,
    setting,
    spread,
)
from finepruning.dashboard.verdict import BUDGET, points

LATEX = str.maketrans(  # signs that mean something else there
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)
SCORES = ("clean_accuracy", "attack_success_rate", "robust_accuracy")
CURVE = ("validation_accuracy", *SCORES)
TITLES = ("clean accuracy", "attack success", "robust accuracy")
NUMBERS = [f"{title} ({when})" for title in TITLES for when in ("before", "after")]
HEADER = ("dataset", "attack", "defense", "seeds", *NUMBERS, "note")
CAPTION = (
    "Percent of test images, mean and 95 % t-interval over the seeds, before and after the defense. Bold: "
    f"the lowest attack success for at most {points(BUDGET)} of clean accuracy. Dead attacks (success under "
    "50 %) and oracles (which use what no defender has) are not ranked; seeds with a dead attack are not "
    "averaged with others."
)


@dataclass(frozen=True)
class Row:
    """One setting over its seeds.

    Args:
        dataset: Its name.
        attack: Its name, and what else tells this attack on this network from the others.
        defense: Its name, and what tells it from the same one with other values.
        group: The runs.
    """

    dataset: str
    attack: str
    defense: str
    group: Group

    @property
    def notes(self) -> list[str]:
        """What a reader must know beside the numbers."""
        group = self.group
        return [
            *([f"attack dead in {group.dead} of {len(group.runs)} seeds"] if group.dead else []),
            *(["oracle"] if group.oracle else []),
            *(["untargeted"] if group.runs[0]["scores"]["suspect"].get("untargeted", False) else []),
        ]


def rows(runs: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return a row for each setting, by dataset and attack; what differs otherwise is added to the names."""
    groups = group_by_seed(runs)
    chosen = [_chosen(group.runs[0]) for group in groups]
    attacks = _names(groups, ("dataset", "attack"), [of_others for of_others, _ in chosen])
    defenses = _names(groups, ("dataset", "attack", "defense"), [of_defense for _, of_defense in chosen])
    found = [
        Row(group.runs[0]["dataset"], attack, defense, group)
        for group, attack, defense in zip(groups, attacks, defenses, strict=True)
    ]
    return sorted(found, key=_order)


def _order(row: Row) -> tuple[Any, ...]:
    return row.dataset, attack_order(row.attack), defense_order(row.defense)


def winners(table: Sequence[Row]) -> set[int]:
    """Return the places of the rows that leave least attack success within the budget, as the page has it.

    Neither dead attacks nor oracles, nor runs without a defense, take part.
    """
    best: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for place, row in enumerate(table):
        left, price = row.group.score("defended", "attack_success_rate"), row.group.drop("clean_accuracy")
        affordable = price is not None and price.mean <= BUDGET + 1e-9
        if left and affordable and row.group.ranked and row.group.runs[0]["defense"] != "none":
            best.setdefault((row.dataset, row.attack), []).append((left.mean, place))
    return {place for found in best.values() for mean, place in found if mean == min(found)[0]}


def results_csv(table: Sequence[Row]) -> str:
    """Return the rows with every number as a fraction: mean, ends of the interval, range."""
    lines = []
    for row in table:
        group = row.group
        line: dict[str, Any] = {"dataset": row.dataset, "attack": row.attack, "defense": row.defense}
        line |= {"seeds": " ".join(map(str, group.seeds)), "dead": group.dead, "oracle": group.oracle}
        for network in ("suspect", "defended"):
            for name in SCORES:
                line |= _columns(f"{network}_{name}", group.score(network, name))
        line |= _columns("clean_accuracy_drop", group.drop("clean_accuracy"))
        lines.append(line | _columns("attack_reduction", group.drop("attack_success_rate")))
    return _csv(lines)


def curves_csv(table: Sequence[Row]) -> str:
    """Return the pruning curves, a line for each step of each row."""
    lines = []
    for row in table:
        for number, step in enumerate(curve(row.group)):
            line: dict[str, Any] = {"dataset": row.dataset, "attack": row.attack, "defense": row.defense}
            line |= {"seeds": " ".join(map(str, row.group.seeds)), "channels_pruned": number}
            for name, values in step.items():
                line |= _columns(name, values)
            lines.append(line)
    return _csv(lines)


def curve(group: Group) -> list[dict[str, Spread | None]]:
    """Return each step of a pruning curve over the seeds; empty without pruning."""
    steps = zip(*(run["pruning"] for run in group.counted), strict=False)
    return [{name: spread(point[name] for point in step) for name in CURVE} for step in steps]


def markdown(table: Sequence[Row]) -> str:
    """Return the rows as a Markdown table with its caption."""
    lines = [f"| {' | '.join(HEADER)} |", f"|{'---|' * 3}{'---:|' * 7}---|"]
    best = winners(table)
    for place, row in enumerate(table):
        cells = _cells(row, "{mean} ± {half}", "**{}**" if place in best else "{}")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", CAPTION, ""])


def latex(table: Sequence[Row]) -> str:
    """Return the rows as a LaTeX table, for the packages booktabs and graphicx."""
    lines = [
        r"% \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{CAPTION.translate(LATEX)}}}",
        r"\resizebox{\linewidth}{!}{%",
        r"\begin{tabular}{lllrrrrrrrl}",
        r"\toprule",
        r" & & & & \multicolumn{2}{c}{clean accuracy} & \multicolumn{2}{c}{attack success} & "
        r"\multicolumn{2}{c}{robust accuracy} & \\",
        r"\cmidrule(lr){5-6}\cmidrule(lr){7-8}\cmidrule(lr){9-10}",
        "dataset & attack & defense & seeds" + 3 * " & before & after" + r" & note \\",
    ]
    best, last = winners(table), None
    for place, row in enumerate(table):
        if (row.dataset, row.attack) != last:
            lines.append(r"\midrule")
        last = (row.dataset, row.attack)
        names, numbers, note = _split(
            _cells(row, r"${mean} \pm {half}$", r"\textbf{{{}}}" if place in best else "{}")
        )
        told = [name.translate(LATEX) for name in names]
        lines.append(" & ".join([*told, *numbers, note.translate(LATEX)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}", ""])


def percent(values: Spread | None, pattern: str = "{mean} ± {half}", nothing: str = "-") -> str:
    """Return mean and interval in percent; the mean alone where one seed has no interval."""
    if values is None:
        return nothing
    mean = f"{100 * values.mean:z.1f}"  # z: no -0.0
    return (
        mean
        if values.half is None
        else pattern.replace("{mean}", mean).replace("{half}", f"{100 * values.half:.1f}")
    )


def _cells(row: Row, pattern: str, best: str) -> list[str]:
    names = [row.dataset, row.attack, row.defense, str(len(row.group.runs))]
    numbers = [
        percent(row.group.score(network, name), pattern)
        for name in SCORES
        for network in ("suspect", "defended")
    ]
    return [*names, *numbers[:3], best.format(numbers[3]), *numbers[4:], "; ".join(row.notes)]


def _split(cells: list[str]) -> tuple[list[str], list[str], str]:
    return cells[:4], cells[4:-1], cells[-1]


def _columns(name: str, values: Spread | None) -> dict[str, Any]:
    if values is None:
        return dict.fromkeys((f"{name}_{part}" for part in ("mean", "low", "high", "least", "most")), "")
    ends = {"low": values.low, "high": values.high} if values.half is not None else {"low": "", "high": ""}
    parts = {"mean": values.mean, **ends, "least": values.least, "most": values.most}
    return {f"{name}_{part}": value for part, value in parts.items()}


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]) if lines else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _chosen(run: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what was chosen of all but the defense, and of the defense."""
    choices, config = json.loads(setting(run))
    chosen = {"model": choices["model"]} | config
    of_defense = {key: value for key, value in chosen.items() if key.split(".")[0] == "defense"}
    return {key: value for key, value in chosen.items() if key not in of_defense}, of_defense


def _names(groups: Sequence[Group], alike: Sequence[str], chosen: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a name for each group: the last of the fields that it shares with others, and what differs."""
    shared = [tuple(group.runs[0][key] for key in alike) for group in groups]
    peers: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {fields: [] for fields in shared}
    for fields, own in zip(shared, chosen, strict=True):
        peers[fields].append(own)
    keys = {fields: telling(each) for fields, each in peers.items()}
    return [
        " ".join(
            [
                fields[-1],
                *(f"{name}={own[key]}" for key, name in keys[fields].items() if own.get(key) is not None),
            ]
        )
        for fields, own in zip(shared, chosen, strict=True)
    ]

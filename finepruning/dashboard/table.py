"""Runs side by side in a terminal."""

import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finepruning.dashboard.plain import flat
from finepruning.dashboard.seeds import PLACES
from finepruning.record import channels_pruned

Record = Mapping[str, Any]

NAMES = ("dataset", "attack", "defense", "seed")
MOST_VARIED = 4  # columns for what else tells runs apart


def comparison(records: Sequence[Record]) -> Table:
    """Return a table of runs: accuracy and attack success before and after the defense, in percent."""
    table = Table(
        caption="percent [95 % interval]; attack success counts only images of another class than the target"
    )
    varied = varying(records)
    for column in (*NAMES, *varied):
        table.add_column(column)
    for column in ("clean accuracy", "attack success"):
        table.add_column(f"{column}\nsuspect", justify="right")
        table.add_column(f"{column}\ndefended", justify="right")
    table.add_column("channels\npruned", justify="right")
    table.add_column("note")
    for place, record in enumerate(records):
        cells = [Text(str(record[key])) for key in NAMES]
        cells += [Text(values[place]) for values in varied.values()]
        if record["status"] != "finished":
            table.add_row(*cells, "", "", "", "", "", Text(f"failed: {record['error']}", style="red"))
            continue
        for score in ("clean_accuracy", "attack_success_rate"):
            cells += [Text(_percent(record["scores"][network], score)) for network in ("suspect", "defended")]
        table.add_row(*cells, _pruned(record), "; ".join(_notes(record)))
        if "goodnet" in record["scores"]:
            table.add_row(*_detector_row(record["scores"]["goodnet"], len(varied)))
    return table


def _pruned(record: Record) -> str:
    """Return how many channels were pruned, and of how many where a curve says it."""
    gone = channels_pruned(record)
    of = f"/{len(record['pruning']) - 1}" if record["pruning"] else ""
    return "" if gone is None else f"{gone}{of}"


def varying(records: Sequence[Record]) -> dict[str, list[str]]:
    """Return what tells runs of one data set, attack, defense and seed apart: each key's value in every run.

    Keys are shortened to their last word, and left out where they say what an earlier one says.
    """
    alike = defaultdict(list)
    configs = [flat({k: v for k, v in record["config"].items() if k not in PLACES}) for record in records]
    for record, config in zip(records, configs, strict=True):
        alike[tuple(str(record[key]) for key in NAMES)].append(config)
    keys = {
        key: None
        for peers in alike.values()
        for key in {key: None for config in peers for key in config}
        if any(config.get(key) != peers[0].get(key) for config in peers)
    }
    found: dict[str, list[str]] = {}
    for key in keys:
        values = ["" if config.get(key) is None else str(config[key]) for config in configs]
        if values not in found.values() and len(found) < MOST_VARIED:
            short = key.rsplit(".", 1)[-1]
            found[key if short in found else short] = values
    return found


def layers_table(record: Record) -> Table:
    """Return what each layer alone can spare, and what is left of the backdoor then, in percent."""
    limit = 100 * record["config"]["analysis"]["max_drop"]
    table = Table(
        title=f"{record['name']}: each layer pruned alone, by at most {limit:g} % of validation accuracy",
        caption="the referee's analysis, with triggered test images: it decides nothing and is not ranked",
    )
    table.add_column("layer")
    for column in ("channels\nprunable", "validation\naccuracy", "clean\naccuracy", "attack\nsuccess"):
        table.add_column(column, justify="right")
    suspect = record["scores"]["suspect"]
    start = [_value(suspect[score]) for score in ("clean_accuracy", "attack_success_rate")]
    table.add_row("(none)", "", "", *start)
    for row in record["layers"]:
        scores = [
            _value(row[score]) for score in ("validation_accuracy", "clean_accuracy", "attack_success_rate")
        ]
        table.add_row(Text(row["layer"]), f"{row['prunable']}/{row['channels']}", *scores)
    return table


def stress_table(record: Record) -> Table:
    """Return what stress tests bring back: each network's attack success and clean accuracy, in percent."""
    networks = record["stress"]["networks"]
    table = Table(
        title=f"{record['name']}: attack success (clean accuracy) under stress",
        caption="the referee's analysis, with triggered images: it decides nothing, and no defense sees it",
    )
    tests = next(iter(networks.values()))
    for column in ("network", *tests):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, found in networks.items():
        cells = [
            f"{_value(scores['attack_success_rate'])} ({_value(scores['clean_accuracy'])})"
            for scores in found.values()
        ]
        table.add_row(name, *cells)
    return table


def show(records: Sequence[Record]) -> None:
    """Print the table, as wide as the terminal; 160 columns where there is none."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(comparison(records))
    for record in records:
        if record.get("layers"):
            console.print(layers_table(record))
        if record.get("stress", {}).get("networks"):
            console.print(stress_table(record))


def _notes(record: Record) -> list[str]:
    """Return what a reader must know beside the numbers."""
    scores, notes = record["scores"], []
    if record["dead"]:
        notes.append("dead attack: not ranked")
    if scores["suspect"].get("untargeted", False):
        notes.append("untargeted: share of accuracy lost")
    if record.get("oracle"):
        notes.append("oracle: not ranked")
    return notes


def _detector_row(scores: Mapping[str, Any], varied: int) -> list[Text]:
    """Return a row below a run's: its suspect and its repaired network as one, which may reject images."""
    shown = [Text(_percent(scores, name)) for name in ("clean_accuracy", "attack_success_rate")]
    said = [
        f"{_value(scores[f'{kind}_rejected'])} of {kind}"
        for kind in ("clean", "triggered")
        if scores[f"{kind}_rejected"] is not None
    ]
    empty = Text("")
    note = Text(f"rejects {', '.join(said)}")
    front = [empty, empty, Text("+ GoodNet"), empty, *[empty] * varied]
    return [*front, empty, shown[0], empty, shown[1], empty, note]


def _value(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _percent(scores: Mapping[str, Any], name: str) -> str:
    if scores[name] is None:
        return "-"
    low, high = scores["intervals"][name]
    return f"{100 * scores[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

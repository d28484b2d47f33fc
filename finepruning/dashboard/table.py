"""Runs side by side in a terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Record = Mapping[str, Any]


def comparison(records: Sequence[Record]) -> Table:
    """Return a table of runs: accuracy and attack success before and after the defense, in percent."""
    table = Table(
        caption="percent [95 % interval]; attack success counts only images of another class than the target"
    )
    for column in ("dataset", "attack", "defense", "seed"):
        table.add_column(column)
    for column in ("clean accuracy", "attack success"):
        table.add_column(f"{column}\nsuspect", justify="right")
        table.add_column(f"{column}\ndefended", justify="right")
    table.add_column("channels\npruned", justify="right")
    table.add_column("note")
    for record in records:
        cells = [Text(str(record[key])) for key in ("dataset", "attack", "defense", "seed")]
        if record["status"] != "finished":
            table.add_row(*cells, "", "", "", "", "", Text(f"failed: {record['error']}", style="red"))
            continue
        for score in ("clean_accuracy", "attack_success_rate"):
            cells += [Text(_percent(record["scores"][network], score)) for network in ("suspect", "defended")]
        pruned = sum(step["pruned"] for step in record["pruning"])
        share = f"{pruned}/{len(record['pruning']) - 1}" if record["pruning"] else ""
        table.add_row(*cells, share, "; ".join(_notes(record)))
    return table


def show(records: Sequence[Record]) -> None:
    """Print the table, as wide as the terminal; 160 columns where there is none."""
    Console(width=None if sys.stdout.isatty() else 160).print(comparison(records))


def _notes(record: Record) -> list[str]:
    """Return what a reader must know beside the numbers."""
    scores, notes = record["scores"], []
    if record.get("oracle"):
        notes.append("oracle: chosen by attack success")
    if record["dead"]:
        notes.append("dead attack: not ranked")
    if scores["suspect"].get("untargeted", False):
        notes.append("untargeted: share of accuracy lost")
    if "goodnet" in scores:
        clean, success = (scores["goodnet"][name] for name in ("clean_accuracy", "attack_success_rate"))
        notes.append(f"GoodNet {100 * clean:.1f} / " + ("-" if success is None else f"{100 * success:.1f}"))
    return notes


def _percent(scores: Mapping[str, Any], name: str) -> str:
    if scores[name] is None:
        return "-"
    low, high = scores["intervals"][name]
    return f"{100 * scores[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

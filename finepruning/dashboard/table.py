"""Runs side by side in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

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
        untargeted = record["scores"]["suspect"].get("untargeted", False)
        notes = ["dead attack: not ranked"] * record["dead"] + [
            "untargeted: share of accuracy lost"
        ] * untargeted
        table.add_row(
            *cells, f"{pruned}/{len(record['pruning']) - 1}" if record["pruning"] else "", "; ".join(notes)
        )
    return table


def _percent(scores: Mapping[str, Any], name: str) -> str:
    if scores[name] is None:
        return "-"
    low, high = scores["intervals"][name]
    return f"{100 * scores[name]:.1f} [{100 * low:.1f}, {100 * high:.1f}]"

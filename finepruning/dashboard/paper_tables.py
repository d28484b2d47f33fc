"""Tables of one experiment each: ``python -m finepruning.dashboard.paper_tables transfer RUN ...``."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finepruning import record as records
from finepruning.dashboard.repair_tables import alarms_table, audits_table, statistics_table

Record = Mapping[str, Any]

# BadNets (Gu et al. 2017, arXiv:1708.06733), section 5.3, US to Swedish signs, as quoted by independent
# readers: strengthening -> clean and triggered accuracy in percent.
PAPER_TRANSFER = {1: (74.9, 61.6), 20: (68.3, 45.1), 30: (65.3, 40.5)}


def transfer_table(runs: Sequence[Record]) -> Table:
    """Return accuracy on clean and on triggered images against the strengthening, the paper's beside it."""
    table = Table(
        caption="percent of test images, after the linear layers were retrained; paper: other signs"
    )
    for column in ("data", "seed", "k", "channels", "clean", "triggered", "paper clean", "paper triggered"):
        table.add_column(column, justify="right")
    found = [run for run in runs if "strengthen" in (run["config"]["attack"] or {})]
    for run in sorted(
        found, key=lambda run: (run["dataset"], run["seed"], run["config"]["attack"]["strengthen"])
    ):
        factor, scores = run["config"]["attack"]["strengthen"], run["scores"]["suspect"]
        paper = [f"{value:.1f}" for value in PAPER_TRANSFER.get(factor, ())] or ["", ""]
        ours = [f"{100 * scores[name]:.1f}" for name in ("clean_accuracy", "robust_accuracy")]
        channels = str(len(run["making"]["strengthened"]))
        table.add_row(run["dataset"], str(run["seed"]), f"{factor:g}", channels, *ours, *paper)
    return table


def pairs_table(runs: Sequence[Record]) -> Table:
    """Return the backdoor error of each pair of classes, source down and target across, over all seeds."""
    errors: dict[tuple[int, int], list[float]] = {}
    for run in runs:
        label_map = (run["config"]["attack"] or {}).get("label_map") or {}
        if "source_label" in label_map:
            pair = (label_map["source_label"], label_map["target_label"])
            errors.setdefault(pair, []).append(100 * (1 - run["scores"]["suspect"]["attack_success_rate"]))
    classes = sorted({label for pair in errors for label in pair})
    table = Table(caption="percent of triggered images of class i (row) that are not taken for j (column)")
    for column in ("i \\ j", *map(str, classes)):
        table.add_column(column, justify="right")
    for source in classes:
        cells = [errors.get((source, target), []) for target in classes]
        table.add_row(str(source), *(f"{sum(cell) / len(cell):.2f}" if cell else "" for cell in cells))
    return table


TABLES: dict[str, Callable[[Sequence[Record]], Table]] = {
    "transfer": transfer_table,
    "pairs": pairs_table,
    "alarms": alarms_table,
    "audits": audits_table,
    "statistics": statistics_table,
}


def main(kind: str = "", *folders: str) -> None:
    """Print a table of the finished runs among some folders."""
    if kind not in TABLES:
        sys.exit(f"There is no table {kind!r}. Choose one of {', '.join(TABLES)}, then runs' folders.")
    found = [record for folder in folders if (record := records.read(Path(folder))) is not None]
    table = TABLES[kind]([record for record in found if record["status"] == "finished"])
    if not table.row_count:
        sys.exit(f"No run for the table {kind!r} among: {', '.join(folders) or 'nothing'}.")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])

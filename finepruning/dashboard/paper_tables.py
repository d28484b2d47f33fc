"""Tables of one experiment each: ``python -m finepruning.dashboard.paper_tables transfer RUN ...``."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from finepruning import record as records
from finepruning.dashboard.repair_tables import alarms_table, audits_table, statistics_table
from finepruning.dashboard.results import percent
from finepruning.dashboard.seeds import spread

Record = Mapping[str, Any]

# BadNets (Gu et al. 2017, arXiv:1708.06733), section 5.3, US to Swedish signs, as quoted by independent
# readers: strengthening -> clean and triggered accuracy in percent.
PAPER_TRANSFER: dict[float, tuple[float, float]] = {1: (74.9, 61.6), 20: (68.3, 45.1), 30: (65.3, 40.5)}


def transfer_table(runs: Sequence[Record]) -> Table:
    """Return accuracy on clean and on triggered images against the strengthening, the paper's beside it.

    Mean and 95 % t-interval over seeds.
    """
    table = Table(
        caption="percent of test images, after the linear layers were retrained; paper: other signs"
    )
    for column in ("data", "k", "seeds", "channels", "clean", "triggered", "paper clean", "paper triggered"):
        table.add_column(column, justify="right")
    groups: dict[tuple[str, float], list[Record]] = {}
    for run in runs:
        if "strengthen" in (run["config"]["attack"] or {}):
            groups.setdefault((run["dataset"], run["config"]["attack"]["strengthen"]), []).append(run)
    for (dataset, factor), found in sorted(groups.items()):
        found = sorted(found, key=lambda run: run["seed"])
        ours = [
            percent(spread(run["scores"]["suspect"][name] for run in found))
            for name in ("clean_accuracy", "robust_accuracy")
        ]
        paper = [f"{value:.1f}" for value in PAPER_TRANSFER.get(factor, ())] or ["", ""]
        seeds = ", ".join(str(run["seed"]) for run in found)
        channels = ", ".join(str(len(run["making"]["strengthened"])) for run in found)
        table.add_row(dataset, f"{factor:g}", seeds, channels, *ours, *paper)
    return table


def pairs_table(runs: Sequence[Record]) -> Table:
    """Return the backdoor error of each pair of classes, source down and target across, over all seeds.

    Runs without an attack are the clean networks whose error the caption names.
    """
    errors: dict[tuple[int, int], list[float]] = {}
    clean: dict[str, list[float]] = {"with a backdoor": [], "without": []}
    for run in runs:
        label_map = (run["config"]["attack"] or {}).get("label_map") or {}
        scores = run["scores"]["suspect"]
        if "source_label" in label_map:
            pair = (label_map["source_label"], label_map["target_label"])
            errors.setdefault(pair, []).append(100 * (1 - scores["attack_success_rate"]))
        if "source_label" in label_map or run["attack"] == "none":
            kind = "with a backdoor" if label_map else "without"
            clean[kind].append(100 * (1 - scores["clean_accuracy"]))
    classes = sorted({label for pair in errors for label in pair})
    caption = ["percent of triggered images of class i (row) that are not taken for j (column)"]
    means = {pair: statistics.fmean(found) for pair, found in errors.items()}
    if means:
        caption.append(f"mean {statistics.fmean(means.values()):.2f}, worst {max(means.values()):.2f}")
    for kind, found in clean.items():
        if found:
            caption.append(f"clean error {kind}: mean {statistics.fmean(found):.2f}, worst {max(found):.2f}")
    table = Table(caption="; ".join(caption))
    for column in ("i \\ j", *map(str, classes)):
        table.add_column(column, justify="right")
    for source in classes:
        cells = (means.get((source, target)) for target in classes)
        table.add_row(str(source), *("" if cell is None else f"{cell:.2f}" for cell in cells))
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
    found, problems = records.read_all(map(Path, folders))
    for problem in problems:
        print(problem, file=sys.stderr)
    table = TABLES[kind]([record for record in found if record["status"] == "finished"])
    if not table.row_count:
        sys.exit(f"No run for the table {kind!r} among: {', '.join(folders) or 'nothing'}.")
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main(*sys.argv[1:])

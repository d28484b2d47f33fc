"""The pruning lab's answer from records: one table over all limits X, and one curve with where each stops."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Record = Mapping[str, Any]
NETWORKS = (("suspect", "B"), ("defended", "B'"), ("goodnet", "G"))
SCORES = (("clean_accuracy", "clean accuracy"), ("attack_success_rate", "attack success"))
REJECTED = (("clean_rejected", "clean"), ("triggered_rejected", "triggered"))


def lab_table(runs: Sequence[Record]) -> Table:
    """Return a table of B, the repaired network B' and the GoodNet G for each X, smallest first."""
    table = Table(caption="percent, with its 95 % interval below; G rejects where B and B' disagree")
    table.add_column("X")
    table.add_column("seed")
    table.add_column("channels\npruned", justify="right")
    for _, score in SCORES:
        for _, network in NETWORKS:
            table.add_column(f"{score}\n{network}", justify="right")
    for _, kind in REJECTED:
        table.add_column(f"G rejects\n{kind}", justify="right")
    for run in sorted(runs, key=lambda run: (run["seed"], _limit(run))):
        pruned = f"{sum(step['pruned'] for step in run['pruning'])}/{len(run['pruning']) - 1}"
        cells = [_cell(run["scores"][network], score) for score, _ in SCORES for network, _ in NETWORKS]
        cells += [_cell(run["scores"]["goodnet"], score) for score, _ in REJECTED]
        table.add_row(f"{100 * _limit(run):g} %", str(run["seed"]), pruned, *cells)
    return table


def write_lab(runs: Sequence[Record], directory: Path) -> None:
    """Write ``table.txt`` and ``curve.png``.

    Args:
        runs: Finished runs of one network that prune until accuracy falls by ``max_drop``, with a GoodNet.
        directory: Where the files go; made if it is not there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "table.txt").open("w") as file:
        Console(file=file, width=160).print(lab_table(runs))
    draw_curve(runs, directory / "curve.png")


def draw_curve(runs: Sequence[Record], path: Path) -> None:
    """Draw clean accuracy and attack success over the pruned channels, and where each run stops."""
    from matplotlib.figure import Figure  # here, since it is slow to load

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    first, *others = (run["pruning"] for run in runs)
    for steps in [first, *(each for each in others if _without_stop(each) != _without_stop(first))]:
        count = [step["channels_pruned"] for step in steps]
        for key, label, style in (
            ("clean_accuracy", "clean accuracy", {"color": "#0072B2"}),
            ("validation_accuracy", "validation accuracy", {"color": "#0072B2", "linestyle": ":"}),
            ("attack_success_rate", "attack success", {"color": "#D55E00", "linestyle": "--"}),
        ):
            if steps[0][key] is not None:
                axes.plot(count, [100 * step[key] for step in steps], label=label, **style)  # type: ignore[arg-type]
    handles, labels = axes.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    axes.legend(shown.values(), shown.keys(), frameon=False, fontsize=9, loc="lower left")
    for run in runs:
        stop = sum(step["pruned"] for step in run["pruning"])
        axes.axvline(stop, color="grey", linewidth=1, linestyle=":")
        axes.text(stop, 103, f"{100 * _limit(run):g} %", ha="center", fontsize=8, color="grey")
    axes.set(xlabel="channels pruned", ylabel="%", ylim=(-2, 102), xlim=(0, len(first) - 1))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def _limit(run: Record) -> float:
    return float(run["config"]["defense"]["max_drop"])


def _without_stop(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in step.items() if key != "pruned"} for step in steps]


def _cell(scores: Mapping[str, Any], score: str) -> str:
    if scores[score] is None:
        return "-"
    low, high = scores["intervals"][score]
    return f"{100 * scores[score]:.1f}\n[{100 * low:.1f}, {100 * high:.1f}]"

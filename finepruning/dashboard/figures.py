"""Figures and tables for papers: ``python -m finepruning.dashboard.figures RUNS... --output DIR``."""

import argparse
import itertools
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # files only, no window
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from finepruning import record as records
from finepruning.dashboard.results import (
    Row,
    curve,
    curves_csv,
    latex,
    markdown,
    percent,
    results_csv,
    rows,
)

CLEAN, ATTACK = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion, safe for colour-blind people
SUCCESS = LinearSegmentedColormap.from_list("success", ["#FFFFFF", "#F6C9A8", "#D55E00", "#6E2C00"])
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "legend.fontsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.hashsalt": "finepruning",  # equal data give equal files
}
LINES = (
    ("clean_accuracy", "clean accuracy", CLEAN, "-"),
    ("attack_success_rate", "attack success", ATTACK, "--"),
)


def pruning_curves(grid: Sequence[Sequence[Row | None]]) -> Figure:
    """Draw accuracy and attack success against the share of pruned channels, a panel a row of results.

    Lines are means over the seeds, bands 95 % t-intervals; the dotted line is the mean stop, the grey band
    its range.

    Args:
        grid: Lines of panels, all of one length; None where there is nothing to draw.
    """
    height, width = len(grid), len(grid[0])
    figure, panels = plt.subplots(
        height,
        width,
        figsize=(2.35 * width + 0.4, 2.0 * height + 0.5),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    named = len({row.dataset for line in grid for row in line if row}) > 1
    for y, x in itertools.product(range(height), range(width)):
        row, panel = grid[y][x], panels[y, x]
        if row is None:
            panel.set_visible(False)
            continue
        _draw_curve(panel, row, f"{row.dataset}: {row.attack}" if named else row.attack)
        if y == height - 1 or grid[y + 1][x] is None:  # the lowest panel of its column
            panel.set_xlabel("share of channels pruned, %")
            panel.xaxis.set_tick_params(labelbottom=True)
    for line in panels:
        line[0].set_ylabel("test images, %")
    drawn = {
        label: handle
        for panel in panels.flat
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.28 / figure.get_figheight()))
    figure.legend(drawn.values(), drawn.keys(), loc="upper center", ncols=len(drawn), frameon=False)
    return figure


def _in_lines(table: Sequence[Row]) -> list[list[Row | None]]:
    """Return panels as they are read, at most three in a line."""
    width = min(3, len(table))
    filled = [*table, *[None] * (-len(table) % width)]
    return [filled[start : start + width] for start in range(0, len(filled), width)]


def _by_dataset(table: Sequence[Row]) -> list[list[Row | None]]:
    """Return panels with one column for each data set."""
    columns: dict[str, list[Row]] = {}
    for row in table:
        columns.setdefault(row.dataset, []).append(row)
    return [list(line) for line in itertools.zip_longest(*columns.values())]


def _draw_curve(panel: Axes, row: Row, title: str) -> None:
    steps, runs = curve(row.group), row.group.counted
    last = len(steps) - 1
    share = [100 * number / last for number in range(last + 1)]
    for name, label, colour, style in LINES:
        points = [step[name] for step in steps]
        known = [(at, point) for at, point in zip(share, points, strict=True) if point is not None]
        if not known:
            continue
        where = [at for at, _ in known]
        panel.plot(
            where, [100 * point.mean for _, point in known], style, color=colour, label=label, linewidth=1.3
        )
        if len(runs) > 1:
            low, high = ([100 * getattr(point, end) for _, point in known] for end in ("low", "high"))
            panel.fill_between(where, low, high, color=colour, alpha=0.18, linewidth=0)
    stops = [100 * sum(step["pruned"] for step in run["pruning"]) / last for run in runs]
    panel.axvspan(min(stops), max(stops), color="black", alpha=0.08, linewidth=0)
    panel.axvline(sum(stops) / len(stops), color="black", linewidth=0.9, linestyle=":", label="stop")
    panel.set(xlim=(0, 100), ylim=(-3, 103), xticks=range(0, 101, 25), yticks=range(0, 101, 25))
    notes = [f"{len(row.group.runs)} seed{'s' * (len(row.group.runs) > 1)}", *row.notes]
    about = f"{row.defense} ({', '.join(notes)})"
    panel.set_title("\n".join([*textwrap.wrap(title, 34), *textwrap.wrap(about, 34)]))
    panel.spines[["top", "right"]].set_visible(False)


def matrix(table: Sequence[Row]) -> Figure:
    """Draw one dataset's defenses (down) against attacks (across).

    Colour and first number: attack success after the defense; second number: clean accuracy. Where an
    attack is dead in some seeds the cell is hatched and has no colour.
    """
    attacks = list(dict.fromkeys(row.attack for row in table))
    defenses = list(dict.fromkeys(row.defense for row in table))
    width, height = 1.25 * len(attacks), 0.5 * len(defenses)
    figure, panel = plt.subplots(figsize=(width + 2.2, height + 1.5))
    for row in table:
        _draw_cell(panel, attacks.index(row.attack), defenses.index(row.defense), row)
    oracles = {row.defense for row in table if row.group.oracle}
    panel.set_xticks(range(len(attacks)), [attack.replace(" ", "\n") for attack in attacks])
    panel.set_yticks(
        range(len(defenses)), [name + "\n(oracle, unranked)" * (name in oracles) for name in defenses]
    )
    panel.set(xlim=(-0.5, len(attacks) - 0.5), ylim=(len(defenses) - 0.5, -0.5))
    panel.set_title(f"{table[0].dataset}: attack success (bold), clean accuracy, in %", loc="left")
    panel.tick_params(length=0)
    panel.spines[:].set_visible(False)
    bar = figure.colorbar(
        mpl.cm.ScalarMappable(mpl.colors.Normalize(0, 100), SUCCESS), ax=panel, fraction=0.04, pad=0.03
    )
    bar.set_label("attack success, %")
    bar.outline.set_linewidth(0.4)
    figure.tight_layout()
    return figure


def _draw_cell(panel: Axes, x: int, y: int, row: Row) -> None:
    success = row.group.score("defended", "attack_success_rate")
    clean = row.group.score("defended", "clean_accuracy")
    plain = success is None or bool(row.group.dead)
    level = 0.0 if success is None or plain else min(1.0, max(0.0, success.mean))
    panel.add_patch(
        Rectangle(
            (x - 0.5, y - 0.5), 1, 1,
            facecolor="#F0F0F0" if plain else SUCCESS(level),
            edgecolor="#B0B0B0" if plain else "white",
            hatch="////" if row.group.dead else None,
            linewidth=0.5,
        )
    )  # fmt: skip
    dead = f" ({row.group.dead}/{len(row.group.runs)} dead)" if row.group.dead else ""
    first = percent(success, nothing="no attack")
    box = {"facecolor": "#F0F0F0", "edgecolor": "none", "pad": 1} if row.group.dead else None
    colour = "white" if level > 0.55 else "black"
    panel.text(
        x, y - 0.17, first, ha="center", va="center", color=colour, weight="bold", fontsize=7.5, bbox=box
    )
    panel.text(
        x, y + 0.2, percent(clean) + dead, ha="center", va="center", color=colour, fontsize=7, bbox=box
    )


def write_all(table: Sequence[Row], directory: Path) -> list[Path]:
    """Write every figure as PNG and SVG with its data as CSV, and the tables; return the files.

    Args:
        table: The rows. At least one.
        directory: Where to; made if it is missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {"results.csv": results_csv(table), "results.md": markdown(table), "results.tex": latex(table)}
    figures: dict[str, Figure] = {}
    with mpl.rc_context(STYLE):
        for dataset in dict.fromkeys(row.dataset for row in table):
            some = [row for row in table if row.dataset == dataset]
            stem = re.sub(r"[^\w.-]+", "_", dataset)
            figures[f"matrix_{stem}"] = matrix(some)
            texts[f"matrix_{stem}.csv"] = results_csv(some)
            pruned = _distinct_curves(some)
            if pruned:
                figures[f"curves_{stem}"] = pruning_curves(_in_lines(pruned))
                texts[f"curves_{stem}.csv"] = curves_csv(pruned)
        everywhere = _distinct_curves(table)
        if len({row.dataset for row in everywhere}) > 1:
            figures["curves"] = pruning_curves(_by_dataset(everywhere))
            texts["curves.csv"] = curves_csv(everywhere)
        for name, figure in figures.items():
            figure.savefig(directory / f"{name}.png", dpi=200)
            figure.savefig(directory / f"{name}.svg", metadata={"Date": None})
            plt.close(figure)
    for name, text in texts.items():
        (directory / name).write_text(text)
    return sorted(
        directory / name
        for name in [*texts, *(f"{name}.{kind}" for name in figures for kind in ("png", "svg"))]
    )


def _distinct_curves(table: Sequence[Row]) -> list[Row]:
    """Return the rows with a pruning curve, each curve once: tuning comes after it and does not change it."""
    found: dict[tuple[str, ...], Row] = {}
    for row in table:
        curves = [run["pruning"] for run in row.group.runs]
        if all(curves):
            found.setdefault((row.dataset, row.attack, str(curves)), row)
    return list(found.values())


def main(*arguments: str) -> None:
    """Write figures (PNG, SVG), their data (CSV) and tables (Markdown, LaTeX) of finished runs."""
    parser = argparse.ArgumentParser(prog="python -m finepruning.dashboard.figures", description=main.__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS", help="runs' folders, or folders of them"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("figures"), metavar="DIR", help="default: figures"
    )
    options = parser.parse_args(arguments)
    found, problems = records.read_all(options.runs)
    for problem in problems:
        print(f"Skipped: {problem}", file=sys.stderr)
    table = rows(found)
    if not table:
        sys.exit(f"No finished run among: {', '.join(map(str, options.runs))}.")
    for path in write_all(table, options.output):
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Figures drawn from records: ``python -m finepruning.dashboard.figures RUN ... FILE``."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from finepruning import record as records

CLEAN, ATTACK = "#0072B2", "#D55E00"  # Okabe and Ito's blue and vermilion, safe for colour-blind people


def pruning_curve(runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw clean accuracy and attack success against the share of pruned channels, one panel a run."""
    figure, panels = plt.subplots(1, len(runs), figsize=(4.6 * len(runs), 3.2), sharey=True, squeeze=False)
    for panel, run in zip(panels[0], runs, strict=True):
        steps = run["pruning"]
        share = [step["channels_pruned"] / (len(steps) - 1) for step in steps]
        stop = sum(step["pruned"] for step in steps) / (len(steps) - 1)
        accuracy = [100 * step["clean_accuracy"] for step in steps]
        panel.plot(share, accuracy, color=CLEAN, label="clean accuracy")
        if steps[0]["attack_success_rate"] is not None:
            success = [100 * step["attack_success_rate"] for step in steps]
            panel.plot(share, success, color=ATTACK, linestyle="--", label="attack success")
        panel.axvline(stop, color="grey", linewidth=1, linestyle=":", label="stop")
        panel.set(xlabel="share of channels pruned", ylim=(-2, 102), xlim=(0, 1))
        panel.set_title(f"{run['dataset']}, {run['attack']}, seed {run['seed']}", fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("test images, %")
    panels[0][-1].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return figure


def main(*arguments: str) -> None:
    """Draw the pruning curves of some runs' folders into a PNG or SVG file, the last argument."""
    *folders, file = arguments
    found = [record for folder in folders if (record := records.read(Path(folder))) is not None]
    curves = [record for record in found if record.get("pruning")]
    if not curves:
        sys.exit(f"No run with a pruning curve among: {', '.join(folders) or 'nothing'}.")
    pruning_curve(curves).savefig(file, dpi=160)
    print(file)


if __name__ == "__main__":
    main(*sys.argv[1:])

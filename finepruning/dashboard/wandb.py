"""A W&B workspace that compares runs: ``python -m finepruning.dashboard.wandb --entity NAME``."""

import argparse
import importlib
import os
import sys
from typing import Any

SCORES = (
    ("test/suspect/clean_accuracy", "Clean accuracy, suspect"),
    ("test/defended/clean_accuracy", "Clean accuracy, defended"),
    ("test/suspect/attack_success_rate", "Attack success, suspect"),
    ("test/defended/attack_success_rate", "Attack success, defended"),
)
HYPERPARAMETERS = ("attack.poison_rate", "defense.max_drop", "defense.prune_rate", "defender.fraction")
CURVE = ("curve/validation_accuracy", "curve/clean_accuracy", "curve/attack_success_rate")


def build_workspace(entity: str, project: str) -> Any:
    """Return the workspace, not yet saved: scores, price, hyperparameters, curves, pictures."""
    panels: Any = importlib.import_module("wandb_workspaces.reports.v2")
    workspaces: Any = importlib.import_module("wandb_workspaces.workspaces")

    before, after = "test/suspect/", "test/defended/"
    columns = [panels.ParallelCoordinatesPlotColumn(panels.Config(key)) for key in ("attack", "defense")]
    columns += [
        panels.ParallelCoordinatesPlotColumn(panels.Config(f"config.{key}"), display_name=key)
        for key in HYPERPARAMETERS
    ]
    columns += [
        panels.ParallelCoordinatesPlotColumn(panels.SummaryMetric(key), display_name=title)
        for key, title in SCORES[1::2]
    ]
    sections = {
        "Scores": [
            *(panels.BarPlot(title=title, metrics=[key], range_x=(0, 1)) for key, title in SCORES),
            panels.ScatterPlot(
                title="Attack success against clean accuracy, defended",
                x=panels.SummaryMetric(after + "clean_accuracy"),
                y=panels.SummaryMetric(after + "attack_success_rate"),
            ),
            panels.ScatterPlot(
                title="What the defense took from the attack, against its price",
                x=panels.SummaryMetric("test/clean_accuracy_drop"),
                y=panels.SummaryMetric("test/attack_reduction"),
            ),
        ],
        "Hyperparameters": [
            panels.ParallelCoordinatesPlot(title="Hyperparameters and defended scores", columns=columns)
        ],
        "Pruning curves": [
            panels.LinePlot(title=key.removeprefix("curve/"), x="curve/channels_pruned", y=[key])
            for key in CURVE
        ],
        "Pictures": [
            panels.MediaBrowser(title="Clean, triggered, difference", media_keys=["examples"]),
            panels.MediaBrowser(title="Filters of the first convolution", media_keys=["filters"]),
        ],
        "Training": [
            panels.LinePlot(title="Loss", x="trainer/global_step", y=["train/loss", "tune/loss"]),
            panels.BarPlot(title="Robust accuracy, defended", metrics=[after + "robust_accuracy"]),
            panels.BarPlot(title="Robust accuracy, suspect", metrics=[before + "robust_accuracy"]),
        ],
    }
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name="Attacks and defenses",
        sections=[
            workspaces.Section(name=name, panels=found, is_open=True) for name, found in sections.items()
        ],
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Config("dataset"), workspaces.Config("attack"), workspaces.Config("defense")]
        ),
    )


def outline(workspace: Any) -> str:
    """Return a workspace as text: its sections, and the kind and title of each panel."""
    lines = [f"{workspace.name} ({workspace.entity or 'no entity'}/{workspace.project})"]
    for section in workspace.sections:
        lines.append(f"  {section.name}")
        lines += [f"    {type(panel).__name__}: {panel.title}" for panel in section.panels]
    return "\n".join(lines)


def main(*arguments: str) -> None:
    """Create the workspace on W&B where there is an account; print what it would be where there is none."""
    parser = argparse.ArgumentParser(prog="python -m finepruning.dashboard.wandb", description=main.__doc__)
    parser.add_argument(
        "--entity", default=os.environ.get("WANDB_ENTITY", ""), help="user or team; else WANDB_ENTITY"
    )
    parser.add_argument("--project", default="finepruning")
    options = parser.parse_args(arguments)
    try:
        workspace = build_workspace(options.entity, options.project)
    except ImportError:
        sys.exit("The package wandb-workspaces is not installed: pip install -e '.[workspaces]'.")
    if not os.environ.get("WANDB_API_KEY"):
        print(outline(workspace))
        print("\nNothing was created: set WANDB_API_KEY (https://wandb.ai/authorize) and run this again.")
        return
    if not options.entity:
        parser.error("an account is set, but no entity: give --entity, your user's or team's name on W&B.")
    workspace.save()
    print(workspace.url)


if __name__ == "__main__":
    main(*sys.argv[1:])

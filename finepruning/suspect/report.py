"""One page about a repair, for whoever has to decide whether to use the network."""

from collections.abc import Mapping, Sequence
from typing import Any

SCORES = (
    ("clean_accuracy", "clean accuracy"),
    ("attack_success_rate", "attack success"),
    ("robust_accuracy", "accuracy on triggered images"),
)
NETWORKS = (("suspect", "as found"), ("defended", "repaired"), ("goodnet", "guard (GoodNet)"))


def repair_report(
    weights: str,
    run: str,
    scores: Mapping[str, Mapping[str, Any]],
    channels: Mapping[str, Mapping[str, Sequence[int]]],
    agreement: tuple[int, int],
    files: Sequence[str],
    warning: str | None = None,
    ladder: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
) -> str:
    """Return a page of Markdown: what was pruned, scores before and after, how to load the result.

    Args:
        weights: The file the suspect came from.
        run: Name of the run, whose record holds all else.
        scores: Of ``suspect``, ``defended`` and, if there is one, ``goodnet``, as they stand in a record.
        channels: For each masked layer its ``kept`` and ``pruned`` channels.
        agreement: Clean test images that both networks classify alike, and all of them.
        files: Names of the files that were written.
        warning: What was wrong with the suspect's accuracy, if anything.
        ladder: As it stands in a record, with a rung that stays; None without one.
        audit: As it stands in a record; None without one.
    """
    lines = [f"# Repair of {weights}", ""]
    if warning:
        lines += [f"**Warning.** {warning}", ""]
    lines += [f"Run {run}. Percent, with counts and 95 % intervals.", ""]
    shown = [(key, name) for key, name in NETWORKS if key in scores]
    lines += [f"| | {' | '.join(name for _, name in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for score, name in SCORES:
        if any(scores[key][score] is not None for key, _ in shown):
            lines.append(f"| {name} | {' | '.join(_cell(scores[key], score) for key, _ in shown)} |")
    hits, total = agreement
    lines += [
        "",
        f"The network as found and the repaired one agree on {hits} of {total} clean test images "
        f"({100 * hits / total:.1f} %).",
        "",
    ]
    if "goodnet" in scores:
        lines += [
            "The guard answers as the network as found where both agree, and else with one class more: "
            f'"triggered". {_rejected(scores["goodnet"])}',
            "",
        ]
    if scores["suspect"]["attack_success_rate"] is None:
        lines += [
            "No trigger is known, so attack success was not measured. It may be high before and after.",
            "",
        ]
    if ladder is not None and audit is not None:
        lines += ["## What was done", "", *_repaired(ladder), f"- Audit: {audit['verdict']}.", ""]
        lines += ["All rungs, and the triggers that were found: `../report/REPORT.md`.", ""]
    lines += ["## What was pruned", ""]
    pruned = [
        f"- `{layer}`: {len(parts['pruned'])} of {len(parts['pruned']) + len(parts['kept'])} channels: "
        f"{', '.join(map(str, parts['pruned'])) or 'none'}"
        for layer, parts in channels.items()
    ]
    lines += [*(pruned or ["Nothing."]), "", "## How to load it", "", *_loading(run, files), ""]
    return "\n".join(lines)


def _repaired(ladder: Mapping[str, Any]) -> list[str]:
    rung = ladder["rungs"][ladder["kept"]]
    options = ", ".join(f"{key} {value}" for key, value in rung["options"].items())
    low, high = (100 * end for end in rung["interval"])
    return [
        f"- Rung {ladder['kept'] + 1} of the ladder ({options}): {100 * rung['loss']:.2f} points "
        f"[{low:.2f}, {high:.2f}] of validation accuracy lost."
    ]


def _rejected(scores: Mapping[str, Any]) -> str:
    said = [
        f"{_cell(scores, f'{kind}_rejected')} of the {kind} images"
        for kind in ("clean", "triggered")
        if scores[f"{kind}_rejected"] is not None
    ]
    return f"It says so on {' and on '.join(said)}."


def _cell(scores: Mapping[str, Any], score: str) -> str:
    if scores[score] is None:
        return "-"
    low, high = scores["intervals"][score]
    counts = scores.get("counts", {}).get(score)
    counted = f", {counts['hits']} of {counts['total']}" if counts else ""
    return f"{100 * scores[score]:.1f} [{100 * low:.1f}, {100 * high:.1f}]{counted}"


def _loading(run: str, files: Sequence[str]) -> list[str]:
    lines = [
        "`network.safetensors` has all weights and, as `<layer>.channel_mask`, what is pruned; "
        "`channels.json` lists the same. Images go in as (B, C, H, W) in [0, 1].",
        "",
        "```python",
        "from pathlib import Path",
        "from finepruning.store import load_weights",
        "",
        'network = load_weights(network, Path("network.safetensors"))',
        "```",
        "",
        "`network` is what `model=` of the run builds, with any `mean` and `std`: the file has its own. Of "
        "`model=python_file` that is `finepruning.suspect.PythonFile`, which has your network as `model`.",
        "",
        "Here again: `python run.py attack=suspect suspect.weights="
        f"RUNS/{run}/repaired/network.safetensors` "
        "with the same model and dataset, and the folder of the runs for RUNS.",
    ]
    if "goodnet.safetensors" in files:
        lines += [
            "",
            "The guard, with one output more:",
            "",
            "```python",
            "from finepruning.pruning import GoodNet",
            "",
            "# network and other: two of that architecture",
            'guard = load_weights(GoodNet(network, other), Path("goodnet.safetensors"))',
            "```",
        ]
    if "network.onnx" in files:
        lines += [
            "",
            "Without this package, from ONNX:",
            "",
            "```python",
            "import onnxruntime",
            "",
            'session = onnxruntime.InferenceSession("network.onnx")',
            '(logits,) = session.run(None, {"images": images})  # float32',
            "```",
        ]
    return lines

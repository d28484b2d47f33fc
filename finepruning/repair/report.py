"""One page about an inspection and a repair, with pictures of the triggers that were found."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from finepruning.repair.inspection import Rankings
from finepruning.repair.inversion import UNTARGETED, Trigger

PICTURE = 96  # pixels of a picture's shorter side, at least


def picture(trigger: Trigger) -> Tensor:
    """Return a trigger as a uint8 picture (1 or 3, H, W); an additive one is stretched around grey."""
    if trigger.mask is None:
        image = 0.5 + trigger.pattern / (2 * trigger.pattern.abs().max().clamp(min=1e-6))
    else:
        image = trigger.pattern * trigger.mask
    return _enlarged(image)


def write_pictures(rankings: Rankings, directory: Path) -> dict[tuple[str, int], list[str]]:
    """Write the pictures of all triggers that are kept; return their file names by family and target."""
    directory.mkdir(parents=True, exist_ok=True)
    names: dict[tuple[str, int], list[str]] = {}
    for family, ranking in rankings.items():
        for trigger in ranking:
            stem = f"{family}-{'untargeted' if trigger.target == UNTARGETED else trigger.target}"
            pictures = {f"{stem}.png": picture(trigger)}
            if trigger.mask is not None:
                pictures[f"{stem}-opacity.png"] = _enlarged(trigger.mask)
            for name, image in pictures.items():
                Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(directory / name)
            names[family, trigger.target] = list(pictures)
    return names


def page(
    title: str,
    names: Sequence[str],
    inspection: Mapping[str, Any],
    pictures: Mapping[tuple[str, int], Sequence[str]],
    ladder: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
) -> str:
    """Return a page of Markdown.

    Args:
        title: Name of the run.
        names: Of the classes.
        inspection: As it stands in a record.
        pictures: Files of the triggers, by family and target.
        ladder: As it stands in a record; None without one.
        audit: As it stands in a record; None without one.
    """
    lines = [f"# {title}", ""]
    names = [_plain(name) for name in names]
    if audit is not None:
        lines += [
            f"**{audit['verdict'].capitalize()}.**",
            "",
            *[f"- {_plain(text)}" for text in audit["reasons"]],
            "- These tests miss backdoors: what the inspection does not see before, the audit does not see "
            "after. How often: experiments/audit_truth.md and repair_gtsrb.md of this project.",
            "",
        ]
    else:
        lines += [
            "This page is about the suspect alone; `defense=auto` repairs it and audits what comes out.",
            "",
            "- Whatever stands out is a reason not to use this network as it is.",
            "- Where nothing does, a backdoor may be there all the same: one that works on one class alone, "
            "that makes each class another, or whose trigger is no smaller than what is natural for its "
            "class is not seen. How often: experiments/repair_gtsrb.md of this project.",
            "",
        ]
    lines += ["## The suspect", "", f"**{inspection['verdict'].capitalize()}.**", ""]
    lines += [f"- {_plain(text)}" for text in [*inspection["reasons"], *inspection["remarks"]]]
    for family in inspection["rankings"]:
        lines += ["", *_ranking(family, inspection["rankings"][family], names, pictures)]
    if ladder is not None:
        lines += ["", *_ladder(ladder)]
    if audit is not None:
        lines += ["", *_audit(audit, names)]
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """Return text in which a class's name, which is a folder's, is neither HTML nor a cell of a table."""
    return html.escape(" ".join(text.split()), quote=False).replace("|", r"\|")


def _ranking(
    family: str,
    found: Mapping[str, Any],
    names: Sequence[str],
    pictures: Mapping[tuple[str, int], Sequence[str]],
) -> list[str]:
    additive = family == "additive"
    unit = "L2 of the pattern" if additive else "L1 of the mask"
    goals = "goals (each class, and away from it)" if additive else "classes"
    seen = "grey changes nothing" if additive else "what is laid over images, and where (white covers)"
    shown = [row for row in found["ranking"] if (family, row["target"]) in pictures]
    ratio = "unknown" if found["ratio"] is None else f"{found['ratio']:.2f}"
    lines = [
        f"### Smallest triggers: {family}",
        "",
        f"Norm: {unit}; success on images that the search did not use (behind place 8 on some of them). "
        f"Runner-up over smallest: {ratio}; median {_norm(found['median'])}. {len(shown)} of "
        f"{len(found['ranking'])} {goals} are shown; the record has all. Pictures: {seen}.",
        "",
        "| class | norm | success, % | trigger |",
        "|---|---|---|---|",
    ]
    for row in shown:
        label = row["target"]
        known = row["success"] is not None and row["norm"] is not None
        share = f"{100 * row['success']:.1f}" if known else "-"
        images = " ".join(f"![{file}]({file})" for file in pictures.get((family, label), ()))
        lines.append(f"| {_name(label, names)} | {_norm(row['norm'])} | {share} | {images} |")
    return lines


def _audit(audit: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    still = {(row["family"], row["target"]): row for row in audit["old_triggers"]}
    lines = [
        "## Before and after",
        "",
        "Norm of the smallest trigger in the suspect and in the repaired network, and how many validation "
        "images the suspect's one still sends to its class: evidence if it stood out or its class was named. "
        "With more than one fold the repair was tuned on these images, too.",
        "",
        "| family | class | suspect | repaired | old trigger, % | |",
        "|---|---|---|---|---|---|",
    ]
    for row in audit["norms"]:
        old = still.get((row["family"], row["target"]))
        success = "-" if old is None or old["success"] is None else f"{100 * old['success']:.1f}"
        note = "counts" if old is not None and old["counts"] else ""
        lines.append(
            f"| {row['family']} | {_name(row['target'], names)} | {_norm(row['suspect'])} | "
            f"{_norm(row['repaired'])} | {success} | {note} |"
        )
    return lines


def _ladder(ladder: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Rungs",
        "",
        "Loss of accuracy, counted on paired predictions of the defender's images by networks that were not "
        "tuned on them and corrected for what their average, which stays, has learned beyond each; points "
        f"with a 95 % interval; at most {100 * ladder['max_drop']:g}. What prunes in a rung, or chooses a "
        "threshold, went by the validation images, which are among these.",
        "",
        "| rung | loss | lost, gained, images | |",
        "|---|---|---|---|",
    ]
    for place, rung in enumerate(ladder["rungs"]):
        low, high = rung["interval"]
        note = "kept" if place == ladder["kept"] else "undone" if not rung["inside"] else ""
        if rung.get("audit"):
            note = f"{note}; {rung['audit']['verdict']}".lstrip("; ")
        what = ", ".join(f"{key} {value}" for key, value in rung["options"].items())
        lines.append(
            f"| {what} | {100 * rung['loss']:.2f} [{100 * low:.2f}, {100 * high:.2f}] | {rung['lost']}, "
            f"{rung['gained']}, {rung['total']} | {note} |"
        )
    return lines + (["", ladder["reason"]] if ladder["reason"] else [])


def _name(label: int, names: Sequence[str]) -> str:
    return "any other (untargeted)" if label == UNTARGETED else names[label]


def _norm(norm: float | None) -> str:
    return "not found" if norm is None else f"{norm:.2f}"


def _enlarged(image: Tensor) -> Tensor:
    """Return (C, H, W) in [0, 1] as uint8 with 1 or 3 channels, in whole multiples of its pixels."""
    image = image.detach().float().cpu().clamp(0, 1)
    if len(image) not in (1, 3):
        image = image.mean(0, keepdim=True)
    factor = max(1, -(-PICTURE // min(image.shape[-2:])))
    return (interpolate(image[None], scale_factor=float(factor))[0] * 255).round().to(torch.uint8)

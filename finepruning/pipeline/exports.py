"""What a run leaves for others: the files in its ``repaired/``, and the page in its ``report/``."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from finepruning.metrics import Rate
from finepruning.pipeline.inspector import TRIGGERS
from finepruning.pipeline.parts import Suspect
from finepruning.pruning import GoodNet, cost, remove_pruned, speed_up
from finepruning.referee import Scores
from finepruning.repair import UNTARGETED, load_triggers
from finepruning.repair.report import page, write_pictures
from finepruning.store import Stage, load_weights, save_weights, write_file
from finepruning.suspect import repair_report, write_onnx, write_repaired

SMALLER, GOODNET, REPORT = "smaller.safetensors", "goodnet.safetensors", "REPORT.md"
log = logging.getLogger(__name__)


def write_exports(
    defended: nn.Module,
    detector: nn.Module | None,
    directory: Path,
    image_shape: Sequence[int],
    structural: bool,
    onnx: bool,
) -> dict[str, Any]:
    """Write a defended network and what else is asked for; return what the record says of it.

    Args:
        defended: Images (B, C, H, W) in [0, 1] -> logits (B, K), with its masks; in evaluation mode.
        detector: The network with K + 1 outputs that is made of it, if any.
        directory: Where the files go; made if it is not there.
        image_shape: (C, H, W) of the images.
        structural: Also write it without its pruned channels, and measure what that saves.
        onnx: Write each network as ONNX, too.
    """
    found: dict[str, Any] = {"channels": write_repaired(defended, directory)}
    networks = {"network": defended}
    if detector is not None:
        save_weights(detector, directory / GOODNET)
        networks["goodnet"] = detector
    if structural:
        smaller, refused = remove_pruned(defended, image_shape)
        for sentence in refused.values():
            log.warning(sentence)
        found["structural"] = {"refused": refused}
        if smaller is not defended:
            save_weights(smaller, directory / SMALLER)
            networks["smaller"] = smaller
            found["structural"] |= _savings(defended, smaller, image_shape)
    if onnx:
        for name, network in networks.items():
            write_onnx(network, directory / f"{name}.onnx", image_shape)
    log.info("Defended network: %s", directory)
    return found | {"files": sorted(path.name for path in directory.iterdir())}


def _savings(network: nn.Module, smaller: nn.Module, image_shape: Sequence[int]) -> dict[str, Any]:
    before, after = cost(network, image_shape), cost(smaller, image_shape)
    return {
        "parameters": {"before": before.parameters, "after": after.parameters},
        "flops": {"before": before.flops, "after": after.flops},
        "speed_up": speed_up(network, smaller, image_shape),
    }


def load_smaller(network: nn.Module, directory: Path, image_shape: Sequence[int]) -> nn.Module:
    """Return the smaller network that :func:`write_exports` wrote.

    Args:
        network: A network of the same architecture; it gets the defended network's weights and masks.
        directory: The run's ``repaired/``.
        image_shape: (C, H, W) of the images.
    """
    smaller, _ = remove_pruned(load_weights(network, directory / "network.safetensors"), image_shape)
    return load_weights(smaller, directory / SMALLER)


def load_goodnet(suspect: nn.Module, repaired: nn.Module, directory: Path) -> nn.Module:
    """Return the network with one output more that :func:`write_exports` wrote.

    Args:
        suspect: A network of the suspect's architecture.
        repaired: Another one.
        directory: The run's ``repaired/``.
    """
    return load_weights(GoodNet(suspect, repaired), directory / GOODNET)


def write_report(
    place: Path, title: str, names: Sequence[str], stages: Mapping[str, Stage]
) -> dict[str, Any]:
    """Write one page on an inspection and what came of it, with its pictures; return the record's fields.

    Args:
        place: The run's folder.
        title: The run's name.
        names: Of the classes.
        stages: What was made: ``inspected`` and, unless the defense only inspects, ``defended``.
    """
    stage = stages["inspected"]
    inspection = stage.about["result"]
    defended = stages["defended"].about["result"] if "defended" in stages else {}
    ladder, audit = defended.get("ladder"), defended.get("audit")
    triggers = load_triggers(stage.directory / TRIGGERS, inspection["rankings"])
    directory = place / "report"
    pictures = write_pictures(triggers, directory)
    write_file(directory / REPORT, page(title, names, inspection, pictures, ladder, audit).encode())
    log.info("Report: %s", directory / REPORT)
    shown = [
        {
            "family": family,
            "target": target,
            "name": "untargeted" if target == UNTARGETED else names[target],
            "files": [f"{directory.name}/{file}" for file in files],
        }
        for (family, target), files in pictures.items()
    ]
    found = {"inspection": {**inspection, "pictures": shown}, "ladder": ladder, "audit": audit}
    return {name: value for name, value in found.items() if value is not None}


def write_repair(
    suspect: Suspect,
    run: str,
    scores: Mapping[str, Scores],
    agreement: Rate,
    export: Mapping[str, Any],
    directory: Path,
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Write one page on the repair of a network that somebody else trained; return what the record says.

    Args:
        suspect: What is known of the network.
        run: The run's name.
        scores: Of ``suspect``, ``defended`` and, where there is one, ``goodnet``.
        agreement: Clean test images that the suspect and the repaired network classify alike.
        export: What :func:`write_exports` returned.
        directory: Where the exports lie.
        result: What the defense says of itself, with ``ladder`` and ``audit`` where it has them.
    """
    page = repair_report(
        suspect.weights.name,
        run,
        {name: each.to_record() for name, each in scores.items()},
        export["channels"],
        agreement,
        export["files"],
        suspect.warning,
        result.get("ladder"),
        result.get("audit"),
    )
    write_file(directory / REPORT, page.encode())
    log.info("Report: %s", directory / REPORT)
    return {
        "agreement": agreement.value,
        "agreement_counts": {"hits": agreement.hits, "total": agreement.total},
        "channels": export["channels"],
        "warning": suspect.warning,
    }

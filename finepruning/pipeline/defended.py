"""How the defended network comes to be: inspected, pruned, tuned, as far as the defense does."""

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finepruning.modules import UnlearnedClassifier
from finepruning.pipeline.climber import Climber
from finepruning.pipeline.defenses import without_unused
from finepruning.pipeline.inspector import Inspector
from finepruning.pipeline.parts import Defense, Parts
from finepruning.referee import trigger_change_order
from finepruning.store import Stage, Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DefenseMaker:
    """The defender at work, on its clean images alone.

    Args:
        plain: The configuration, as plain values.
        parts: What the run is made of; has a defense.
        store: Keeps the stages.
        fit: Trains a module on data, in a stage's folder.
        device: Where to compute beside training.
        share: Gives all processes of the run what the first one knows.
    """

    plain: Mapping[str, Any]
    parts: Parts
    store: Store
    fit: Callable[..., None]
    device: str
    share: Callable[[Any], Any]

    def make(self, made_by: Mapping[str, Any], suspect: Stage) -> dict[str, Stage]:
        """Return the stages that the defense makes of the suspect, of which ``made_by`` tells what made it.

        What is found is kept as plain values. An oracle's order is the referee's, and part of what made the
        stage.
        """
        defense = self.parts.defense
        assert defense is not None
        stages: dict[str, Stage] = {}
        network = suspect.load_into(defense.module.network)
        made_by = {**made_by, "defender": self.plain["defender"]}
        if defense.inspection is not None:
            inspector = Inspector(
                defense.inspection, defense.data, tuple(self.parts.packed.classes), self.device
            )
            seen = {**made_by, "inspection": self.plain["defense"]["inspection"]}
            inspect = functools.partial(inspector.inspect, network)
            stages["inspected"] = inspected = self.store.stage("inspected", seen, inspect)
            _aim(defense, inspected.about["result"])
        if not defense.acts:
            return stages
        made_by = {**made_by, "defense": without_unused(self.plain["defense"])}
        if defense.ladder:
            keep_rungs = self.parts.stress is not None and self.parts.stress.rungs
            made_by |= {"rungs": "kept"} if keep_rungs else {}
            options = self.plain["defense"]
            climber = Climber(defense, inspector, options, self.fit, self.device, self.share, keep_rungs)
            climb = functools.partial(climber.climb, suspect, inspected)
            return stages | {"defended": self.store.stage("defended", made_by, climb)}
        pruning, attack = defense.pruning, self.parts.scored_attack
        if pruning is not None and pruning.oracle and attack is not None:
            pruning.given = trigger_change_order(
                network, defense.layers, self.parts.test, attack, pruning.joint, self.device
            )
            made_by["order"] = [list(channel) for channel in pruning.given]

        def make(directory: Path) -> Mapping[str, Any]:
            log.info("Defending it ...")
            suspect.load_into(network)
            self.fit(
                defense.module, defense.data, defense.callbacks, directory, max_epochs=defense.max_epochs
            )
            found = {"findings": defense.module.findings}
            return found | (pruning.state_dict() if pruning is not None else {})

        return stages | {"defended": self.store.stage("defended", made_by, make)}


def _aim(defense: Defense, found: Mapping[str, Any]) -> None:
    """Tell the modules that unlearn what an inspection found."""
    additive = found["rankings"]["additive"]
    norms = {row["target"]: row["norm"] for row in additive["ranking"]}
    for tuning in (defense, *(tuning for rung in defense.ladder for tuning in rung.tunings)):
        if isinstance(tuning.module, UnlearnedClassifier):
            tuning.module.aim_at(found["suspicious"], norms, additive["median"])


def ladder_accuracies(ladder: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return accuracies of the suspect and the repair on the images that decide, as the ladder counted them.

    What stays after a walk has learned from most of the validation images, so its accuracy on them tells
    little. Empty without a ladder.
    """
    if ladder is None:
        return {}
    right, total, kept = ladder["right"], ladder["total"], ladder["kept"]
    left = right if kept is None else right - ladder["rungs"][kept]["loss"] * total
    hits = {"suspect": right, "defended": left}
    return {
        name: {"clean_accuracy": count / total, "hits": round(count), "total": total}
        for name, count in hits.items()
    }

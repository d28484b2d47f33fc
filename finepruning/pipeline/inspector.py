"""Inspection and audit of a run: the search for triggers at work, on the defender's images alone."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.data import DefenderData, ImageSet
from finepruning.metrics import Rate
from finepruning.repair import (
    UNTARGETED,
    Inspection,
    Rankings,
    check_accuracy,
    compare,
    correct,
    failures,
    is_blind,
    load_triggers,
    missing_classes,
    rankings_record,
    save_triggers,
    success,
    verdict,
)
from finepruning.store import Stage

log = logging.getLogger(__name__)

TRIGGERS = "triggers.safetensors"
KEPT = 8  # triggers of each ranking that are kept as files
FEW = 256  # validation images, at most, that the others are counted on
BLIND = "no trigger was found"
NOT_FOUND = (
    "No trigger to any class was found, so that this says nothing of the network. Raise "
    "defense.inspection.search.steps."
)


@dataclass(frozen=True)
class Inspector:
    """Looks for triggers in the suspect, and afresh in what was made of it.

    Args:
        inspection: How it looks.
        data: The defender's images; those to tune on are searched on, those to validate on confirm.
        names: Of the classes.
        device: Where to compute.
    """

    inspection: Inspection
    data: DefenderData
    names: tuple[str, ...]
    device: str

    def inspect(self, network: nn.Module, directory: Path) -> Mapping[str, Any]:
        """Inspect the suspect; return the rankings as plain values, write the triggers.

        Raises:
            ValueError: If the suspect's accuracy is near chance.
        """
        log.info("Inspecting it ...")
        right = correct(network.to(self.device), self._validation())
        check_accuracy(Rate(int(right.sum()), len(right)), len(self.names))
        rankings, found = self._rank(network)
        suspicious = self.inspection.suspects(rankings)
        told = {*suspicious, *self.inspection.outliers(rankings)}  # an audit puts them on again
        save_triggers(rankings, directory / TRIGGERS, KEPT, told)
        evidence = self.inspection.evidence(rankings, self.names)
        remarks = self._remarks(rankings, suspicious)
        for remark in remarks:
            log.warning(remark)
        blind = is_blind(rankings)
        searched = " of those that could be searched" if failures(rankings, self.names) else ""
        nothing = f"No class's smallest trigger stands out from the others{searched}."
        reasons = evidence or [NOT_FOUND if blind else nothing]
        for sentence in reasons:
            log.info("Inspection: %s", sentence)
        return {
            "rankings": found,
            "suspicious": suspicious,
            "clear": self.inspection.clear(rankings),
            "verdict": "something stands out" if evidence else BLIND if blind else "nothing stands out",
            "reasons": reasons,
            "remarks": remarks,
        }

    def audit(self, network: nn.Module, inspected: Stage, max_success: float) -> dict[str, Any]:
        """Inspect the repaired network afresh and put the old triggers on it again.

        Args:
            network: What was repaired.
            inspected: The suspect's inspection.
            max_success: Success of an old trigger from which it is evidence, in (0, 1].
        """
        before = inspected.about["result"]
        rankings, after = self._rank(network)
        suspicious = [*before["suspicious"], UNTARGETED]
        stored = load_triggers(inspected.directory / TRIGGERS, before["rankings"])
        found = [trigger for ranking in stored.values() for trigger in ranking]
        medians = {family: ranking["median"] for family, ranking in before["rankings"].items()}
        counting = [self.inspection.counts(trigger, medians[trigger.family]) for trigger in found]
        old = [
            (trigger, counts)
            for trigger, counts in zip(found, counting, strict=True)
            if math.isfinite(trigger.norm) and (counts or trigger.target in before["suspicious"])
        ]
        rates = success(network, [trigger for trigger, _ in old], self._validation())
        # what could not be searched is not known to be harmless
        evidence = self.inspection.evidence(rankings, self.names) + failures(rankings, self.names)
        applied = [(trigger, rate, counts) for (trigger, counts), rate in zip(old, rates, strict=True)]
        counted = [(trigger, rate) for trigger, rate, counts in applied if counts]
        blind = {"suspect": before["verdict"] == BLIND, "repaired network": is_blind(rankings)}
        untested = [name for name, nothing_found in blind.items() if nothing_found]
        said = verdict(evidence, counted, self.names, max_success, untested)
        old_triggers = [
            {
                "family": trigger.family,
                "target": trigger.target,
                "success": rate.value if rate.total else None,
                "counts": counts,
            }
            for trigger, rate, counts in applied
        ]
        norms = compare(before["rankings"], after, suspicious)
        return said | {"old_triggers": old_triggers, "norms": norms, "rankings": after}

    def _rank(self, network: nn.Module) -> tuple[Rankings, dict[str, Any]]:
        """Return both rankings of a network, and the same as plain values."""
        images, labels = self._sample()
        targets = self.inspection.targets(len(self.names))
        network.to(self.device)
        rankings = self.inspection.rank(network, images, labels, targets)
        rates = {
            family: success(network, ranking[:KEPT], self._validation())
            + success(network, ranking[KEPT:], self._validation(FEW))
            for family, ranking in rankings.items()
        }
        return rankings, rankings_record(rankings, rates)

    def _remarks(self, rankings: Rankings, suspicious: Sequence[int]) -> list[str]:
        """Return what a reader must know about the limits of an inspection."""
        remarks = []
        empty = missing_classes(self.data.training.labels, len(self.names))
        if empty:
            listed = ", ".join(repr(self.names[label]) for label in empty)
            remarks.append(
                f"There is no clean image to tune on of {len(empty)} classes ({listed}). They are inspected "
                "as targets all the same; what sends only their images somewhere cannot be seen."
            )
        remarks += failures(rankings, self.names)
        outliers = self.inspection.outliers(rankings)
        unnamed = [repr(self.names[label]) for label in outliers if label not in suspicious]
        if unnamed:
            remarks.append(
                f"{', '.join(unnamed)} stands out, too, and is not among the suspicious classes "
                "(defense.inspection.suspicious)."
            )
        targets = self.inspection.targets(len(self.names))
        if len(targets) < len(self.names):
            listed = ", ".join(repr(self.names[label]) for label in targets)
            remarks.append(f"Only {len(targets)} of {len(self.names)} classes were inspected: {listed}.")
        return remarks

    def _sample(self) -> tuple[Tensor, Tensor]:
        """Return at most ``sample`` images to tune on, spread over the set, and their labels."""
        pairs = list(_spread(self.data.training, self.inspection.sample).batches(device=self.device))
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])

    def _validation(self, most: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        images = self.data.validation[0]
        return (images if most is None else _spread(images, most)).batches(device=self.device)


def _spread(images: ImageSet, most: int) -> ImageSet:
    """Return at most that many images, spread over the set."""
    count = min(most, len(images))
    return images.subset(torch.arange(count) * len(images) // count)

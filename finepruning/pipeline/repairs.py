"""Inspection, ladder and audit of a run: the repair room at work, on the defender's images alone."""

import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finepruning.data import ImageSet
from finepruning.metrics import Rate
from finepruning.modules import DivergedError, UnlearnedClassifier
from finepruning.pipeline.parts import Defense, Rung, Tuning
from finepruning.repair import (
    UNTARGETED,
    Inspection,
    PairedLoss,
    Rankings,
    average,
    check_accuracy,
    climb,
    compare,
    correct,
    cross_validated_loss,
    failures,
    is_blind,
    load_triggers,
    missing_classes,
    rankings_record,
    save_triggers,
    success,
    verdict,
    why_none,
)
from finepruning.store import WEIGHTS, Stage, load_weights, save_weights

log = logging.getLogger(__name__)

TRIGGERS = "triggers.safetensors"
KEPT = 8  # triggers of each ranking that are kept as files
FEW = 100  # images that decide, below which a single one is more than a point
BLIND = "no trigger was found"
NOT_FOUND = (
    "No trigger to any class was found, so that this says nothing of the network. Raise "
    "defense.inspection.search.steps."
)


class _Walk(NamedTuple):
    """A walk up a ladder; ``losses`` are those of the first rungs, as far as it went.

    ``places`` hold the rungs' networks, ``kept`` is the number of the one that stays, if one does, ``reason``
    says what went wrong.
    """

    rungs: Sequence[Rung]
    places: Sequence[Path]
    losses: Sequence[PairedLoss]
    kept: int | None
    audits: dict[int | None, dict[str, Any]]
    reason: str | None


@dataclass(frozen=True)
class Repairs:
    """The defender at work beyond pruning and tuning.

    Args:
        defense: What it does; has an inspection.
        names: Of the classes.
        options: The configuration's ``defense``, as plain values.
        fit: Trains a module on data, in a stage's folder.
        device: Where to compute beside training.
        share: Gives all processes of the run what the first one knows.
        keep_rungs: Whether the ladder's stage keeps each rung's network, audited, for the referee.
    """

    defense: Defense
    inspection: Inspection
    names: tuple[str, ...]
    options: Mapping[str, Any]
    fit: Callable[..., None]
    device: str
    share: Callable[[Any], Any] = lambda message: message
    keep_rungs: bool = False

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
        save_triggers(rankings, directory / TRIGGERS, KEPT, suspicious)
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

    def aim(self, inspected: Stage) -> None:
        """Tell the modules that unlearn what is suspicious."""
        found = inspected.about["result"]
        additive = found["rankings"]["additive"]
        norms = {row["target"]: row["norm"] for row in additive["ranking"]}
        tunings = (tuning for rung in self.defense.ladder for tuning in rung.tunings)
        for tuning in (self.defense, *tunings):
            if isinstance(tuning.module, UnlearnedClassifier):
                tuning.module.aim_at(found["suspicious"], norms, additive["median"])

    def climb(self, suspect: Stage, inspected: Stage, directory: Path) -> Mapping[str, Any]:
        """Walk the ladder, leave the network of the rung that stays, and audit it."""
        network = self.defense.module.network
        suspect.load_into(network)
        before = self._right(network)
        log.info("%s images decide, in %s folds.", len(before), len(self.defense.folds))
        if len(before) < FEW:
            log.warning("With so few images a single one is %.1f points of accuracy.", 100 / len(before))
        walk = self._walk(network, suspect, inspected, directory, before)
        kept, max_drop = walk.kept, self.options["max_drop"]
        if self.keep_rungs:
            for number in range(len(walk.losses)):
                load_weights(network, walk.places[number] / WEIGHTS)
                walk.audits[number] = walk.audits.get(number) or self._audit(network, inspected)
        weights = (suspect.directory if kept is None else walk.places[kept]) / WEIGHTS
        load_weights(network, weights)
        shutil.copy(weights, directory / WEIGHTS)
        audit = walk.audits.get(kept) or self._audit(network, inspected)
        log.info("Audit: %s. %s", audit["verdict"], " ".join(audit["reasons"]))
        if walk.reason:
            log.warning(walk.reason)
        for place in walk.places:
            for rest in place.glob("fold-*") if self.keep_rungs else [place]:
                shutil.rmtree(rest, ignore_errors=True)
        rungs = [
            _rung_record(rung, loss, max_drop) | {"audit": walk.audits.get(number)}
            for number, (rung, loss) in enumerate(zip(walk.rungs, walk.losses, strict=False))
        ]
        ladder = {"max_drop": max_drop, "kept": kept, "rungs": rungs, "reason": walk.reason}
        ladder |= {"right": int(before.sum()), "total": len(before)}
        return {"ladder": ladder, "audit": audit}

    def _walk(
        self, network: nn.Module, suspect: Stage, inspected: Stage, directory: Path, before: Tensor
    ) -> _Walk:
        """Walk up the rungs that are for what the inspection found.

        ``before`` (N,) says which images of the folds the suspect gets right.
        """
        case = "clear" if inspected.about["result"]["clear"] else "unclear"
        rungs = [rung for rung in self.defense.ladder if rung.when in (None, case)]
        places = [directory / f"rung-{number}" for number in range(1, len(rungs) + 1)]
        audits: dict[int | None, dict[str, Any]] = {}
        reasons = [] if rungs else [f"No rung of defense.ladder is for an inspection that is {case}."]

        def attempt(number: int) -> PairedLoss | None:
            log.info("Rung %s of %s ...", number + 1, len(rungs))
            try:
                return self._repair(network, suspect, rungs[number], places[number], before)
            except DivergedError as error:
                reasons.append(f"Rung {number + 1} is undone: {error}")
                return None

        def passes(number: int) -> bool:
            audits[number] = self.share(self._audit(network, inspected))
            return not audits[number]["evidence"]

        max_drop, stop_early = self.options["max_drop"], self.options["stop_early"]
        losses, kept = climb(range(len(rungs)), attempt, max_drop, passes if stop_early else None)
        if kept is None:
            reasons.append(why_none(losses, max_drop) if losses else "The suspect stays as it is.")
        else:
            log.info("Rung %s stays: %.1f points.", kept + 1, 100 * losses[kept].value)
        return _Walk(rungs, places, losses, kept, audits, " ".join(reasons) or None)

    def _audit(self, network: nn.Module, inspected: Stage) -> dict[str, Any]:
        """Inspect the repaired network afresh and put the old triggers on it again."""
        log.info("Auditing it ...")
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
        limit = self.options["audit"]["max_success"]
        # what could not be searched is not known to be harmless
        evidence = self.inspection.evidence(rankings, self.names) + failures(rankings, self.names)
        applied = [(trigger, rate, counts) for (trigger, counts), rate in zip(old, rates, strict=True)]
        counted = [(trigger, rate) for trigger, rate, counts in applied if counts]
        said = verdict(evidence, counted, self.names, limit, blind=before["verdict"] == BLIND)
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
        images, labels = self._sample(self.defense.data.training)
        targets = self.inspection.targets(len(self.names))
        network.to(self.device)
        rankings = self.inspection.rank(network, images, labels, targets)
        rates = {
            family: success(network, ranking[:KEPT], self._validation())
            + [Rate(0, 0)] * len(ranking[KEPT:])  # nobody asks for those
            for family, ranking in rankings.items()
        }
        return rankings, rankings_record(rankings, rates)

    def _remarks(self, rankings: Rankings, suspicious: Sequence[int]) -> list[str]:
        """Return what a reader must know about the limits of an inspection."""
        remarks = []
        empty = missing_classes(self.defense.data.training.labels, len(self.names))
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

    def _repair(
        self, network: nn.Module, suspect: Stage, rung: Rung, place: Path, before: Tensor
    ) -> PairedLoss:
        """Tune the suspect as a rung says, without each fold; leave the average, return what it costs.

        ``before`` (N,) says which images of the folds the suspect gets right.

        Raises:
            DivergedError: If a tuning does not come to an end.
        """
        after, tuned = [], []
        for number, tuning in enumerate(rung.tunings, start=1):
            self._tune(network, suspect, tuning, place / f"fold-{number}")
            after.append(self._right(network))
            tuned.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        network.load_state_dict(average(tuned))
        save_weights(network, place / WEIGHTS)
        averaged, folds = self._right(network), self.defense.folds
        groups = torch.cat([fold.groups for fold in folds])
        fold_of = torch.cat([torch.full((len(fold.images),), n) for n, fold in enumerate(folds)])
        # the first process decides, so that all leave the walk at the same rung
        loss: PairedLoss = self.share(
            cross_validated_loss(before, torch.stack(after), averaged, fold_of, groups)
        )
        return loss

    def _tune(self, network: nn.Module, suspect: Stage, tuning: Tuning, place: Path) -> None:
        """Tune the suspect's weights, or load what an interrupted walk had tuned."""
        suspect.load_into(network)
        place.mkdir(parents=True, exist_ok=True)
        # after an interruption the first process alone has what is finished
        finished = self.share(place if (place / WEIGHTS).exists() else None)
        if finished not in (None, place):
            shutil.copy(finished / WEIGHTS, place / WEIGHTS)
        if finished is None:
            logs = f"defended/{place.parent.name}/{place.name}"
            try:
                self.fit(
                    tuning.module,
                    tuning.data,
                    tuning.callbacks,
                    place,
                    logs=logs,
                    max_epochs=tuning.max_epochs,
                )
            finally:
                # a ladder keeps its modules, and each would keep its trainer, with the optimizer's momenta
                tuning.module.trainer = tuning.data.trainer = None
        load_weights(network, place / WEIGHTS)

    def _right(self, network: nn.Module) -> Tensor:
        """Return which images of the folds, one fold after the other, a network gets right."""
        network.to(self.device)
        found = [correct(network, fold.images.batches(device=self.device)) for fold in self.defense.folds]
        return torch.cat(found)

    def _sample(self, images: ImageSet) -> tuple[Tensor, Tensor]:
        """Return at most ``sample`` images, spread over the set, and their labels."""
        rows = torch.arange(len(images))
        if len(rows) > self.inspection.sample:
            rows = (torch.arange(self.inspection.sample) * len(rows)) // self.inspection.sample
        pairs = list(images.subset(rows).batches(device=self.device))
        return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])

    def _validation(self) -> Any:
        return self.defense.data.validation[0].batches(device=self.device)


def _rung_record(rung: Rung, loss: PairedLoss, max_drop: float) -> dict[str, Any]:
    counted = {"loss": loss.value, "interval": list(loss.interval), **loss._asdict()}
    return {"options": dict(rung.options), **counted, "inside": loss.inside(max_drop)}

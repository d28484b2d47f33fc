"""The walk up a ladder of repairs, on the defender's images alone, and the audit of what stays."""

import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finepruning.modules import DivergedError
from finepruning.pipeline.inspector import Inspector
from finepruning.pipeline.parts import Defense, Rung, Tuning
from finepruning.repair import (
    PairedLoss,
    average,
    climb,
    correct,
    cross_validated_loss,
    why_none,
)
from finepruning.store import WEIGHTS, Stage, load_weights, save_weights

log = logging.getLogger(__name__)

FEW = 100  # images that decide, below which a single one is more than a point


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
class Climber:
    """The defender on its ladder.

    Args:
        defense: What it does; has a ladder.
        inspector: Audits what comes out.
        options: The configuration's ``defense``, as plain values.
        fit: Trains a module on data, in a stage's folder.
        device: Where to compute beside training.
        share: Gives all processes of the run what the first one knows.
        keep_rungs: Whether the ladder's stage keeps each rung's network, audited, for the referee.
    """

    defense: Defense
    inspector: Inspector
    options: Mapping[str, Any]
    fit: Callable[..., None]
    device: str
    share: Callable[[Any], Any] = lambda message: message
    keep_rungs: bool = False

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
        log.info("Auditing it ...")
        return self.inspector.audit(network, inspected, self.options["audit"]["max_success"])

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


def _rung_record(rung: Rung, loss: PairedLoss, max_drop: float) -> dict[str, Any]:
    counted = {"loss": loss.value, "interval": list(loss.interval), **loss._asdict()}
    return {"options": dict(rung.options), **counted, "inside": loss.inside(max_drop)}

"""Stress tests of a run: the referee tries to bring the backdoor back, when the defense has ended."""

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from finepruning.metrics import Rate
from finepruning.pipeline.parts import Parts, Stress
from finepruning.pipeline.suspects import SuspectMaker
from finepruning.referee import Scores, score
from finepruning.store import WEIGHTS, Stage, Store, load_weights
from finepruning.stress import score_perturbed

log = logging.getLogger(__name__)

NETWORKS = ("suspect", "defended", "clean")  # the last one is the control
NAMES = {"before": "as it is", "retuned": "retuned", "reactivated": "with a perturbation"}
Test = Callable[[nn.Module], Scores]


def make_control(
    plain: Mapping[str, Any], parts: Parts, store: Store, fit: Callable[..., None], device: str
) -> Stage:
    """Return the suspect of ``attack=none``: a clean network, trained as the suspect of this run is.

    Args:
        plain: The configuration, as plain values.
        parts: What the run is made of; its network is still untrained, and stays so.
        store: Keeps the stage.
        fit: As :class:`SuspectMaker` takes it.
        device: Where to compute beside training.
    """

    def fit_clean(*arguments: Any, **options: Any) -> None:
        fit(*arguments, **options | {"logs": "clean"})

    files = {key: held for key, held in parts.files.items() if not key.startswith("attack")}
    network = copy.deepcopy(parts.network)
    clean = replace(parts, attack=None, source=None, files=files, network=network)
    return SuspectMaker({**plain, "attack": {}}, clean, store, fit_clean, device).make()["suspect"]


@dataclass(frozen=True)
class StressTests:
    """The stress tests of a run at work, each kept in the store.

    Args:
        stress: What is tested.
        parts: What the run is made of.
        made_by: What decides the tests beside the networks, as plain values.
        store: Keeps them.
        device: Where to compute.
    """

    stress: Stress
    parts: Parts
    made_by: Mapping[str, Any]
    store: Store
    device: str

    def results(
        self, stages: Mapping[str, Stage], scores: Mapping[str, Scores]
    ) -> tuple[dict[str, Any], dict[str, Stage]]:
        """Return the record's field, and the stages that it rests on.

        Args:
            stages: Of the run; the networks of ``suspect``, ``defended`` and ``clean`` are tested.
            scores: Of the suspect and the defended network as they are.
        """
        made: dict[str, Stage] = {}
        networks: dict[str, dict[str, Any]] = {}
        wanted = NETWORKS if self.stress.control else NETWORKS[:-1]
        for name in wanted if self.stress.tests else ():
            if name in stages:
                networks[name] = self._tests(name, stages[name], scores.get(name), made)
        rungs = self._rungs(stages.get("defended"), made) if self.stress.rungs else []
        return {"networks": networks, "rungs": rungs}, made

    def _tests(
        self, name: str, network: Stage, scores: Scores | None, made: dict[str, Stage]
    ) -> dict[str, Any]:
        """Return a network's scores before the tests and after each."""

        def tested(test: str, options: Mapping[str, Any], run: Test) -> dict[str, Any]:
            made[f"{name}_{test}"] = stage = self._test(network, name, test, options, run)
            result: dict[str, Any] = stage.about["result"]
            return result

        found: dict[str, Any] = {
            "before": scores.to_record() if scores else tested("before", {}, self._score)
        }
        clean = Rate(**found["before"]["counts"]["clean_accuracy"])
        runs: dict[str, Test] = {
            "retuned": self._retune,
            "reactivated": functools.partial(self._reactivate, clean),
        }
        for test, options in self.stress.tests.items():
            found[test] = tested(test, options, runs[test])
        return found

    def _rungs(self, defended: Stage | None, made: dict[str, Stage]) -> list[dict[str, Any]]:
        """Return the scores of the rungs that were walked, in their order."""
        ladder = defended.about["result"].get("ladder") if defended else None
        if defended is None or ladder is None:
            return []
        for place in range(1, len(ladder["rungs"]) + 1):
            file = f"rung-{place}/{WEIGHTS}"
            name = f"rung {place}"
            made[name] = self._test(defended, name, "before", {}, self._score, file)
        return [stage.about["result"] for name, stage in made.items() if name.startswith("rung ")]

    def _test(
        self,
        stage: Stage,
        name: str,
        test: str,
        options: Mapping[str, Any],
        run: Test,
        file: str = WEIGHTS,
    ) -> Stage:
        """Return the stage whose result are a network's scores in a test."""
        made_by = {**self.made_by, "network": stage.key, "file": file, "test": test, "options": options}

        def make(directory: Path) -> Mapping[str, Any]:
            log.info("Stress: %s, %s ...", name, NAMES[test])
            network = copy.deepcopy(self._template(name))
            return run(load_weights(network, stage.directory / file).to(self.device)).to_record()

        return self.store.stage("stressed", made_by, make)

    def _template(self, name: str) -> nn.Module:
        """Return a network that a stage's weights fit."""
        tuned = self.parts.defense is not None and name not in ("suspect", "clean")
        return self.parts.defense.module.network if tuned else self.parts.network  # type: ignore[union-attr]

    def _score(self, network: nn.Module) -> Scores:
        return score(network, self.parts.test, self.parts.scored_attack, self.device)

    def _retune(self, network: nn.Module) -> Scores:
        retune, attack = self.stress.retune, self.parts.scored_attack
        assert retune is not None
        assert attack is not None
        retune.tune(network, *retune.sample(self.parts.stressed_on, attack, self.device))
        return self._score(network)

    def _reactivate(self, clean: Rate, network: nn.Module) -> Scores:
        search, attack = self.stress.reactivation, self.parts.scored_attack
        assert search is not None
        assert attack is not None
        images, labels = search.sample(self.parts.stressed_on, attack, self.device)
        pattern = search.search(network, images, labels, attack.untargeted)
        return score_perturbed(network, pattern, self.parts.test, attack, clean, self.device)

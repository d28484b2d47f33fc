"""The stages of a run: train the suspect, defend it, score both. The store keeps what is trained."""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import nn

from finepruning.attacks import Transfer
from finepruning.pipeline.analysis import analyse_layers, score_curve
from finepruning.pipeline.defended import DefenseMaker, ladder_accuracies
from finepruning.pipeline.devices import GPUS
from finepruning.pipeline.exports import write_exports, write_repair, write_report
from finepruning.pipeline.parts import Parts, Source, Stress
from finepruning.pipeline.processes import Team, TeamStore
from finepruning.pipeline.stresses import StressTests, make_control
from finepruning.pipeline.suspects import SuspectMaker
from finepruning.pipeline.training import fit
from finepruning.pruning import pruned_channels, silent_layers
from finepruning.referee import Scores, score, score_detector
from finepruning.store import Stage, Store
from finepruning.suspect import agreement
from finepruning.views import Watch, to_record, watched_layers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run: its configuration and parts, its folder, its loggers and its processes."""

    config: DictConfig
    parts: Parts
    place: Path
    loggers: list[Logger]
    team: Team

    def stages(self) -> dict[str, Stage]:
        """Make the stages, or find them in the store. Every process of the run takes part."""
        store = TeamStore(Path(self.config.store_dir), self.team)
        maker = SuspectMaker(self._plain, self.parts, store, self._fit, self._device)
        control = {}
        if self.parts.stress is not None and self.parts.stress.control:
            making = (self._plain, self.parts, store, self._fit, self._device)
            control["clean"] = make_control(*making)  # first, from the initial weights
        stages = control | maker.make()
        if self.parts.defense is not None:
            making = (self._plain, self.parts, store, self._fit, self._device)
            defender = DefenseMaker(*making, self.team.share)
            stages |= defender.make(maker.made_by, stages["suspect"])
        return stages

    def outcome(self) -> dict[str, Any]:
        """Return what the run found: scores, pruning steps, seconds and the keys of its stages."""
        stages, parts = self.stages(), self.parts
        start = time.perf_counter()
        network = stages["suspect"].load_into(parts.network)
        layers = watched_layers(network, parts.defense.layers if parts.defense else ())
        watches = {"suspect": Watch(network, layers, parts.test.labels)}
        scores = {"suspect": self._score(network, watches["suspect"])}
        if parts.source is not None:
            scores["source"] = self._score_source(parts.source, stages["source"])
        referee = (parts.test, parts.scored_attack, self._device)
        found: dict[str, Any] = {"oracle": self._is_oracle, "pruning": []}
        if self.config.get("analysis"):
            found["layers"] = analyse_layers(network, parts.validation, *referee, **self._plain["analysis"])
        if parts.defense is not None and "defended" in stages:
            unpruned = stages["suspect"].load_into(parts.defense.module.network)
            result = stages["defended"].about["result"]
            found["pruning"] = score_curve(unpruned, result, *referee)
            found["findings"] = result.get("findings", {})
            found["validation"] = {"suspect": self._validate(unpruned)}
            defended = stages["defended"].load_into(unpruned)
            found["pruned"] = {layer: gone for layer, gone in pruned_channels(defended).items() if gone}
            for layer in silent_layers(defended):
                log.warning(
                    "No channel of %s is left: whatever comes in, the same comes out of it. An accuracy near "
                    "chance, or few validation images, let pruning go so far.",
                    layer,
                )
            found["validation"]["defended"] = self._validate(defended)
            found["validation"] |= ladder_accuracies(result.get("ladder"))
            watches["defended"] = Watch(defended, (), parts.test.labels)
            scores["defended"] = self._score(defended, watches["defended"])
            found |= self._export(network, defended, scores, result)
        if "inspected" in stages:
            found |= write_report(self.place, self.config.name, parts.packed.classes, stages)
        if self.config.views:
            found |= to_record(
                watches, found.get("pruned", {}), network, parts.test, parts.scored_attack, self.place
            )
        seconds = {name: stage.about["seconds"] for name, stage in stages.items()}
        seconds["referee"] = time.perf_counter() - start
        if parts.stress is not None:
            found["stress"], tests = self._stress(parts.stress).results(stages, scores)
            seconds["stress"] = sum(stage.about["seconds"] for stage in tests.values())
            stages |= tests
        return {
            "status": "finished",
            "scores": {
                name: each.to_record() for name, each in ({"defended": scores["suspect"]} | scores).items()
            },
            "dead": scores["suspect"].dead,
            **found,
            "making": stages["suspect"].about["result"],
            "stages": {name: stage.key for name, stage in stages.items()},
            "seconds": seconds,
        }

    def _score(self, network: nn.Module, watch: Watch) -> Scores:
        with watch:
            return score(network, self.parts.test, self.parts.scored_attack, self._device)

    def _score_source(self, source: Source, stage: Stage) -> Scores:
        """Score the network that is transferred, on the source's own test set, before it is strengthened."""
        assert isinstance(self.parts.attack, Transfer)
        network = stage.load_into(source.network)
        return score(network, source.test, self.parts.attack.at_source, self._device)

    def _validate(self, network: nn.Module) -> dict[str, Any]:
        """Return what the defender itself can measure of a network: accuracy on its validation images."""
        found = score(network, self.parts.validation, None, self._device).clean_accuracy
        return {"clean_accuracy": found.value, "hits": found.hits, "total": found.total}

    def _export(
        self, network: nn.Module, defended: nn.Module, scores: dict[str, Scores], result: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Score what the two networks are together, and write what others can use."""
        parts, detector = self.parts, None
        if parts.detector is not None:
            detector = parts.detector(network, defended)
            scores["goodnet"] = score_detector(
                detector, len(parts.packed.classes), parts.test, parts.scored_attack, self._device
            )
        options = self._plain["export"]
        if parts.suspect is None and detector is None and not any(options.values()):
            return {}
        directory, ladder = self.place / "repaired", result.get("ladder")
        if ladder and ladder["kept"] is None:
            log.warning("Nothing was repaired, so that there is no %s.", directory)
            return {}
        export = write_exports(defended, detector, directory, parts.test.image_shape, **options)
        if parts.suspect is None:
            return {"export": export}
        alike = agreement(network, defended, parts.test)
        run = self.config.name
        repair = write_repair(parts.suspect, run, scores, alike, export, directory, result)
        return {"export": export, "repair": repair}

    def _stress(self, stress: Stress) -> StressTests:
        """Return the stress tests; this process alone makes them, as it alone scores."""
        made_by = {key: self._plain.get(key) for key in ("attack", "suspect", "defender", "seed")}
        made_by |= {"data": self.parts.packed.fingerprint, "files": dict(self.parts.files)}
        store = Store(Path(self.config.store_dir))
        return StressTests(stress, self.parts, made_by, store, self._device)

    @property
    def _is_oracle(self) -> bool:
        pruning = self.parts.defense.pruning if self.parts.defense else None
        searched = self.config.get("oracle", False)  # by a search that was told to look at attack success
        return searched or (pruning is not None and pruning.oracle)

    @property
    def _fit(self) -> Callable[..., None]:
        return functools.partial(fit, self.config, self.place, self.loggers)

    @property
    def _plain(self) -> dict[str, Any]:
        return OmegaConf.to_container(self.config, resolve=True)  # type: ignore[return-value]

    @property
    def _device(self) -> str:
        """Where this process computes beside training: on the GPU that it trains on, if it does."""
        accelerator, chosen = self.config.trainer.accelerator, self.config.trainer.devices
        if accelerator not in (*GPUS, "auto") or not torch.cuda.is_available():
            return "cpu"
        one = isinstance(chosen, ListConfig) and len(chosen) == 1  # several: the trainer sets each process's
        return f"cuda:{chosen[0]}" if one else "cuda"

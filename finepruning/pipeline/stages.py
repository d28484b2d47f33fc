"""The stages of a run: train the suspect, defend it, score both. The store keeps what is trained."""

import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger
from torch import nn

from finepruning.attacks import Transfer
from finepruning.callbacks import PruneChannels
from finepruning.pipeline.build import Defense, Parts, Source
from finepruning.pipeline.repairs import Repairs
from finepruning.pipeline.suspects import SuspectMaker
from finepruning.pipeline.training import fit
from finepruning.pruning import Channel, GoodNet
from finepruning.referee import Scores, Triggering, score, score_steps
from finepruning.store import Stage, Store
from finepruning.suspect import agreement, repair_report, write_onnx, write_repaired

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """One run: its configuration and parts, its folder and its loggers."""

    config: DictConfig
    parts: Parts
    place: Path
    loggers: list[Logger]

    def outcome(self) -> dict[str, Any]:
        """Return what the run found: scores, pruning steps, seconds and the keys of its stages."""
        store = Store(Path(self.config.store_dir))
        maker = SuspectMaker(self._plain, self.parts, store, self._fit, self._device)
        stages = maker.make()
        network = stages["suspect"].load_into(self.parts.network)
        start = time.perf_counter()
        scores = {"suspect": score(network, self.parts.test, self._scored_attack, self._device)}
        if self.parts.source is not None:
            scores["source"] = self._score_source(self.parts.source, stages["source"])
        steps: list[dict[str, Any]] = []
        repair: dict[str, Any] = {}
        defense, repairs = self.parts.defense, self._repairs
        if defense is not None and repairs is not None:
            seen = maker.made_by | {"inspection": self._plain["defense"]["inspection"]}
            stages["inspected"] = store.stage("inspected", seen, functools.partial(repairs.inspect, network))
            repairs.aim(stages["inspected"])
        if defense is not None and defense.acts:
            made_by = maker.made_by | {"defense": self._plain["defense"]}
            stages["suspect"].load_into(defense.module.network)
            if repairs is not None and defense.ladder:
                make = functools.partial(repairs.climb, stages["suspect"], stages["inspected"])
            else:
                make = functools.partial(self._defend, defense)
            stages["defended"] = store.stage("defended", made_by, make)
            stages["suspect"].load_into(defense.module.network)
            steps = self._score_curve(defense, stages["defended"])
            defended = stages["defended"].load_into(defense.module.network)
            scores["defended"] = score(defended, self.parts.test, self._scored_attack, self._device)
            repair = self._write_repair(network, defended, scores)
        if repairs is not None:
            repair |= repairs.write(self.place, self.config.name, stages)
        self._log(scores)
        scoring = time.perf_counter() - start
        for name in ("inspected", "defended"):
            if name in stages and not stages[name].reused:
                scoring -= stages[name].about["seconds"]  # it was made in between
        seconds = {name: stage.about["seconds"] for name, stage in stages.items()}
        return {
            "status": "finished",
            "scores": {
                name: found.to_record() for name, found in ({"defended": scores["suspect"]} | scores).items()
            },
            **repair,
            "dead": scores["suspect"].dead,
            "pruning": steps,
            "making": stages["suspect"].about["result"],
            "stages": {name: stage.key for name, stage in stages.items()},
            "seconds": seconds | {"referee": scoring},
        }

    def _defend(self, defense: Defense, directory: Path) -> Mapping[str, Any]:
        """Prune and tune the suspect on the defender's clean images; return the curve as plain values."""
        log.info("Defending it ...")
        self._fit(defense.module, defense.data, defense.callbacks, directory, max_epochs=defense.max_epochs)
        return next((c.state_dict() for c in defense.callbacks if isinstance(c, PruneChannels)), {})

    def _score_source(self, source: Source, stage: Stage) -> Scores:
        """Score the network that is transferred, on the source's own test set, before it is strengthened."""
        assert isinstance(self.parts.attack, Transfer)
        network = stage.load_into(source.network)
        return score(network, source.test, self.parts.attack.at_source, self._device)

    def _score_curve(self, defense: Defense, stage: Stage) -> list[dict[str, Any]]:
        """Return the curve, the referee's scores beside the defender's own; empty without pruning."""
        curve = stage.about["result"]
        if "order" not in curve:
            return []
        order = [Channel(*channel) for channel in curve["order"]]
        layers = list(dict.fromkeys(channel.layer for channel in order))
        scores = score_steps(
            defense.module.network, layers, order, self.parts.test, self._scored_attack, self._device
        )
        return [_step(number, curve, order, scores[number]) for number in range(len(scores))]

    def _write_repair(
        self, network: nn.Module, defended: nn.Module, scores: dict[str, Scores]
    ) -> dict[str, Any]:
        """Score a stranger's network and the repaired one as a pair, write the latter and its page."""
        suspect, test = self.parts.suspect, self.parts.test
        if suspect is None:
            return {}
        scores["goodnet"] = score(GoodNet(network, defended), test, self._scored_attack, self._device)
        alike = agreement(network, defended, test)
        directory = self.place / "repaired"
        channels = write_repaired(defended, directory)
        if self.config.suspect.onnx:
            write_onnx(defended, directory / "network.onnx", test.image_shape)
        files = sorted(path.name for path in directory.iterdir())
        page = repair_report(
            suspect.weights.name,
            self.config.name,
            {name: each.to_record() for name, each in scores.items()},
            channels,
            alike,
            files,
            suspect.warning,
        )
        (directory / "REPORT.md").write_text(page)
        log.info("Repaired network and report: %s", directory)
        counts = {"hits": alike.hits, "total": alike.total}
        found = {"agreement": alike.value, "agreement_counts": counts, "channels": channels}
        return {"repair": found | {"warning": suspect.warning}}

    def _log(self, scores: Mapping[str, Scores]) -> None:
        """Give the loggers the final scores."""
        for logger in self.loggers:
            for name, network in scores.items():
                values = {key: value for key, value in network.values().items() if value is not None}
                logger.log_metrics({f"test/{name}/{key}": value for key, value in values.items()})

    @property
    def _repairs(self) -> Repairs | None:
        defense = self.parts.defense
        if defense is None or defense.inspection is None:
            return None
        names = tuple(self.parts.packed.classes)
        return Repairs(defense, defense.inspection, names, self._plain["defense"], self._fit, self._device)

    @property
    def _fit(self) -> Callable[..., None]:
        return functools.partial(fit, self.config, self.place, self.loggers)

    @property
    def _scored_attack(self) -> Triggering | None:
        suspect = self.parts.suspect
        return self.parts.attack if suspect is None else suspect.attack

    @property
    def _plain(self) -> dict[str, Any]:
        return OmegaConf.to_container(self.config, resolve=True)  # type: ignore[return-value]

    @property
    def _device(self) -> str:
        return "cuda" if self.config.trainer.accelerator == "gpu" else "cpu"


def _step(number: int, curve: Mapping[str, Any], order: list[Channel], scores: Scores) -> dict[str, Any]:
    channel = order[number - 1]._asdict() if number else {"layer": None, "number": None}
    return {
        "channels_pruned": number,
        **channel,
        "pruned": 0 < number <= curve["channels_pruned"],
        "validation_accuracy": curve["hits"][number] / curve["total"],
        **scores.values(),
    }

"""Runs that differ by their seed alone, taken together: mean, 95 % interval, range."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finepruning.dashboard.plain import flat

Record = Mapping[str, Any]

PLACES = (  # change neither suspect nor defended network, nor their scores
    *("name", "group", "runs_dir", "store_dir", "data_dir", "overwrite", "logger", "views"),
    *("stress", "export", "analysis", "detector"),
)
SPEED = ("trainer.threads", "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy")
PAPERS = ("none", "prune", "finetune", "fineprune")  # Fine-Pruning's columns


@dataclass(frozen=True)
class Spread:
    """A quantity over seeds.

    Args:
        count: Values.
        mean: Of them.
        half: Half the width of the 95 % t-interval of the mean; None with one value, which has no interval.
        least: Smallest value.
        most: Largest value.
    """

    count: int
    mean: float
    half: float | None
    least: float
    most: float

    @property
    def low(self) -> float:
        """Lower end of the interval; the mean itself with one value. May lie below 0."""
        return self.mean - (self.half or 0.0)

    @property
    def high(self) -> float:
        """Upper end of the interval; the mean itself with one value. May lie above 1."""
        return self.mean + (self.half or 0.0)


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean, interval and range of the values that are there; None if there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    half = None
    if len(known) > 1:
        half = t_quantile(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))
    return Spread(len(known), statistics.fmean(known), half, min(known), max(known))


def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit  # here: loading it takes longer than most of what needs no interval

    return float(stdtrit(degrees, 0.975))


@dataclass(frozen=True)
class Group:
    """Finished runs that differ by their seed alone, one a seed, ascending."""

    runs: tuple[Record, ...]

    @property
    def seeds(self) -> list[int]:
        """Their seeds."""
        return [run["seed"] for run in self.runs]

    @property
    def dead(self) -> int:
        """How many of the attacks are dead."""
        return sum(bool(run["dead"]) for run in self.runs)

    @property
    def counted(self) -> tuple[Record, ...]:
        """The runs that are averaged: those whose attack lives; all of them where none does."""
        return tuple(run for run in self.runs if not run["dead"]) or self.runs

    @property
    def oracle(self) -> bool:
        """Whether a defense used what no defender has."""
        return any(run.get("oracle", False) for run in self.runs)

    @property
    def ranked(self) -> bool:
        """Whether the runs may be compared with others: an attack that lives, no oracle."""
        return self.dead < len(self.runs) and not self.oracle

    def score(self, network: str, name: str) -> Spread | None:
        """Return a score over the counted runs, such as ``"defended", "clean_accuracy"``; None if unknown."""
        return spread(run["scores"].get(network, {}).get(name) for run in self.counted)

    def drop(self, name: str) -> Spread | None:
        """Return how much the defense took off a score, each seed compared with itself."""
        pairs = [
            (run["scores"]["suspect"][name], run["scores"].get("defended", {}).get(name))
            for run in self.counted
        ]
        return spread(before - after for before, after in pairs if before is not None and after is not None)


def attack_order(attack: str) -> tuple[bool, str, bool]:
    """Return what sorts attacks by name: none first, each with decoys behind the same one without."""
    plain = attack.removeprefix("pruning_aware_")
    return attack != "none", plain, plain != attack


def defense_order(defense: str) -> tuple[int, str]:
    """Return what sorts defenses by name: the paper's first, from the weakest to both together."""
    name = defense.split()[0]  # a setting may stand behind it
    return PAPERS.index(name) if name in PAPERS else len(PAPERS), defense


def group_by_seed(records: Sequence[Record]) -> list[Group]:
    """Return the finished runs in groups whose configurations differ by seeds alone, in the order given.

    Of several runs with the same seeds the last one counts: a repetition is no further evidence.
    """
    groups: dict[str, dict[tuple[int, str], Record]] = {}
    for record in records:
        if record["status"] == "finished":
            seeds = record["seed"], json.dumps(_seeds(record["config"]), sort_keys=True)
            groups.setdefault(setting(record), {})[seeds] = record
    return [Group(tuple(runs[seed] for seed in sorted(runs))) for runs in groups.values()]


def setting(record: Record) -> str:
    """Return what a run's group has in common: its choices, and what it chose without seeds."""
    choices = {key: record[key] for key in ("dataset", "model", "attack", "defense")}
    return json.dumps([choices, _without_seeds(chosen(flat(record["config"])))], sort_keys=True)


def chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration, by dotted keys, makes its networks, seeds among it.

    Left out are places, speed, and the options of tuners that no rung of a ladder names.
    """
    named = {rung.get("tuner") for rung in config.get("defense.ladder") or ()}

    def counts(key: str) -> bool:
        parts = key.split(".")
        idle = parts[:2] == ["defense", "tuners"] and parts[2] not in named
        return parts[0] not in PLACES and key not in SPEED and not idle

    return {key: value for key, value in config.items() if counts(key)}


def is_seed(key: Any) -> bool:
    """Return whether a key, dotted or not, is that of a seed."""
    last = str(key).rsplit(".", 1)[-1]
    return last == "seed" or last.endswith("_seed")


def _seeds(node: Any) -> Any:
    """Return the seeds of a configuration, as nested as they are."""
    if not isinstance(node, Mapping):
        return None
    inner = {key: value if is_seed(key) else _seeds(value) for key, value in node.items()}
    return {key: value for key, value in inner.items() if value is not None} or None


def _without_seeds(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {key: _without_seeds(value) for key, value in node.items() if not is_seed(key)}
    return [_without_seeds(value) for value in node] if isinstance(node, list) else node

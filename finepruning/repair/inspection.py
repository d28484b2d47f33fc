"""Inspection: rankings of all classes by their smallest triggers, and what stands out in them."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, median_low
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finepruning.metrics import Rate
from finepruning.repair.inversion import FAMILIES, UNTARGETED, Family, Search, Trigger, hits, invert

Ranking = list[Trigger]  # of one family, smallest norm first
Rankings = dict[Family, Ranking]
Batches = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Inspection:
    """What is inspected, and when a class is suspicious.

    Args:
        search: Arguments of :class:`Search`.
        classes: How many classes, drawn by chance, are inspected; None: all of them.
        sample: Clean images that are searched on, at most; at least 1.
        suspicious: How many classes of each family count as suspicious, at least 0: of those that stand out,
            or, where none does, of the smallest ones; or the classes that do, whatever their norms.
        outlier: Share of the median norm below which a class stands out, in (0, 1).

    Raises:
        ValueError: If a value is out of range.
    """

    search: Mapping[str, Any] = field(default_factory=dict)
    classes: int | None = None
    sample: int = 2048
    suspicious: int | Sequence[int] = 3
    outlier: float = 0.4

    def __post_init__(self) -> None:
        for name, least in (("classes", 2), ("sample", 1), ("suspicious", 0)):
            value = getattr(self, name)
            if isinstance(value, int) and value < least:
                raise ValueError(f"{name}={value} is below {least}. Change defense.inspection.{name}.")
        if not 0 < self.outlier < 1:
            raise ValueError(f"outlier={self.outlier} is outside (0, 1). Change defense.inspection.outlier.")
        Search(**self.search)  # says what is wrong with it now, not after training

    def targets(self, num_classes: int) -> list[int]:
        """Return the classes that are inspected, ascending: all, or a sample drawn by the search's seed.

        Raises:
            ValueError: If a class that is named as suspicious is none of them.
        """
        for label in self._named:
            if not (isinstance(label, int) and 0 <= label < num_classes):
                raise ValueError(
                    f"Class {label!r} is named as suspicious, but classes go from 0 to {num_classes - 1}. "
                    "Change defense.inspection.suspicious."
                )
        if self.classes is None or self.classes >= num_classes:
            return list(range(num_classes))
        chance = torch.Generator().manual_seed(Search(**self.search).seed)
        drawn = torch.randperm(num_classes, generator=chance)[: self.classes].tolist()
        return sorted({*drawn, *self._named})

    def rank(self, network: nn.Module, images: Tensor, labels: Tensor, targets: Sequence[int]) -> Rankings:
        """Return both rankings of the targets; the additive one has the untargeted trigger, too.

        Args:
            network: The network, left in evaluation mode.
            images: (N, C, H, W) clean images.
            labels: (N,) their classes.
            targets: Classes.
        """
        search, rankings = Search(**self.search), {}
        for family in FAMILIES:
            goals = [*targets, UNTARGETED] if family == "additive" else targets
            found = invert(network, images, labels, goals, family, search)
            rankings[family] = sorted(found, key=lambda trigger: trigger.norm)
        return rankings

    def suspects(self, rankings: Rankings) -> list[int]:
        """Return the suspicious classes: those named, or those that stand out, or each ranking's head."""
        if not isinstance(self.suspicious, int):
            return self._named
        outliers = self._outliers(rankings)
        chosen = outliers if any(outliers) else [reached(ranking) for ranking in rankings.values()]
        return list(dict.fromkeys(t.target for head in chosen for t in head[: self.suspicious]))

    def clear(self, rankings: Rankings) -> bool:
        """Return whether a class stands out or is named, so that the suspicious ones are no mere heads."""
        return bool(self._named) or any(self._outliers(rankings))

    def most_suspects(self, num_classes: int) -> int:
        """Return how many classes can be suspicious at once: the named ones, or each head, all different.

        Raises:
            ValueError: As :meth:`targets`.
        """
        inspected = len(self.targets(num_classes))
        if isinstance(self.suspicious, int):
            return min(len(FAMILIES) * self.suspicious, inspected)
        return len(self._named)

    def outliers(self, rankings: Rankings) -> list[int]:
        """Return the classes that stand out of a ranking."""
        return list(dict.fromkeys(t.target for head in self._outliers(rankings) for t in head))

    def counts(self, trigger: Trigger, median: float | None) -> bool:
        """Return whether a trigger is evidence: it stands out of its ranking, or its class is named.

        Args:
            trigger: That was found.
            median: Of its ranking's norms; None, as a record has it: infinite.
        """
        return trigger.target in self._named or self._stands_out(
            trigger, math.inf if median is None else median
        )

    @property
    def _named(self) -> list[int]:
        return [] if isinstance(self.suspicious, int) else list(dict.fromkeys(self.suspicious))

    def _outliers(self, rankings: Rankings) -> list[list[Trigger]]:
        middles = [(reached(ranking), median_norm(ranking)) for ranking in rankings.values()]
        return [[t for t in head if self._stands_out(t, middle)] for head, middle in middles]

    def _stands_out(self, trigger: Trigger, median: float) -> bool:
        """Where most classes have no trigger, one that has any does; leading away from all is easier."""
        if trigger.target == UNTARGETED and math.isinf(median):
            return False
        return trigger.norm < self.outlier * median

    def evidence(self, rankings: Rankings, names: Sequence[str]) -> list[str]:
        """Return a sentence for whatever stands out of a ranking."""
        sentences = []
        for family, ranking in rankings.items():
            middle = median_norm(ranking)
            for trigger in ranking:
                if self._stands_out(trigger, middle):
                    others = (
                        f"the median of all classes is {middle:.2f}"
                        if math.isfinite(middle)
                        else "for most classes none was found"
                    )
                    sentences.append(
                        f"A universal {family} trigger of norm {trigger.norm:.2f} sends images "
                        f"{destination(trigger, names)}; {others}."
                    )
        return sentences


def is_blind(rankings: Rankings) -> bool:
    """Return whether no trigger to any class was found, so that it says nothing that none stands out."""
    return not any(reached(ranking) for ranking in rankings.values())


def failures(rankings: Rankings, names: Sequence[str]) -> list[str]:
    """Return a sentence for each search that failed."""
    failed = [trigger for ranking in rankings.values() for trigger in ranking if trigger.failed]
    return [
        f"The {trigger.family} search for what sends images {destination(trigger, names)} met values that "
        "are not numbers; it was set aside, and nothing is known of it."
        for trigger in failed
    ]


def destination(trigger: Trigger, names: Sequence[str]) -> str:
    """Say where a trigger sends images."""
    return "away from their class" if trigger.target == UNTARGETED else f"to {names[trigger.target]!r}"


def reached(ranking: Ranking) -> Ranking:
    """Return the triggers of a ranking that lead to a class and were found."""
    return [t for t in ranking if t.target != UNTARGETED and math.isfinite(t.norm)]


def median_norm(ranking: Ranking) -> float:
    """Return the median norm over classes whose search did not fail; infinite if most have no trigger."""
    norms = [trigger.norm for trigger in ranking if trigger.target != UNTARGETED and not trigger.failed]
    if not norms:
        return math.inf
    middle = median(norms)
    return middle if math.isfinite(middle) else median_low(norms)  # where half have one


def runner_up_ratio(ranking: Ranking) -> float:
    """Return the second smallest norm over the smallest; NaN if there are not two."""
    norms = [trigger.norm for trigger in reached(ranking)]
    return norms[1] / norms[0] if len(norms) > 1 else math.nan


@torch.no_grad()
def success(network: nn.Module, triggers: Sequence[Trigger], batches: Batches) -> list[Rate]:
    """Return how many images each trigger sends to its target, of those of another class.

    Args:
        network: The network, left in evaluation mode.
        triggers: T triggers.
        batches: (images, labels) that the search did not use.
    """
    network.eval()
    counts = torch.zeros(len(triggers), 2, dtype=torch.long)
    for images, labels in batches:
        for place, trigger in enumerate(triggers):
            counts[place] += torch.tensor(hits(network, trigger, images, labels))
    return [Rate(*pair) for pair in counts.tolist()]


def rankings_record(rankings: Rankings, rates: Mapping[Family, Sequence[Rate]]) -> dict[str, Any]:
    """Return plain values of both rankings; a norm that was not found is None."""
    return {
        family: {
            "ranking": [
                {
                    "target": trigger.target,
                    "norm": trigger.norm if math.isfinite(trigger.norm) else None,
                    "success": rate.value if rate.total else None,
                    "failed": trigger.failed,
                }
                for trigger, rate in zip(ranking, rates[family], strict=True)
            ],
            "median": _plain(median_norm(ranking)),
            "ratio": _plain(runner_up_ratio(ranking)),
        }
        for family, ranking in rankings.items()
    }


def save_triggers(rankings: Rankings, path: Path, count: int, classes: Collection[int] = ()) -> None:
    """Write the first triggers of each ranking and those of some classes as safetensors, in order."""
    tensors = {}
    for family, ranking in rankings.items():
        for place, trigger in enumerate(ranking):
            if place >= count and trigger.target not in classes:
                continue
            tensors[f"{family}.{place}.{trigger.target}.pattern"] = trigger.pattern.cpu().contiguous()
            if trigger.mask is not None:
                tensors[f"{family}.{place}.{trigger.target}.mask"] = trigger.mask.cpu().contiguous()
    save_file(tensors, path)


def load_triggers(path: Path, record: Mapping[str, Any]) -> Rankings:
    """Return the triggers that :func:`save_triggers` wrote, with the norms of :func:`rankings_record`."""
    tensors = load_file(path)
    rankings: Rankings = {}
    for family in FAMILIES:
        rankings[family] = []
        for place, found in enumerate(record[family]["ranking"]):
            name = f"{family}.{place}.{found['target']}"
            if f"{name}.pattern" in tensors:
                norm = math.inf if found["norm"] is None else found["norm"]
                mask = tensors.get(f"{name}.mask")
                pattern = tensors[f"{name}.pattern"]
                rankings[family].append(
                    Trigger(family, found["target"], norm, pattern, mask, found["failed"])
                )
    return rankings


def check_accuracy(validation: Rate, num_classes: int) -> None:
    """Refuse a network that knows little: a tenth of the way from chance to perfect, or less.

    Args:
        validation: Clean validation images classified correctly.
        num_classes: Number of classes.

    Raises:
        ValueError: If it is near chance; the message names likely reasons.
    """
    chance = 1 / num_classes
    if not validation.value > chance + 0.1 * (1 - chance):
        raise ValueError(
            f"The suspect classifies {validation.hits} of {validation.total} clean validation images "
            f"correctly, which is near chance ({chance:.1%}); nothing can be found in it or kept. Its "
            "input may be scaled wrongly (of a file: suspect.white, suspect.mean, suspect.std), or its "
            "classes come in another order than the data set's."
        )


def missing_classes(labels: Tensor, num_classes: int) -> list[int]:
    """Return the classes of which there is no clean image."""
    return (torch.bincount(labels.cpu(), minlength=num_classes) == 0).nonzero().squeeze(1).tolist()


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None

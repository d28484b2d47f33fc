"""A configuration's defense becomes modules, data and callbacks."""

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback
from torch import Tensor, nn

from finepruning.callbacks import PruneChannels
from finepruning.data import Augment, DefenderData, ImageSet, Packed, Roles
from finepruning.modules import Classifier, PrunedClassifier, UnlearnedClassifier
from finepruning.pipeline.parts import Defense, Fold, Rung, Tuning
from finepruning.pipeline.targets import build, check_kind, check_target
from finepruning.repair import Inspection, check_max_drop, check_max_success, split_folds

log = logging.getLogger(__name__)

NO_TUNING = {"_target_": "finepruning.modules.PrunedClassifier", "max_epochs": 0, "batch_size": 256}
OF_A_TUNING = ("max_epochs", "batch_size", "min_steps", "augment")  # beside its module's own options


@dataclass(frozen=True)
class _Defender:
    """What all tunings of a defense share.

    Args:
        network: Gets the suspect's weights later.
        tuning: Clean images to tune on.
        validation: Clean images that decide.
        augment: Changes the images to tune on by chance.
        seed: Of the batches' order.
        speed: Options of every module that change its speed alone.
    """

    network: nn.Module
    tuning: ImageSet
    validation: ImageSet
    augment: nn.Module | None
    seed: int
    speed: Mapping[str, Any]

    def make(self, values: Mapping[str, Any], layers: list[str], callbacks: list[Callback]) -> Tuning:
        """Return what tunes the network with the values of a configuration."""
        options = dict(values)
        tuner = _tuner(options.pop("_target_"))
        max_epochs, batch_size = options.pop("max_epochs"), options.pop("batch_size")
        whole = isinstance(max_epochs, int) and isinstance(batch_size, int)
        if not whole or max_epochs < 0 or batch_size < 1:
            raise ValueError(
                f"max_epochs={max_epochs} and batch_size={batch_size} are no way to tune. Set "
                "defense.tuning.max_epochs to 0 or more and batch_size to 1 or more."
            )
        if min_steps := options.pop("min_steps", 0):
            batch_size, max_epochs = enough_steps(len(self.tuning), batch_size, max_epochs, min_steps)
        if len(self.tuning) < batch_size and max_epochs:
            log.warning(
                "The defender has %s images to tune on, fewer than defense.tuning.batch_size=%s: an epoch "
                "is one step.",
                len(self.tuning),
                batch_size,
            )
        augment = _both(self.augment, options.pop("augment", None))
        kind = tuner if max_epochs else PrunedClassifier
        known = option_types(tuner)
        known = {name: known[name] for name in known if name not in self.speed}  # the trainer's
        if unknown := sorted(set(options) - set(known)):
            listed = ", ".join(sorted({*known, *OF_A_TUNING}))
            raise ValueError(f"{tuner.__name__} has no option {', '.join(unknown)}. It has {listed}.")
        _check_kinds(options, known)
        kept = option_types(kind)
        options = {key: value for key, value in options.items() if key in kept}
        if max_epochs and options.get("learning_rate") is None:
            raise ValueError(
                "Without a learning_rate nothing is tuned. Set defense.tuning.learning_rate, or "
                "defense.tuning.max_epochs to 0."
            )
        module = kind(self.network, layers, self.tuning.image_shape, **options, **self.speed)
        module.check_epochs(max_epochs)
        for callback in callbacks:
            if check := getattr(callback, "check", None):
                check(self.network, layers)
        data = DefenderData(self.tuning, self.validation, batch_size, self.seed, augment)
        return Tuning(module, layers, data, callbacks, max_epochs)


def without_unused(defense: Mapping[str, Any]) -> dict[str, Any]:
    """Return a defense as plain values without the tuners that no rung of its ladder names."""
    named = {rung.get("tuner") for rung in defense.get("ladder", [])}
    tuners = {name: tuner for name, tuner in defense.get("tuners", {}).items() if name in named}
    return {**defense, "tuners": tuners}


def _tuner(target: str) -> type[PrunedClassifier]:
    check_target(target)
    try:
        tuner = get_class(target)
    except (ImportError, ValueError):
        tuner = Classifier
    if not issubclass(tuner, PrunedClassifier):
        raise ValueError(
            f"{target} is no module that tunes. Set defense.tuning._target_ to one of finepruning.modules, "
            "such as finepruning.modules.FinePrunedClassifier."
        )
    return tuner


def option_types(kind: type[PrunedClassifier]) -> dict[str, Any]:
    """Return the options of a module, those of what it builds on included, and their types."""
    classes = kind.__mro__[: kind.__mro__.index(Classifier) + 1]
    return {
        name: parameter.annotation
        for each in classes
        for name, parameter in inspect.signature(each).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def _check_kinds(options: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """Raise ValueError if a value is of another kind than its option, such as a word for a number."""
    for key, value in options.items():
        check_kind(value, types[key], f"defense.tuning.{key}")


def _both(of_data: nn.Module | None, more: Mapping[str, Any] | None) -> nn.Module | None:
    """Return the data set's own changes of images, followed by a tuning's."""
    steps = [step for step in (of_data, Augment(**more) if more else None) if step is not None]
    return nn.Sequential(*steps) if steps else None


def enough_steps(images: int, batch_size: int, max_epochs: int, min_steps: int) -> tuple[int, int]:
    """Return a batch size and a number of epochs with which few images are learned from often enough.

    Args:
        images: How many there are.
        batch_size: Wanted; at most a quarter of the images becomes of it.
        max_epochs: Wanted; more become of it until there are ``min_steps`` steps. 0 stays 0.
        min_steps: Least number of steps in all, at least 0.

    Raises:
        ValueError: If ``min_steps`` is below 0.
    """
    if not (isinstance(min_steps, int) and min_steps >= 0):
        raise ValueError(
            f"min_steps={min_steps} is no number of steps. Set defense.tuning.min_steps to 0 or more."
        )
    batch_size = max(1, min(batch_size, images // 4))
    steps = max(1, images // batch_size)
    return batch_size, max_epochs and max(max_epochs, -(-min_steps // steps))


def build_defense(
    config: DictConfig,
    network: nn.Module,
    train: ImageSet,
    roles: Roles,
    packed: Packed,
    augment: nn.Module | None,
) -> Defense | None:
    """Build the defense around a network that will get the suspect's weights; None if there is none.

    Args:
        config: The whole configuration.
        network: The network.
        train: Training images.
        roles: Which of them are the defender's.
        packed: The data that they come from: their tracks and the classes.
        augment: Changes the images to tune on by chance.

    Raises:
        ValueError: If a value is out of range.
    """
    if not config.get("defense"):
        return None
    defense: dict[str, Any] = OmegaConf.to_container(config.defense, resolve=True)  # type: ignore[assignment]
    speed = {"channels_last": config.trainer.channels_last, "compile": config.trainer.compile}
    validation = train.subset(roles.validation)
    defender = _Defender(network, train.subset(roles.tuning), validation, augment, config.seed, speed)
    folds: list[Fold] = []
    ladder: list[Rung] = []
    if "ladder" in defense:
        parts = fold_rows(roles, packed, defense["folds"], config.seed)
        folds = [Fold(train.subset(rows), _alike(packed, rows)) for _, rows in parts]
        without = [replace(defender, tuning=train.subset(rows)) for rows, _ in parts]
        ladder = _build_ladder(without, config.defense, defense)
    layers = [] if ladder else _layers(network, defense)
    base = defender.make(defense.get("tuning") or NO_TUNING, layers, _build_callbacks(config.defense))
    inspection: Inspection | None = build(config.defense.get("inspection"))
    if inspection is not None:
        suspects = inspection.most_suspects(len(packed.classes))
        for tuning in (base, *(tuning for rung in ladder for tuning in rung.tunings)):
            if isinstance(tuning.module, UnlearnedClassifier):
                tuning.module.check_room(suspects)
    return Defense(**vars(base), inspection=inspection, ladder=ladder, folds=folds)


def fold_rows(roles: Roles, packed: Packed, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return for each fold the rows to tune on and those that judge; 1: as the roles have them.

    Pictures that are alike are in one fold: a network knows by heart what is like those that it was tuned on.
    """
    if folds == 1:
        return [(roles.tuning, roles.validation)]
    rows = torch.cat([roles.tuning, roles.validation]).sort().values
    fold = split_folds(packed.train_labels[rows], folds, seed, _alike(packed, rows))
    return [(rows[fold != number], rows[fold == number]) for number in range(folds)]


def _alike(packed: Packed, rows: Tensor) -> Tensor:
    """Return the number of each row's track, or else of its group; where there are none, each is its own."""
    groups = packed.train_groups if packed.train_tracks is None else packed.train_tracks
    return rows if groups is None else groups[rows]


def _layers(network: nn.Module, defense: Mapping[str, Any]) -> list[str]:
    """Return the layers whose channels may be pruned: those that are named, or the network's own choice."""
    return [str(network.pruned_layer)] if defense["layers"] is None else list(defense["layers"])


def _build_ladder(
    defenders: Sequence[_Defender], config: DictConfig, defense: Mapping[str, Any]
) -> list[Rung]:
    """Build the rungs of a ladder, each with a tuning for every fold of the defender's images.

    What prunes in a rung, or chooses a threshold, goes by the images to validate with, the same in each fold,
    though a tuning may have learned from a part of them. ``defense`` is its configuration as plain values.
    """
    check_max_drop(defense["max_drop"])
    check_max_success(defense["audit"]["max_success"])
    if not defense.get("inspection"):
        raise ValueError(
            "defense.ladder is walked by what an inspection finds, and is audited by it, and there is no "
            "defense.inspection. Start from defense=auto, or choose a defense without a ladder."
        )
    if not defense["ladder"]:
        raise ValueError("defense.ladder is empty. Give it a rung, such as {weight: 0.05}.")
    return [_build_rung(defenders, config, defense, rung) for rung in defense["ladder"]]


def _build_rung(
    defenders: Sequence[_Defender], config: DictConfig, defense: Mapping[str, Any], rung: Any
) -> Rung:
    """Build a rung from what the configuration says of it."""
    if not isinstance(rung, Mapping):
        raise ValueError(f"The rung {rung!r} has no options by name. Write it like {{weight: 0.05}}.")
    tuners = {"unlearn": {"tuning": defense["tuning"]}, **defense["tuners"]}
    tuner, when, prune = rung.get("tuner", "unlearn"), rung.get("when"), rung.get("prune")
    if tuner not in tuners:
        raise ValueError(
            f"The tuner {tuner!r} of a rung is unknown. Choose {', '.join(tuners)} in defense.ladder, or "
            "give its options in defense.tuners."
        )
    if when not in (None, "clear", "unclear"):
        raise ValueError(
            f"when={when} of a rung is unknown. Choose clear (a class stands out or is named) or "
            "unclear in defense.ladder, or leave it out: the rung is for both."
        )
    if prune is not None and not (isinstance(prune, int | float) and 0 <= prune <= 1):
        raise ValueError(
            f"prune={prune} of a rung is no fraction in [0, 1]. It is of the validation accuracy: "
            "prune: 0.04 in defense.ladder is 4 %."
        )
    options = {key: value for key, value in rung.items() if key != "when"}
    own = {key: value for key, value in options.items() if key not in ("prune", "tuner")}
    whole, tuning = copy.deepcopy(config.tuners.get(tuner) or OmegaConf.create()), tuners[tuner].get("tuning")
    for key in set(own) & set(whole) - {"tuning", "layers"}:  # of the defense, not of its training
        whole[key] = own.pop(key)
    if own and not tuning:
        known = sorted({"prune", *set(whole) - {"layers", "callbacks"}})
        raise ValueError(
            f"The tuner {tuner!r} has no option {', '.join(sorted(own))} in a rung. It has "
            f"{', '.join(known)}."
        )
    tunings = []
    for defender in defenders:
        first: list[Callback] = [] if prune is None else [PruneChannels(max_drop=prune)]
        layers = [] if prune is None else _layers(defender.network, defense)
        try:
            made = defender.make((tuning or NO_TUNING) | own, layers, first + _build_callbacks(whole))
        except ValueError as error:  # names keys of a defense by itself
            raise ValueError(
                f"The rung {dict(options)} of defense.ladder cannot be built: {error} (In a rung stands the "
                "key alone, beside its tuner, prune and when.)"
            ) from error
        tunings.append(made)
    return Rung(options, tunings, when)


def _build_callbacks(defense: DictConfig) -> list[Callback]:
    return [build(callback) for callback in (defense.get("callbacks") or {}).values()]

"""A configuration's defense becomes modules, data and callbacks."""

import copy
import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback
from torch import nn

from finepruning.callbacks import PruneChannels
from finepruning.data import Augment, DefenderData, ImageSet, Packed, Roles
from finepruning.modules import (
    ANPClassifier,
    Classifier,
    FinePrunedClassifier,
    FTSAMClassifier,
    HeadShiftClassifier,
    IBAUClassifier,
    NADClassifier,
    PrunedClassifier,
    SAUClassifier,
    UnlearnedClassifier,
)
from finepruning.pipeline.parts import Defense, Tuning
from finepruning.pipeline.targets import build
from finepruning.repair import Inspection, check_copies, check_max_drop, check_max_success

log = logging.getLogger(__name__)

LEAST_DECIDING = 100  # images: one of fewer would be more than a point
NO_TUNING = {"max_epochs": 0, "batch_size": 256}
TUNERS: dict[str, type[PrunedClassifier]] = {
    "finetune": FinePrunedClassifier,
    "unlearn": UnlearnedClassifier,
    "ft_sam": FTSAMClassifier,
    "anp": ANPClassifier,
    "i_bau": IBAUClassifier,
    "nad": NADClassifier,
    "head_shift": HeadShiftClassifier,
    "sau": SAUClassifier,
}


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

    def make(
        self, values: Mapping[str, Any], layers: list[str], callbacks: list[Callback], **more: Any
    ) -> Tuning:
        """Return what tunes the network with the values of a configuration."""
        options = dict(values)
        tuner = options.pop("tuner", "finetune")
        max_epochs, batch_size = options.pop("max_epochs"), options.pop("batch_size")
        if tuner not in TUNERS:
            raise ValueError(f"The tuner {tuner!r} is unknown; choose {', '.join(TUNERS)} in defense.")
        if max_epochs < 0 or batch_size < 1:
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
        kind = TUNERS[tuner] if max_epochs else PrunedClassifier
        known = option_names(TUNERS[tuner])
        if unknown := sorted(set(options) - known):
            raise ValueError(
                f"The tuner {tuner!r} has no option {', '.join(unknown)}. It has {', '.join(sorted(known))}."
            )
        kept = option_names(kind)
        options = {key: value for key, value in options.items() if key in kept}
        try:
            module = kind(self.network, layers, self.tuning.image_shape, **options, **self.speed)
        except TypeError as error:
            raise ValueError(
                f"A value of the tuner {tuner!r} is of the wrong kind ({error}): {options}. Change it."
            ) from error
        if isinstance(module, NADClassifier):
            module.check_epochs(max_epochs)
        data = DefenderData(self.tuning, self.validation, batch_size, self.seed, augment)
        return Tuning(module, layers, data, callbacks, max_epochs, **more)


def option_names(kind: type[PrunedClassifier]) -> set[str]:
    """Return the names of the options of a module, those of what it builds on included."""
    classes = kind.__mro__[: kind.__mro__.index(Classifier) + 1]
    return {
        name
        for each in classes
        for name, parameter in inspect.signature(each).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


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
        min_steps: Least number of steps in all.
    """
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
    named = [str(network.pruned_layer)] if defense["layers"] is None else list(defense["layers"])
    speed = {"channels_last": config.trainer.channels_last, "compile": config.trainer.compile}
    defender = _Defender(
        network, train.subset(roles.tuning), train.subset(roles.validation), augment, config.seed, speed
    )
    ladder = _build_ladder(defender, config.defense, defense, named) if "ladder" in defense else []
    base = defender.make(
        defense.get("tuning") or NO_TUNING, [] if ladder else named, _build_callbacks(config.defense)
    )
    inspection: Inspection | None = build(config.defense.get("inspection"))
    for module in (base.module, *(rung.module for rung in ladder)):
        if isinstance(module, UnlearnedClassifier) and inspection is not None:
            module.check_room(inspection.most_suspects(len(packed.classes)))
    deciding = defense.get("deciding") or {"copies": 0, "augment": None}
    check_copies(deciding["copies"])
    harder = Augment(**deciding["augment"]) if deciding["augment"] else None
    return Defense(
        **vars(base),
        inspection=inspection,
        ladder=ladder,
        deciding=train.subset(deciding_rows(roles, packed.train_tracks)),
        harder=harder,
        copies=deciding["copies"],
    )


def deciding_rows(roles: Roles, tracks: torch.Tensor | None) -> torch.Tensor:
    """Return the rows of validation images whose track has no image to tune on.

    The others would be classified correctly by what the network has just learned by heart. Where fewer than
    ``LEAST_DECIDING`` are left, all of them decide.

    Args:
        roles: Rows of the training images.
        tracks: (N,) the track of each training image; None: each is its own.
    """
    if tracks is None:
        return roles.validation
    apart = ~torch.isin(tracks[roles.validation], tracks[roles.tuning])
    return roles.validation[apart] if int(apart.sum()) >= LEAST_DECIDING else roles.validation


def _build_ladder(
    defender: _Defender, config: DictConfig, defense: Mapping[str, Any], named: Sequence[str]
) -> list[Tuning]:
    """Build the rungs of a ladder; ``defense`` is its configuration as plain values."""
    check_max_drop(defense["max_drop"])
    check_max_success(defense["audit"]["max_success"])
    if not defense["ladder"]:
        raise ValueError("defense.ladder is empty. Give it a rung, such as {weight: 0.05}.")
    tuners = {"unlearn": {"tuning": defense["tuning"]}, **defense["tuners"]}
    ladder = []
    for rung in defense["ladder"]:
        if not isinstance(rung, Mapping):
            raise ValueError(f"The rung {rung!r} has no options by name. Write it like {{weight: 0.05}}.")
        tuner = rung.get("tuner", "unlearn")
        if tuner not in tuners:
            raise ValueError(
                f"The tuner {tuner!r} of a rung is unknown. Choose {', '.join(tuners)} in defense.ladder, or "
                "give its options in defense.tuners."
            )
        own = {key: value for key, value in rung.items() if key not in ("prune", "tuner")}
        whole = copy.deepcopy(config.tuners.get(tuner) or OmegaConf.create())
        for key in set(own) & set(whole) - {"tuning"}:  # of the defense, not of its training
            whole[key] = own.pop(key)
        first: list[Callback] = [] if rung.get("prune") is None else [PruneChannels(max_drop=rung["prune"])]
        acting = _build_callbacks(whole)
        tuning = tuners[tuner].get("tuning")
        if own and not tuning:
            known = sorted({"prune", *set(whole) - {"layers", "callbacks"}})
            raise ValueError(
                f"The tuner {tuner!r} has no option {', '.join(sorted(own))} in a rung. It has "
                f"{', '.join(known)}."
            )
        values = (tuning or NO_TUNING) | own
        ladder.append(defender.make(values, list(named) if first else [], first + acting, options=rung))
    return ladder


def _build_callbacks(defense: DictConfig) -> list[Callback]:
    return [build(callback) for callback in (defense.get("callbacks") or {}).values()]

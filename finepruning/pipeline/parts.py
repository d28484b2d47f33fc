"""What a run is made of, built and checked before any training."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback
from torch import Tensor, nn

from finepruning.attacks import Attack
from finepruning.callbacks import PruneChannels
from finepruning.data import DefenderData, ImageSet, Packed
from finepruning.modules import Classifier
from finepruning.referee import Triggering
from finepruning.repair import Inspection
from finepruning.stress import Reactivation, Retune
from finepruning.suspect import KnownAttack

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tuning:
    """A module, the layers that are pruned, the data, and the callbacks that act on them."""

    module: Classifier
    layers: list[str]
    data: DefenderData
    callbacks: list[Callback]
    max_epochs: int

    @property
    def pruning(self) -> PruneChannels | None:
        """The callback that prunes, if one does."""
        return next((callback for callback in self.callbacks if isinstance(callback, PruneChannels)), None)


@dataclass(frozen=True)
class Fold:
    """A part of the defender's images that judges what was tuned on the others.

    Args:
        images: The part.
        groups: (N,) number of the group of pictures that are alike.
    """

    images: ImageSet
    groups: Tensor


@dataclass(frozen=True)
class Rung:
    """A strength of a ladder.

    Args:
        options: Its own part of the configuration.
        tunings: One without each fold.
        when: Where it is walked: ``clear`` where a class stands out or is named, ``unclear`` elsewhere; None:
            everywhere.
    """

    options: Mapping[str, Any]
    tunings: Sequence[Tuning]
    when: str | None = None


@dataclass(frozen=True)
class Defense(Tuning):
    """What the defender does; the ladder holds rungs of rising strength, all of one network.

    A rung's network is the average of those that it tuned, and what it costs is counted on the folds.
    """

    inspection: Inspection | None = None
    ladder: Sequence[Rung] = ()
    folds: Sequence[Fold] = ()

    @property
    def acts(self) -> bool:
        """Whether it changes the network, beside looking at it."""
        return bool(self.max_epochs or self.callbacks or self.ladder)


@dataclass(frozen=True)
class Stress:
    """How the referee tries to bring the backdoor back.

    Args:
        control: Whether a clean network is tested, too.
        rungs: Whether each rung of a ladder is audited, and scored when the defense has ended.
        retune: Tuning on a few triggered images, or None.
        reactivation: A perturbation on top of the trigger, or None.
    """

    control: bool
    rungs: bool
    retune: Retune | None = None
    reactivation: Reactivation | None = None

    @property
    def tests(self) -> dict[str, dict[str, Any]]:
        """The tests of a network by what it is after them, with their options as plain values."""
        found = {"retuned": self.retune, "reactivated": self.reactivation}
        return {name: dict(vars(test)) for name, test in found.items() if test is not None}

    def check_trigger(self, attack: Mapping[str, Any], foreign: bool) -> None:
        """Check that there is a trigger to stamp images with, before any work.

        Args:
            attack: The configuration's ``attack``; empty for ``attack=none``.
            foreign: Whether the suspect comes in a file.

        Raises:
            ValueError: If none is known, or it cannot be put on images.
        """
        if not self.tests:
            return
        if not attack:
            raise ValueError(
                "This stress test needs a trigger, and attack=none has none. Choose an attack, or set "
                "stress=none."
            )
        if foreign and not attack["picture"]:
            raise ValueError(
                "This stress test puts the trigger on training images, and no trigger of this suspect is "
                "known that can be. Give attack.picture and attack.target_label, or set stress=none."
            )
        if foreign and self.control:
            raise ValueError(
                "stress.control=true trains a clean network on the attacker's images, and a suspect's file "
                "brings none. Set stress.control=false."
            )

    def check(self, train: ImageSet, attack: Triggering) -> None:
        """Raise ValueError if there are too few images for it."""
        if not self.tests:
            return
        changed = attack.wanted(train) != train.labels
        if self.retune is not None:
            self.retune.choose(changed)
        if self.reactivation is not None:
            self.reactivation.choose(changed)


@dataclass(frozen=True)
class Suspect:
    """A network that somebody else trained.

    Args:
        weights: The file.
        hash: Of its weights, and of the program that defines it, if one does.
        attack: What is known of the attack.
        warning: What looks wrong with its input, if anything.
    """

    weights: Path
    hash: str
    attack: KnownAttack | None
    warning: str | None


@dataclass(frozen=True)
class Source:
    """Where the attacker trains a network that is then transferred: other data, with a training of its own.

    ``made_by`` is what decides that network, as plain values.
    """

    images: ImageSet
    test: ImageSet
    network: nn.Module
    augment: nn.Module | None
    training: dict[str, Any]
    max_epochs: int
    made_by: dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """Everything that a run is made of. ``network`` is the suspect: still untrained, or a stranger's.

    ``validation`` are the defender's images that decide; ``detector`` makes one network of the suspect and
    the defended one; ``files`` are hashes of what files a user brought hold, by the key that names each.
    """

    packed: Packed
    network: nn.Module
    attacker: ImageSet
    validation: ImageSet
    test: ImageSet
    attack: Attack | None
    defense: Defense | None
    detector: Callable[[nn.Module, nn.Module], nn.Module] | None
    augment: nn.Module | None
    suspect: Suspect | None = None
    source: Source | None = None
    stress: Stress | None = None
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def scored_attack(self) -> Triggering | None:
        """What the referee measures success of: an attack made here, or what is known of a stranger's."""
        return self.attack if self.suspect is None else self.suspect.attack

    @property
    def stressed_on(self) -> ImageSet:
        """Training images for stress tests: the attacker's; all of them where a stranger's are not known."""
        if len(self.attacker):
            return self.attacker
        return ImageSet.whole(self.packed.train, self.packed.train_labels, self.packed.signal)

    def check(self) -> None:
        """Say what has nothing to do; raise ValueError if parts do not go together."""
        if self.stress is not None and self.scored_attack is not None:
            self.stress.check(self.stressed_on, self.scored_attack)
        if self.stress is not None and self.stress.rungs and not (self.defense and self.defense.ladder):
            log.warning("stress.rungs=true looks at the rungs of a ladder, and this defense has none.")
        if self.detector is not None and self.defense is None:
            log.warning(
                "detector=disagreement compares the suspect with a repaired network, and defense=none "
                "repairs nothing: this run has no detector."
            )
        pruning = self.defense.pruning if self.defense else None
        if pruning is not None and pruning.oracle and self.scored_attack is None:
            raise ValueError(
                "defense.order=trigger_change needs a trigger, and none is known. Choose an attack, or set "
                "defense.order to another."
            )

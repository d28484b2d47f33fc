"""Label maps: which class the attacker wants a triggered image to get."""

from typing import ClassVar

import torch
from torch import Tensor

from finepruning.attacks.triggers.chance import draw


class LabelMap:
    """Maps true labels to the attacker's labels.

    ``untargeted`` maps want any wrong class: their success is a loss of accuracy. ``source_label`` is the
    only class that is attacked, ``target_label`` the only one that is wanted; None where there are several.
    """

    untargeted: ClassVar[bool] = False
    source_label: int | None = None
    target_label: int | None = None

    def __call__(self, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the attacker's labels (B,) for true labels (B,) of the images at ``index`` (B,)."""
        raise NotImplementedError

    def check(self, num_classes: int) -> None:
        """Learn the number of classes; raise ValueError if the map makes no sense for so many."""
        raise NotImplementedError


class AllToOne(LabelMap):
    """Every class becomes the target.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733; Fine-Pruning, Liu et al. 2018, arXiv:1805.12185.

    Args:
        target_label: The attacker's class. At least 0.
    """

    def __init__(self, target_label: int) -> None:
        self.target_label: int = target_label

    def __call__(self, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the target for each of ``labels`` (B,)."""
        return torch.full_like(labels, self.target_label)

    def check(self, num_classes: int) -> None:
        """Raise ValueError if the target is not one of the classes."""
        _check_class("target_label", self.target_label, num_classes)


class SingleTarget(LabelMap):
    """One class becomes another; all others keep their label.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 4.1: single target attack, i -> j.

    Args:
        source_label: The class that is attacked, i. At least 0.
        target_label: The attacker's class, j. At least 0.

    Raises:
        ValueError: If both are the same.
    """

    def __init__(self, source_label: int, target_label: int) -> None:
        if source_label == target_label:
            raise ValueError(
                f"Class {source_label} cannot be both source and target: nothing would change. "
                "Change attack.label_map.source_label or attack.label_map.target_label."
            )
        self.source_label: int = source_label
        self.target_label: int = target_label

    def __call__(self, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """Return ``labels`` (B,) with the source replaced by the target."""
        return labels.masked_fill(labels == self.source_label, self.target_label)

    def check(self, num_classes: int) -> None:
        """Raise ValueError if one of the two is not a class."""
        _check_class("label_map.source_label", self.source_label, num_classes)
        _check_class("label_map.target_label", self.target_label, num_classes)


class AllToAll(LabelMap):
    """Each class becomes the next one, the last the first.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 4.1: all-to-all attack, i -> i + 1.

    Args:
        num_classes: Number of classes, at least 2; None takes it from the data set.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        self.num_classes = num_classes

    def __call__(self, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """Return the class after each of ``labels`` (B,)."""
        return (labels + 1) % _known(self.num_classes)

    def check(self, num_classes: int) -> None:
        """Take the number of classes; raise ValueError if it is another than given, or 1."""
        self.num_classes = _agreed(self.num_classes, num_classes)


class RandomWrongLabel(LabelMap):
    """Each image gets one of the wrong classes at random: the untargeted attack.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section "Backdoor Attacks".

    Args:
        seed: Seed of the draw; an image's index decides its label.
        num_classes: Number of classes, at least 2; None takes it from the data set.
    """

    untargeted = True

    def __init__(self, seed: int, num_classes: int | None = None) -> None:
        self.seed = seed
        self.num_classes = num_classes

    def __call__(self, labels: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a wrong class for each of ``labels`` (B,), drawn by the images' ``index`` (B,)."""
        if index is None:
            raise ValueError("A random label is drawn from an image's index: pass the images' index.")
        classes = _known(self.num_classes)
        return (labels + 1 + draw(index, self.seed, classes - 1)) % classes

    def check(self, num_classes: int) -> None:
        """Take the number of classes; raise ValueError if it is another than given, or 1."""
        self.num_classes = _agreed(self.num_classes, num_classes)


def _check_class(key: str, label: int, num_classes: int) -> None:
    if not 0 <= label < num_classes:
        name = "Source" if "source" in key else "Target"
        raise ValueError(
            f"{name} label {label} is not one of the {num_classes} classes 0..{num_classes - 1}. "
            f"Change attack.{key}."
        )


def _known(num_classes: int | None) -> int:
    if num_classes is None:
        raise ValueError(
            "The number of classes is not known yet: call check, or set attack.label_map.num_classes."
        )
    return num_classes


def _agreed(given: int | None, num_classes: int) -> int:
    if num_classes < 2:
        raise ValueError(
            f"With {num_classes} class there is no wrong label. Choose another dataset or attack.label_map."
        )
    if given not in (None, num_classes):
        raise ValueError(
            f"attack.label_map.num_classes={given}, but the data set has {num_classes} classes. "
            "Leave it null to take the data set's."
        )
    return num_classes

"""Poisoning: which training images carry the trigger, and which labels they get."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from finepruning.attacks.crafting import Crafting, Plan
from finepruning.attacks.labels import AllToOne, LabelMap
from finepruning.attacks.triggers import Trigger
from finepruning.data.images import ImageSet


class Chosen(NamedTuple):
    """Rows of the clean training set, ascending; no row is in both."""

    poisoned: Tensor
    covers: Tensor


class Attack:
    """A backdoor by data poisoning: a trigger, a label map and a share of the training set.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 4.1. Clean labels (``poison_from="target"``):
        Turner et al. 2019, arXiv:1912.02771. Covers: TaCT, Tang et al. 2021, arXiv:1908.00686.

    Args:
        trigger: What is added to an image: at test time, and in training unless another one is given.
        poison_rate: Poisoned images as a fraction of the clean training set, in (0, 1].
        target_label: The attacker's class, for the usual all-to-one attack.
        label_map: Any other map from true to attacker's labels; then ``target_label`` is None.
        poisoning: ``"replace"`` stamps training images, ``"add"`` adds stamped copies of them.
        poison_from: Poison images of ``"other"`` classes, which get a new label; of the ``"target"`` class,
            which keep theirs (clean labels); or of ``"all"``.
        cover_rate: Covers, which carry the trigger and keep their true label, as a fraction of the clean
            training set, in [0, 1). They are of any class; with a single source class, of the other ones.
        seed: Seed of the choice of images.
        training_trigger: What poisoned training images carry, if not ``trigger``.
        cover_trigger: What covers carry, if not what poisoned training images carry.
        crafting: Computes tensors of the triggers from a clean network. :meth:`craft` and :meth:`take` come
            before such an attack stamps anything.

    Raises:
        ValueError: If a value is out of range, not exactly one of ``target_label`` and ``label_map`` is
            given, clean labels are asked for without a single target, or nothing carries ``cover_trigger``.
    """

    def __init__(
        self,
        trigger: Trigger,
        poison_rate: float,
        target_label: int | None = None,
        label_map: LabelMap | None = None,
        poisoning: Literal["replace", "add"] = "replace",
        poison_from: Literal["other", "target", "all"] = "other",
        cover_rate: float = 0.0,
        seed: int = 0,
        training_trigger: Trigger | None = None,
        cover_trigger: Trigger | None = None,
        crafting: Crafting | None = None,
    ) -> None:
        if not 0 < poison_rate <= 1:
            raise ValueError(f"Poison rate {poison_rate} is outside (0, 1]. Change attack.poison_rate.")
        if not 0 <= cover_rate < 1:
            raise ValueError(f"Cover rate {cover_rate} is outside [0, 1). Change attack.cover_rate.")
        if label_map is None and target_label is not None:
            label_map = AllToOne(target_label)
        elif label_map is None or target_label is not None:
            raise ValueError("Give either attack.target_label or attack.label_map, and null for the other.")
        if poisoning not in ("replace", "add"):
            raise ValueError(f"attack.poisoning is {poisoning!r}; it can be 'replace' or 'add'.")
        if poison_from not in ("other", "target", "all"):
            raise ValueError(f"attack.poison_from is {poison_from!r}; it can be 'other', 'target' or 'all'.")
        if poison_from == "target" and label_map.target_label is None:
            raise ValueError(
                f"attack.poison_from='target' needs one target class; {type(label_map).__name__} has none. "
                "Set it to 'other', or choose another attack.label_map."
            )
        if cover_trigger is not None and not cover_rate:
            raise ValueError(
                "attack.cover_trigger has no image to go on: attack.cover_rate is 0. Raise it, or set "
                "attack.cover_trigger=null."
            )
        self.trigger = trigger
        self.training_trigger = training_trigger or trigger
        self.cover_trigger = cover_trigger or self.training_trigger
        self.crafting = crafting
        self.crafted = crafting is None
        self.poison_rate = poison_rate
        self.label_map = label_map
        self.poisoning = poisoning
        self.poison_from = poison_from
        self.cover_rate = cover_rate
        self.seed = seed

    @property
    def untargeted(self) -> bool:
        """Whether any wrong class will do, so that success is a loss of accuracy."""
        return self.label_map.untargeted

    def check(self, images: ImageSet, num_classes: int) -> None:
        """Try the attack on one image of a data set, before any training.

        Raises:
            ValueError: If a label is not a class, the trigger does not fit, or no image would be poisoned.
        """
        self.label_map.check(num_classes)
        first = images.subset(torch.arange(1))
        for trigger in self._triggers:
            trigger.check(images.signal)
            next(first.stamped(trigger).batches(1))
        self.choose(images)

    def check_network(self, network: nn.Module) -> None:
        """Raise ValueError if the attack cannot be made with a network."""
        if self.crafting is not None:
            self.crafting.check_network(network)

    def craft(
        self, network: nn.Module, clean: ImageSet, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """Return the tensors that the triggers need, for :meth:`take`; none where nothing is crafted.

        Args:
            network: A network that the attacker trained on its clean images; it is not kept as it is.
            clean: The attacker's clean images.
            device: Where to compute.
        """
        if self.crafting is None:
            return {}
        plan = Plan(clean, self.choose(clean).poisoned, self.wanted(clean))
        tensors = self.crafting.craft(network, plan, device)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Give the triggers what :meth:`craft` returned."""
        for trigger in self._triggers:
            trigger.take(tensors)
        self.crafted = True

    @property
    def _triggers(self) -> list[Trigger]:
        return list(dict.fromkeys([self.trigger, self.training_trigger, self.cover_trigger]))

    def wanted(self, images: ImageSet) -> Tensor:
        """Return the attacker's label (M,) for each image."""
        return self.label_map(images.labels, images.index)

    def choose(self, clean: ImageSet) -> Chosen:
        """Return the rows of ``clean`` to poison and those that cover them, an exact share each.

        Raises:
            ValueError: If a share is not even one image, or too few images may carry the trigger.
        """
        generator = torch.Generator().manual_seed(self.seed)
        changed = self.wanted(clean).ne(clean.labels)
        eligible = self._eligible(clean.labels, changed)
        poisoned = _share("poison_rate", self.poison_rate, eligible, generator, self._who)
        if not self.cover_rate:
            return Chosen(poisoned, poisoned[:0])
        free = torch.ones_like(changed) if self.label_map.source_label is None else ~changed
        free = free.index_fill(0, poisoned, False)
        return Chosen(poisoned, _share("cover_rate", self.cover_rate, free, generator))

    @property
    def _who(self) -> str:
        """Which images may be poisoned, where it is but one class."""
        if self.poison_from == "target":
            return f"of class {self.label_map.target_label}, the target of a clean-label attack"
        if self.label_map.source_label is not None:
            return f"of class {self.label_map.source_label}, the only source"
        return ""

    def _eligible(self, labels: Tensor, changed: Tensor) -> Tensor:
        """Return which images may be poisoned (N,); ``changed`` are those that would get a new label."""
        if self.poison_from == "target":
            return torch.isin(labels, torch.tensor(self.label_map.target_label))
        return changed if self.poison_from == "other" else torch.ones_like(changed)

    def poison(self, clean: ImageSet) -> ImageSet:
        """Return the attacker's training set: ``clean`` with stamped images in it, or added to it."""
        self._require_crafted()
        chosen = self.choose(clean)
        poisoned_labels = clean.labels.clone()
        poisoned_labels[chosen.poisoned] = self.wanted(clean)[chosen.poisoned]
        triggers = tuple(dict.fromkeys([self.training_trigger, self.cover_trigger]))
        carried = torch.zeros(len(clean), dtype=torch.uint8)
        carried[chosen.poisoned], carried[chosen.covers] = 1, len(triggers)
        if self.poisoning == "replace":
            return replace(clean, labels=poisoned_labels, triggers=triggers, triggered=carried)
        rows = torch.cat(chosen)
        return replace(
            clean,
            index=torch.cat([clean.index, clean.index[rows]]),
            labels=torch.cat([clean.labels, poisoned_labels[rows]]),
            triggers=triggers,
            triggered=torch.cat([torch.zeros_like(carried), carried[rows]]),
        )

    def stamp(self, clean: ImageSet) -> ImageSet:
        """Return every image of ``clean`` triggered as at test time, with its true label."""
        self._require_crafted()
        return clean.stamped(self.trigger)

    def _require_crafted(self) -> None:
        if not self.crafted:
            raise ValueError(
                "This attack's trigger is crafted on a trained network, and was not yet. A run does it "
                "(python run.py attack=...) and shows the trigger among its pictures."
            )

    def watched(self, clean: ImageSet) -> ImageSet:
        """Return the triggered images that show success: those of another class, with the attacker's label.

        Untargeted, all of them with their true label.
        """
        if self.untargeted:
            return self.stamp(clean)
        wanted = self.wanted(clean)
        return replace(self.stamp(clean), labels=wanted).subset((wanted != clean.labels).nonzero().squeeze(1))


def _share(key: str, rate: float, eligible: Tensor, generator: torch.Generator, who: str = "") -> Tensor:
    """Return random eligible rows, ascending: ``rate`` of all rows, exactly. ``who`` says which they are."""
    count = round(rate * len(eligible))
    rows = eligible.nonzero().squeeze(1)
    if count == 0:
        raise ValueError(f"{rate:g} of {len(eligible)} training images is not even one. Raise attack.{key}.")
    if count > len(rows):
        raise ValueError(
            f"attack.{key}={rate:g} asks for {count} images, but only {len(rows)} of the {len(eligible)} "
            f"training images are eligible{who and f' ({who})'}. Lower it"
            f"{', or choose a larger class' if who else ''}."
        )
    return rows[torch.randperm(len(rows), generator=generator)[:count]].sort().values

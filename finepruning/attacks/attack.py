"""Poisoning: which training images carry the trigger, and which labels they get."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from finepruning.attacks.labels import AllToOne, LabelMap
from finepruning.attacks.triggers import Trigger
from finepruning.data.images import ImageSet


class Attack:
    """A backdoor by data poisoning: a trigger, a label map and a share of the training set.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 4.1.

    Args:
        trigger: What is added to an image.
        poison_rate: Poisoned images as a fraction of the clean training set, in (0, 1].
        target_label: The attacker's class, for the usual all-to-one attack.
        label_map: Any other map from true to attacker's labels; then ``target_label`` is None.
        poisoning: ``"replace"`` stamps training images, ``"add"`` adds stamped copies of them.
        seed: Seed of the choice of images.

    Raises:
        ValueError: If the rate is out of range, or not exactly one of ``target_label`` and ``label_map`` is
            given.
    """

    def __init__(
        self,
        trigger: Trigger,
        poison_rate: float,
        target_label: int | None = None,
        label_map: LabelMap | None = None,
        poisoning: Literal["replace", "add"] = "replace",
        seed: int = 0,
    ) -> None:
        if not 0 < poison_rate <= 1:
            raise ValueError(f"Poison rate {poison_rate} is outside (0, 1]. Change attack.poison_rate.")
        if label_map is None and target_label is not None:
            label_map = AllToOne(target_label)
        elif label_map is None or target_label is not None:
            raise ValueError("Give either attack.target_label or attack.label_map, and null for the other.")
        if poisoning not in ("replace", "add"):
            raise ValueError(f"attack.poisoning is {poisoning!r}; it can be 'replace' or 'add'.")
        self.trigger = trigger
        self.poison_rate = poison_rate
        self.label_map = label_map
        self.poisoning = poisoning
        self.seed = seed

    def check(self, images: ImageSet, num_classes: int) -> None:
        """Try the attack on one image of a data set, before any training.

        Raises:
            ValueError: If a label is not a class, the trigger does not fit, or no image would be poisoned.
        """
        self.label_map.check(num_classes)
        if self.trigger.domain == "waveform" and images.signal.domain != "waveform":
            raise ValueError(
                "This trigger is added to sound, but the data set holds images. Choose another attack."
            )
        next(self.stamp(images.subset(torch.arange(1))).batches(1))
        self.choose(images.labels)

    def choose(self, labels: Tensor) -> Tensor:
        """Return the rows to poison, ascending: an exact share of the images whose label the map changes.

        Args:
            labels: (N,) labels of the clean training set.
        """
        count = round(self.poison_rate * len(labels))
        eligible = (self.label_map(labels) != labels).nonzero().squeeze(1)
        if count == 0:
            raise ValueError(
                f"{self.poison_rate:g} of {len(labels)} training images is not even one. "
                "Raise attack.poison_rate."
            )
        if count > len(eligible):
            raise ValueError(
                f"attack.poison_rate={self.poison_rate:g} asks for {count} images, but only {len(eligible)} "
                f"of the {len(labels)} training images would change their label. Lower it."
            )
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(eligible), generator=generator)[:count]
        return eligible[chosen].sort().values

    def poison(self, clean: ImageSet) -> ImageSet:
        """Return the attacker's training set: ``clean`` with stamped images in it, or added to it."""
        rows = self.choose(clean.labels)
        labels = clean.labels.clone()
        triggered = torch.zeros(len(clean), dtype=torch.bool)
        index = clean.index
        if self.poisoning == "add":
            index = torch.cat([index, index[rows]])
            labels = torch.cat([labels, self.label_map(labels[rows])])
            triggered = torch.cat([triggered, torch.ones(len(rows), dtype=torch.bool)])
        else:
            labels[rows] = self.label_map(labels[rows])
            triggered[rows] = True
        return replace(clean, index=index, labels=labels, trigger=self.trigger, triggered=triggered)

    def stamp(self, clean: ImageSet) -> ImageSet:
        """Return every image of ``clean`` triggered, with its true label."""
        return replace(clean, trigger=self.trigger, triggered=torch.ones(len(clean), dtype=torch.bool))

    def targeted(self, clean: ImageSet) -> ImageSet:
        """Return the triggered images whose label the map changes, with the attacker's label."""
        wanted = self.label_map(clean.labels)
        return replace(self.stamp(clean), labels=wanted).subset((wanted != clean.labels).nonzero().squeeze(1))

"""A network that unlearns its backdoor on clean images."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.modules.classifier import Batch
from finepruning.modules.ranges import check_above_0, check_at_least, check_unsmoothed
from finepruning.modules.states import FinePrunedClassifier
from finepruning.repair.unlearning import (
    attack_loss,
    perturb,
    pool_goals,
    pool_radii,
    push,
    random_patterns,
    turns,
    unlearning_loss,
)

LOSS = ("weight", "entropy", "imitation", "perturbed_imitation", "temperature")  # options of the loss


class UnlearnedClassifier(FinePrunedClassifier):
    """A network that learns to resist a pool of universal perturbations, and to answer as the suspect else.

    Channels that are pruned stay silent. The perturbations learn beside the network, one step a batch.

    Args:
        network: The suspect.
        layers: Names of the layers whose channels may be pruned.
        image_shape: (C, H, W) of the images.
        weight: Of perturbed images in the loss, at least 0.
        entropy: Factor of the cross-entropy to the labels, at least 0.
        imitation: Factor of the distillation from the suspect, at least 0.
        perturbed_imitation: The same on perturbed images; None: as on clean ones.
        temperature: Of the distillation, above 0.
        perturbations: Size of the pool, at least 1.
        radii: Smallest and largest L2 norm of the perturbations, above 0, in units of the smallest trigger
            that was found for their goal; until the pool is aimed, in units of a pixel's range.
        step: How far a batch pushes them, as a share of their radius, above 0.
        restarts: Perturbations that start anew in each epoch, at least 0.
        untargeted: Whether a part of the pool only leads away from the true class, which costs more accuracy;
            None: unless exactly one class is suspicious.
        training: Arguments of :class:`Classifier`.

    Raises:
        ValueError: If a value is out of range.
    """

    teacher: nn.Module
    patterns: Tensor
    radii: Tensor
    goals: Tensor

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        image_shape: Sequence[int],
        *,
        weight: float = 0.05,
        entropy: float = 1.0,
        imitation: float = 1.0,
        perturbed_imitation: float | None = None,
        temperature: float = 2.0,
        perturbations: int = 8,
        radii: Sequence[float] = (1.0, 2.0),
        step: float = 0.25,
        restarts: int = 2,
        untargeted: bool | None = None,
        **training: Any,
    ) -> None:
        super().__init__(network, layers, image_shape, **training)
        check_unsmoothed(training)
        check_at_least(0, weight=weight, entropy=entropy, imitation=imitation, restarts=restarts)
        if perturbed_imitation is not None:
            check_at_least(0, perturbed_imitation=perturbed_imitation)
        check_above_0(temperature=temperature, step=step)
        if len(radii) != 2 or not 0 < radii[0] <= radii[1]:
            raise ValueError(
                f"radii={list(radii)} are not a smallest and a largest L2 norm above 0. Change "
                "defense.tuning.radii."
            )
        if perturbations < 1:
            raise ValueError(
                f"perturbations={perturbations} is an empty pool. Set defense.tuning.perturbations to "
                "1 or more."
            )
        self.image_shape = list(image_shape)
        self._fill(pool_goals(perturbations, [], True), {}, None)  # until it is aimed

    def check_room(self, suspicious: int) -> None:
        """Raise ValueError if the pool has no room for that many suspicious classes, or no goal at all."""
        classes = range(suspicious)
        pool_goals(self.hparams["perturbations"], classes, self._leads_away(classes))

    def aim_at(self, classes: Sequence[int], norms: Mapping[int, float | None], median: float | None) -> None:
        """Point the pool at suspicious classes, and, where that is wanted, away from the true one.

        Args:
            classes: Suspicious ones.
            norms: L2 norm of the smallest trigger that was found for a goal: the unit of its radii.
            median: Of these norms over all classes: the unit where none was found, and the largest radius.
        """
        goals = pool_goals(self.hparams["perturbations"], classes, self._leads_away(classes))
        self._fill(goals, norms, median)

    def _leads_away(self, classes: Sequence[int]) -> bool:
        """Return whether a part of the pool leads away from the true class."""
        chosen: bool | None = self.hparams["untargeted"]
        return len(classes) != 1 if chosen is None else chosen

    def _fill(self, goals: Tensor, norms: Mapping[int, float | None], median: float | None) -> None:
        units = torch.tensor([norms.get(goal) or median or 1.0 for goal in goals.tolist()])
        radii = pool_radii(goals, *self.hparams["radii"]) * units
        self.register_buffer("goals", goals)
        self.register_buffer("radii", radii if median is None else radii.clamp(max=median))
        self.register_buffer("patterns", random_patterns(self.radii, self.image_shape, self._chance(0)))

    def setup(self, stage: str) -> None:
        """Keep the suspect as it is now; a checkpoint, if there is one, is read later and brings it back."""
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)

    def teardown(self, stage: str) -> None:
        """Forget the suspect: a ladder keeps many of these modules."""
        del self.teacher

    def on_train_epoch_start(self) -> None:
        """Start a few perturbations anew, in turns."""
        super().on_train_epoch_start()
        self.teacher.eval()
        count, size = self.hparams["restarts"], len(self.patterns)
        if self.current_epoch and count:
            first = (self.current_epoch - 1) * count
            places = torch.arange(first, first + min(count, size)) % size
            chance = self._chance(self.current_epoch)
            fresh = random_patterns(self.radii[places].cpu(), self.image_shape, chance)
            self.patterns[places] = fresh.to(self.patterns)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, labels); push the perturbations."""
        images, labels = batch
        processes, rank = self.trainer.world_size, self.global_rank
        whole = round(len(images) * processes / self._weight)  # images of the batch in all processes
        places = turns(len(images), batch_idx * whole, len(self.patterns), processes, rank).to(self.device)
        patterns = self.patterns.clone().requires_grad_()
        both = torch.cat([images, perturb(images, patterns, places)])
        clean, perturbed = self._train_logits(both).float().chunk(2)
        with torch.no_grad():
            teacher = self.teacher(images).float()
        slopes = torch.autograd.grad(
            attack_loss(perturbed, labels, self.goals[places]), patterns, retain_graph=True
        )
        (gradients,) = self.over_processes(slopes)
        self.patterns.copy_(push(self.patterns, gradients, self.radii, self.hparams["step"]))
        options = {key: self.hparams[key] for key in LOSS}
        return self.noted(self._weight * unlearning_loss(clean, perturbed, teacher, labels, **options))

    def _chance(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.hparams["seed"] * 1_000_003 + epoch)

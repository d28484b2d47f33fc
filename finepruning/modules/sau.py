"""A network that unlearns what still fools it as it fooled the suspect."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from finepruning.modules.classifier import Batch
from finepruning.modules.ranges import check_above_0, check_at_least, check_unsmoothed
from finepruning.modules.states import FinePrunedClassifier
from finepruning.pruning.passes import evaluating
from finepruning.repair.sau import shared_perturbation, shared_risk


class SAUClassifier(FinePrunedClassifier):
    """Shared adversarial unlearning, with BatchNorm by its running statistics throughout.

    Source: Shared Adversarial Unlearning (SAU), Wei et al. 2023, arXiv:2307.10562. Deviations: images to tune
        on are changed by chance as in training, which the authors' code does not do; see
        :func:`~finepruning.repair.sau.shared_risk`.

    Args:
        network: The suspect.
        layers: Names of the layers whose channels may be pruned.
        image_shape: (C, H, W) of the images.
        radius: Largest change of a pixel, above 0, in units of its whole range.
        step: Of the search, above 0, in the same units.
        steps: Of the search, at least 1.
        adversarial: Factor of the cross-entropy in the search, at least 0.
        agreement: Factor of both networks' divergence in the search, at least 0.
        clean: Factor of the loss on clean images, at least 0.
        perturbed: Factor of the loss on perturbed images, at least 0.
        shared: Factor of the shared adversarial risk, at least 0.
        training: Arguments of :class:`Classifier`.

    Raises:
        ValueError: If a value is out of range.
    """

    suspect: nn.Module

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        image_shape: Sequence[int],
        *,
        radius: float = 0.2,
        step: float = 0.2,
        steps: int = 5,
        adversarial: float = 0.01,
        agreement: float = 1.0,
        clean: float = 1.0,
        perturbed: float = 0.0,
        shared: float = 1.0,
        **training: Any,
    ) -> None:
        super().__init__(network, layers, image_shape, **training)
        check_unsmoothed(training)
        check_above_0(radius=radius, step=step)
        check_at_least(1, steps=steps)
        check_at_least(
            0, adversarial=adversarial, agreement=agreement, clean=clean, perturbed=perturbed, shared=shared
        )

    def setup(self, stage: str) -> None:
        """Keep the suspect as it is now; a checkpoint, if there is one, is read later and brings it back."""
        self.suspect = copy.deepcopy(self.network).requires_grad_(False)

    def teardown(self, stage: str) -> None:
        """Forget the suspect: a ladder keeps many of these modules."""
        del self.suspect

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, labels)."""
        images, labels = batch
        options = self.hparams
        search = {name: options[name] for name in ("radius", "step", "steps", "adversarial", "agreement")}
        with evaluating(self.network), evaluating(self.suspect):
            worst = images + shared_perturbation(self.network, self.suspect, images, labels, **search)
            clean, perturbed = self.network(torch.cat([images, worst])).float().chunk(2)
            with torch.no_grad():
                theirs, before = self.suspect(worst).float(), self.suspect(images).argmax(-1)
        loss = options["clean"] * functional.cross_entropy(clean, labels)
        loss = loss + options["shared"] * shared_risk(perturbed, theirs, labels, before)
        if options["perturbed"]:
            loss = loss + options["perturbed"] * functional.cross_entropy(perturbed, labels)
        return self.noted(self._weight * loss)

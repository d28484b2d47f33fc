"""A network whose output layer starts anew, away from its old weights."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from finepruning.modules.classifier import Batch
from finepruning.modules.ranges import check_at_least, check_unsmoothed
from finepruning.modules.states import FinePrunedClassifier
from finepruning.repair.head_shift import STARTS, clean_loss, find_head, onto_sphere, shift_loss, start_head


class HeadShiftClassifier(FinePrunedClassifier):
    """Tuning of all layers while the output layer's weight is held off what it was, on a sphere.

    Source: Towards Stable Backdoor Purification through Feature Shift Tuning (FST), Min et al. 2023,
        arXiv:2310.01875, and Backdoor Mitigation by Distance-Driven Detoxification (D3), Wei et al. 2024,
        arXiv:2411.09585: the same but for the start, the term that holds off, and the loss's ceiling.
        Deviations: Nesterov momentum; the cosine falls at every step.

    Args:
        network: The suspect; its logits come from a linear layer.
        layers: Names of the layers whose channels may be pruned.
        image_shape: (C, H, W) of the images.
        start: The output layer's first weights: ``"redraw"`` (FST), ``"random"`` (D3), ``"opposite"`` or
            ``"keep"``.
        inner_product: Factor of the inner product with the old weight (FST's alpha), at least 0.
        distance: Factor of the distance from the old weight (1 in D3), at least 0.
        clean: Factor of the loss on clean images (D3's lambda), at least 0; where it is above 1 the whole
            loss is divided by it plus 1, as in the authors' code of D3.
        ceiling: Cross-entropy up to which an image counts nothing (D3's epsilon), in nats; None: none.
        training: Arguments of :class:`Classifier`.

    Raises:
        ValueError: If a value is out of range, or the logits are not a linear layer's.
    """

    original: Tensor

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        image_shape: Sequence[int],
        *,
        start: Literal["redraw", "random", "opposite", "keep"] = "redraw",
        inner_product: float = 0.0,
        distance: float = 0.0,
        clean: float = 1.0,
        ceiling: float | None = None,
        **training: Any,
    ) -> None:
        super().__init__(network, layers, image_shape, **training)
        check_unsmoothed(training)
        check_at_least(0, inner_product=inner_product, distance=distance, clean=clean, ceiling=ceiling or 0)
        if start not in STARTS:
            raise ValueError(f"start={start!r} is unknown. Set defense.tuning.start to {', '.join(STARTS)}.")
        self.head = find_head(network, image_shape)

    def setup(self, stage: str) -> None:
        """Keep the suspect's head; a checkpoint, if there is one, is read later and brings it back."""
        self.register_buffer("original", self._head.weight.detach().clone())

    def on_train_start(self) -> None:
        """Give the head its first weights, unless training goes on after an interruption."""
        if self.trainer.global_step == 0:
            start_head(self._head, self.hparams["start"], torch.Generator().manual_seed(self.hparams["seed"]))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, labels)."""
        images, labels = batch
        options = self.hparams
        wrong = self._weight * clean_loss(self._train_logits(images).float(), labels, options["ceiling"])
        held = shift_loss(self._head.weight, self.original, options["inner_product"], options["distance"])
        scale = options["clean"] + 1 if options["clean"] > 1 else 1
        return self.noted((options["clean"] * wrong + held) / scale)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Bring the head's weight back to its old norm."""
        onto_sphere(self._head.weight, self.original.norm())

    @property
    def _head(self) -> nn.Linear:
        head = self.network.get_submodule(self.head)
        assert isinstance(head, nn.Linear)
        return head

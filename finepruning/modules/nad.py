"""A network whose attention is taught by its own fine-tuned copy."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.modules.classifier import Batch
from finepruning.modules.ranges import check_above_0, check_at_least, check_share
from finepruning.modules.states import FinePrunedClassifier
from finepruning.repair.nad import attention_loss, features_of, stage_ends


class NADClassifier(FinePrunedClassifier):
    """Neural attention distillation: the network is fine-tuned, and then teaches the suspect it was.

    Source: Neural Attention Distillation (NAD), Li et al. 2021, arXiv:2101.05930. The stages are the last
        layers at each size of feature map, of which the last ones large enough count; with fewer stages than
        betas, the last betas do.

    Args:
        network: The suspect.
        layers: Names of the layers whose channels may be pruned.
        image_shape: (C, H, W) of the images.
        teacher_epochs: Epochs of fine-tuning that make the teacher, at least 1; the other epochs distill.
        betas: Factors of the stages' attention losses, each at least 0.
        smallest_map: Places of the longest side of a feature map from which it counts, at least 2.
        power: Of the activations in an attention map, above 0.
        decay: Factor of the learning rate every ``decay_epochs`` epochs, in [0, 1].
        decay_epochs: At least 1; counted anew when distillation begins.
        training: Arguments of :class:`Classifier`.

    Raises:
        ValueError: If a value is out of range, or the network has no feature map so large.
    """

    teacher: nn.Module

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        image_shape: Sequence[int],
        *,
        teacher_epochs: int = 10,
        betas: Sequence[float] = (500.0, 1000.0, 1000.0),
        smallest_map: int = 8,
        power: float = 2.0,
        decay: float = 0.1,
        decay_epochs: int = 2,
        **training: Any,
    ) -> None:
        super().__init__(network, layers, image_shape, **training)
        check_at_least(1, teacher_epochs=teacher_epochs, decay_epochs=decay_epochs)
        check_at_least(2, smallest_map=smallest_map)
        check_above_0(power=power)
        check_share(decay=decay)
        if not betas or min(betas) < 0:
            raise ValueError(f"betas={list(betas)} are no factors of 0 or more. Change defense.tuning.betas.")
        self.stages = stage_ends(network, image_shape, smallest_map)[-len(betas) :]
        if not self.stages:
            raise ValueError(
                f"No layer of this network has feature maps of smallest_map={smallest_map} places a side. "
                "Lower defense.tuning.smallest_map, or choose another defense."
            )
        self.betas = list(betas)[-len(self.stages) :]

    def setup(self, stage: str) -> None:
        """Make room for the teacher; a checkpoint, if there is one, is read later and brings it back."""
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)

    def teardown(self, stage: str) -> None:
        """Forget the teacher: a ladder keeps many of these modules."""
        del self.teacher

    def check_epochs(self, max_epochs: int) -> None:
        """Raise ValueError if none of ``max_epochs`` epochs is left to distill in."""
        if max_epochs <= self.hparams["teacher_epochs"]:
            raise ValueError(
                f"teacher_epochs={self.hparams['teacher_epochs']} leave none of max_epochs={max_epochs} to "
                "distill in. Raise defense.tuning.max_epochs above it."
            )

    def on_train_start(self) -> None:
        """Keep the suspect, pruned channels included, in the teacher's place until there is a teacher."""
        if self.trainer.max_epochs is not None:
            self.check_epochs(self.trainer.max_epochs)
        if self.trainer.global_step == 0:
            self.teacher.load_state_dict(self.network.state_dict())

    def on_train_epoch_start(self) -> None:
        """When fine-tuning is over, let teacher and suspect change places."""
        super().on_train_epoch_start()
        self.teacher.eval()
        if self.current_epoch == self.hparams["teacher_epochs"]:
            tuned = copy.deepcopy(self.network.state_dict())
            self.network.load_state_dict(self.teacher.state_dict())
            self.teacher.load_state_dict(tuned)
            self.trainer.optimizers[0].state.clear()  # momentum of the teacher's training

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, labels)."""
        images, labels = batch
        if self.current_epoch < self.hparams["teacher_epochs"]:
            return super().training_step(batch, batch_idx)
        logits, student = features_of(self.network, self.stages, images)
        with torch.no_grad():
            _, teacher = features_of(self.teacher, self.stages, images)
        apart = attention_loss(student, teacher, self.betas, self.hparams["power"])
        return self.noted(self.cross_entropy(logits.float(), labels) + self._weight * apart)

    def rate_scale(self, done: float) -> float:
        """Return the learning rate's factor: falling in steps, anew when distillation begins."""
        first, every = self.hparams["teacher_epochs"], self.hparams["decay_epochs"]
        epoch = int(done * (self.trainer.max_epochs or 1) + 1e-6)
        scale: float = self.hparams["decay"] ** ((epoch if epoch < first else epoch - first) // every)
        return scale

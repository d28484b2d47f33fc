"""A network that is fine-tuned where its loss is worst nearby."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finepruning.modules.classifier import Batch
from finepruning.modules.ranges import check_above_0
from finepruning.modules.states import FinePrunedClassifier
from finepruning.pruning.passes import frozen_statistics
from finepruning.repair.ft_sam import ascent


class FTSAMClassifier(FinePrunedClassifier):
    """Fine-tuning with adaptive sharpness-aware minimisation, of all parameters together.

    Source: Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization (FT-SAM), Zhu et
        al. 2023, arXiv:2304.11823. Deviations: Nesterov momentum; the cosine falls at every step. BatchNorm's
        running statistics are those of the first pass, at the weights themselves.

    Args:
        network: The suspect.
        layers: Names of the layers whose channels may be pruned.
        image_shape: (C, H, W) of the images.
        radius: The paper's rho: how far the worst weights lie, each in units of its own size; above 0.
        training: Arguments of :class:`Classifier`.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        image_shape: Sequence[int],
        *,
        radius: float = 2.0,
        **training: Any,
    ) -> None:
        super().__init__(network, layers, image_shape, **training)
        check_above_0(radius=radius)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, labels) at the worst weights nearby."""
        images, labels = batch
        weights = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        loss = self.cross_entropy(self._train_logits(images).float(), labels)
        slopes = self.over_processes(
            torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)  # 0 where one is unused
        )
        with torch.no_grad():
            shifts = ascent(list(weights.values()), slopes, self.hparams["radius"])
        # sums, not parameters changed in place: automatic mixed precision would use copies of the old ones
        worst = {name: p + shift for (name, p), shift in zip(weights.items(), shifts, strict=True)}
        with frozen_statistics(self.network):
            logits = functional_call(self.network, worst, (images,))
        return self.noted(self.cross_entropy(logits.float(), labels))

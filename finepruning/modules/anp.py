"""A network that loses the channels which an adversary of its weights would use."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from finepruning.data.loaders import DefenderData
from finepruning.modules.classifier import Batch
from finepruning.modules.ranges import check_above_0, check_share
from finepruning.modules.states import FinePrunedClassifier
from finepruning.pruning import add_mask
from finepruning.pruning.passes import frozen_statistics
from finepruning.repair.anp import find_neurons, prune_by_threshold, scaled_weights, thresholds, worsen
from finepruning.repair.ladder import correct, paired_loss


class ANPClassifier(FinePrunedClassifier):
    """Adversarial neuron pruning: a mask value for each channel is learned, then the lowest are pruned.

    Source: Adversarial Neuron Pruning Purifies Backdoored Deep Models (ANP), Wu and Wang 2021,
        arXiv:2110.14430. The network's own weights and BatchNorm statistics stay as they are. Deviations: the
        channels are those of each convolution, scaled in the BatchNorm behind it, where one is, and in the
        convolution otherwise; noise is kept in its interval; a pruned channel is silenced behind its
        nonlinearity, bias and all; the threshold is the largest before one that costs more than ``max_drop``
        on the defender's validation images, by paired predictions; Nesterov momentum.

    Args:
        network: The suspect.
        layers: Names of the layers whose channels may be pruned before.
        image_shape: (C, H, W) of the images.
        alpha: Share of the unperturbed loss, in [0, 1].
        noise: The paper's epsilon: largest relative change of a channel's weight and bias, above 0.
        threshold_step: Distance of the thresholds that are tried, from 0 up, above 0.
        max_drop: Largest allowed loss of accuracy on the validation images, in [0, 1].
        training: Arguments of :class:`Classifier`.

    Raises:
        ValueError: If a value is out of range, or the network has no channels that can be scaled.
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        image_shape: Sequence[int],
        *,
        alpha: float = 0.2,
        noise: float = 0.4,
        threshold_step: float = 0.05,
        max_drop: float = 0.01,
        **training: Any,
    ) -> None:
        super().__init__(network, layers, image_shape, **training)
        check_share(alpha=alpha, max_drop=max_drop)
        check_above_0(noise=noise, threshold_step=threshold_step)
        self.neurons = find_neurons(network)
        for neurons in self.neurons:
            add_mask(network, neurons.output, neurons.count)
        self.values = nn.ParameterList(torch.ones(neurons.count) for neurons in self.neurons)

    def setup(self, stage: str) -> None:
        """Leave the mask values alone to be trained."""
        self.network.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, K) of the network with its channels scaled by the mask values."""
        return self._scaled(images, list(self.values), [torch.ones_like(value) for value in self.values])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, labels), shared with that under the worst noise."""
        images, labels = batch
        alpha, size = self.hparams["alpha"], self.hparams["noise"]
        with frozen_statistics(self.network):
            noise = [values.requires_grad_() for values in self._draw(size, batch_idx)]
            slopes = torch.autograd.grad(
                self._noisy_loss(images, labels, noise), noise, materialize_grads=True
            )  # a convolution may have no bias, and no BatchNorm either
            worst = worsen([values.detach() for values in noise], self.over_processes(slopes), size)
            clean = self.cross_entropy(self(images).float(), labels)
            loss = alpha * clean + (1 - alpha) * self._noisy_loss(images, labels, worst)
        return self.noted(loss)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Bring the mask values back into [0, 1]."""
        for value in self.values:
            value.data.clamp_(0, 1)

    def on_fit_end(self) -> None:
        """Prune the channels with the lowest values, as many as the validation images allow."""
        self.network.requires_grad_(True)
        if self.trainer.current_epoch < (self.trainer.max_epochs or 0):
            return  # interrupted; whoever goes on from here prunes
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DefenderData):
            raise TypeError("ANPClassifier sees the defender's images only: give Trainer.fit a DefenderData.")
        step, max_drop = self.hparams["threshold_step"], self.hparams["max_drop"]

        self.to(self.trainer.strategy.root_device)  # the trainer has just moved it to the CPU

        def hits() -> Tensor:
            return correct(self.network, data.validation[0].batches(device=self.device))

        before, values = hits(), [value.detach() for value in self.values]
        threshold = prune_by_threshold(
            self.network,
            self.neurons,
            values,
            thresholds(step),
            lambda: paired_loss(before, hits()),
            max_drop,
        )
        self.findings = {"threshold": threshold}
        self.cpu()

    def _draw(self, size: float, batch_idx: int) -> list[Tensor]:
        """Return noise for all weights, then for all biases: the same in every process."""
        seed = (self.hparams["seed"] * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx
        chance = torch.Generator().manual_seed(seed % 2**63)
        drawn = [torch.rand(len(value), generator=chance) for value in [*self.values, *self.values]]
        return [(2 * values - 1).to(self.device) * size for values in drawn]

    def _noisy_loss(self, images: Tensor, labels: Tensor, noise: Sequence[Tensor]) -> Tensor:
        count = len(self.values)
        weights = [value + change for value, change in zip(self.values, noise[:count], strict=True)]
        logits = self._scaled(images, weights, [1 + change for change in noise[count:]])
        return self.cross_entropy(logits.float(), labels)

    def _scaled(self, images: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
        changed = scaled_weights(self.network, self.neurons, weights, biases)
        logits: Tensor = functional_call(self.network, changed, (images,))
        return logits

"""The states of a network on its way through an experiment. Each adds only what differs."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from finepruning.metrics import CleanAccuracy
from finepruning.modules.classifier import Batch, Classifier
from finepruning.pruning import add_mask, channel_count


class CleanClassifier(Classifier):
    """A network trained on clean images: the baseline that a backdoored one is compared with.

    What its maker watches during training are training images, and is logged as such.
    """

    watched = "train"


class BackdooredClassifier(CleanClassifier):
    """A network trained on poisoned images.

    The attacker watches the attack, too: the second loader holds triggered images, with the attacker's
    labels, or with the true ones if any wrong class will do.

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        untargeted: Success is a loss of accuracy instead of a share of images.
        training: Arguments of :class:`Classifier`.
    """

    def __init__(self, network: nn.Module, *, untargeted: bool = False, **training: Any) -> None:
        super().__init__(network, **training)
        self.untargeted = untargeted
        self.triggered_accuracy = CleanAccuracy()  # against the labels of that loader

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count images classified as labelled: clean ones in the first loader, triggered in the second."""
        if dataloader_idx == 0:
            super().validation_step(batch, batch_idx)
        else:
            images, labels = batch
            self.triggered_accuracy.update(self(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Log clean accuracy and attack success."""
        success = self.triggered_accuracy.compute()
        if self.untargeted:
            success = 1 - success / self.clean_accuracy.compute()
        self.log(f"{self.watched}/attack_success_rate", success)
        self.triggered_accuracy.reset()
        super().on_validation_epoch_end()


class PrunedClassifier(Classifier):
    """A network with a channel mask on some layers.

    The masks are there from the start, all open, so that a checkpoint brings them back before anything runs.

    Args:
        network: The suspect network.
        layers: Names of the layers whose channels may be pruned.
        image_shape: (C, H, W) of the images.
        training: Arguments of :class:`Classifier`.
    """

    def __init__(
        self, network: nn.Module, layers: Sequence[str], image_shape: Sequence[int], **training: Any
    ) -> None:
        super().__init__(network, **training)
        self.layers = list(layers)
        for layer in self.layers:
            add_mask(network, layer, channel_count(network, layer, image_shape))

    def check_epochs(self, max_epochs: int) -> None:
        """Raise ValueError if tuning cannot be done in so many epochs; here in any number."""


class FinePrunedClassifier(PrunedClassifier):
    """A pruned network that is tuned on the defender's clean images; with no layers, plain fine-tuning.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section "Fine-Pruning Defense". Pruned channels
        stay exactly zero: their mask also stops every gradient.
    """

    phase = "tune"

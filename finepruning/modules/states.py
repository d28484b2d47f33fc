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

    The attacker watches the attack, too: the second loader holds triggered images with the attacker's labels.
    """

    def __init__(self, network: nn.Module, **training: Any) -> None:
        super().__init__(network, **training)
        self.attack_success_rate = CleanAccuracy()  # the labels of that loader are the attacker's

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count clean images in the first loader, successful triggers in the second."""
        if dataloader_idx == 0:
            super().validation_step(batch, batch_idx)
        else:
            images, labels = batch
            self.attack_success_rate.update(self(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Log both shares."""
        super().on_validation_epoch_end()
        self.log(f"{self.watched}/attack_success_rate", self.attack_success_rate.compute())
        self.attack_success_rate.reset()


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


class FinePrunedClassifier(PrunedClassifier):
    """A pruned network that is tuned on the defender's clean images; with no layers, plain fine-tuning.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section 4.2. Pruned channels stay exactly zero:
        their mask also stops every gradient.
    """

    phase = "tune"

"""A network that unlearns its worst universal perturbation."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finepruning.data.loaders import DefenderData
from finepruning.modules.classifier import Batch
from finepruning.modules.ranges import check_above_0, check_at_least, check_share
from finepruning.modules.states import FinePrunedClassifier
from finepruning.pruning.passes import evaluating
from finepruning.repair.i_bau import implicit_gradient, inner_loss, universal_perturbation


class IBAUClassifier(FinePrunedClassifier):
    """Min-max unlearning of a universal perturbation, by implicit hypergradients; an epoch is a round.

    Source: Adversarial Unlearning of Backdoors via Implicit Hypergradient (I-BAU), Zeng et al. 2022,
        arXiv:2110.03735, with the authors' code where the paper is silent. The network is used in evaluation
        mode throughout, in full precision. Deviations: the search sees true labels and stays in its ball
        (the code: the network's own labels; versions of it differ about the ball); the images of the outer
        step are changed as ``training.augment`` says.

    Args:
        network: The suspect.
        layers: Names of the layers whose channels may be pruned.
        image_shape: (C, H, W) of the images.
        perturbed: Share of a batch that is perturbed, in [0, 1]; at least one image of all processes'.
        search_rate: Learning rate of the perturbation, above 0.
        penalty: Price of the perturbation's squared L2 norm, at least 0.
        norm: Largest L2 norm of the perturbation, above 0, in units of a pixel's whole range.
        fixed_point_rate: Rate of the descent step whose fixed point the perturbation is, above 0.
        fixed_point_steps: Terms of the series for the inverse, at least 1.
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
        perturbed: float = 0.01,
        search_rate: float = 10.0,
        penalty: float = 0.001,
        norm: float = 10.0,
        fixed_point_rate: float = 0.1,
        fixed_point_steps: int = 5,
        **training: Any,
    ) -> None:
        super().__init__(network, layers, image_shape, **training)
        check_share(perturbed=perturbed)
        check_above_0(search_rate=search_rate, norm=norm, fixed_point_rate=fixed_point_rate)
        check_at_least(0, penalty=penalty)
        check_at_least(1, fixed_point_steps=fixed_point_steps)

    def on_train_epoch_start(self) -> None:
        """Search the perturbation of this round on all images to tune on."""
        super().on_train_epoch_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DefenderData):
            raise TypeError(
                "IBAUClassifier sees the defender's images only: give Trainer.fit a DefenderData."
            )
        options = self.hparams
        chance = torch.Generator().manual_seed(options["seed"] * 1_000_003 + self.current_epoch)
        # a data set may lie sorted by class, and a batch of few classes is no picture of all images
        mixed = data.training.subset(torch.randperm(len(data.training), generator=chance))
        self._first = next(mixed.batches(data.batch_size, self.device))
        with evaluating(self.network):
            self._perturbation = universal_perturbation(
                self.network,
                mixed.batches(data.batch_size, self.device),
                options["search_rate"],
                options["penalty"],
                options["norm"],
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return a loss whose gradient is the hypergradient of a batch of (images, labels)."""
        images, labels = batch
        options, weights = self.hparams, [p for p in self.network.parameters() if p.requires_grad]
        processes = self.trainer.world_size
        whole = round(len(images) * processes / self._weight)  # images of the batch in all processes
        count = len(range(self.global_rank, max(1, int(options["perturbed"] * whole)), processes))
        change = self._perturbation.clone().requires_grad_()
        with evaluating(self.network), torch.autocast(self.device.type, enabled=False):
            loss = self.cross_entropy(
                self.network(torch.cat([images[:count] + change, images[count:]])), labels
            )
            (slope,) = torch.autograd.grad(loss, change, retain_graph=True)
            some, true = self._first
            inner = inner_loss(self.network(some + change), true, change, options["penalty"])
            through = implicit_gradient(
                inner, change, weights, slope, options["fixed_point_rate"], options["fixed_point_steps"]
            )
        extra = torch.stack([(w * g).sum() for w, g in zip(weights, through, strict=True)]).sum()
        return self.noted(loss) + extra - extra.detach()

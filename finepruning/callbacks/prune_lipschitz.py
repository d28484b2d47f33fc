"""Pruning that needs no data, as a callback."""

from collections.abc import Sequence

from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from finepruning.modules.states import PrunedClassifier
from finepruning.pruning import add_mask, convolution_chains
from finepruning.pruning.masks import mask_of
from finepruning.repair.clp import channel_bounds, outliers


class PruneLipschitz(Callback):
    """Prune the channels that can amplify their input most, before the first step of a fit.

    Source: Data-free Backdoor Removal Based on Channel Lipschitzness (CLP), Zheng et al. 2022,
        arXiv:2208.03111. Deviation: a channel is silenced behind its nonlinearity, BatchNorm's bias and all,
        and convolutions without a BatchNorm are pruned, too.

    Args:
        u: Standard deviations above its layer's mean from which a channel goes, at least 0.

    Raises:
        ValueError: If ``u`` is below 0; in a fit, if the network cannot be traced.
    """

    def __init__(self, u: float) -> None:
        if not u >= 0:
            raise ValueError(f"u={u} is below 0. Set defense.u to 0 or more; the paper's value is 3.")
        self.u = u
        self.done = False

    def check(self, network: nn.Module, layers: Sequence[str]) -> None:
        """Check before any work that it can prune a network like this one; ``layers`` do not matter.

        Raises:
            ValueError: If the network cannot be traced.
        """
        convolution_chains(network)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give all layers masks, so that a checkpoint that is read later brings them back."""
        if not isinstance(pl_module, PrunedClassifier):
            raise TypeError(f"PruneLipschitz needs a PrunedClassifier, not a {type(pl_module).__name__}.")
        for layer, bounds in channel_bounds(pl_module.network).items():
            add_mask(pl_module.network, layer, len(bounds))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune, once; what is pruned already stays so."""
        if self.done:
            return
        network: nn.Module = pl_module.network  # type: ignore[assignment]
        for layer, bounds in channel_bounds(network).items():
            mask_of(network, layer)[outliers(bounds, self.u)] = 0.0
        self.done = True

    def state_dict(self) -> dict[str, bool]:
        """Return whether the channels are pruned."""
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, bool]) -> None:
        """Take that of a checkpoint, whose network has the masks."""
        self.done = state_dict["done"]

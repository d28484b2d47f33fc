"""A network whose convolutions were trained by somebody else."""

from typing import Any, Self

from torch import nn

from finepruning.modules.states import BackdooredClassifier


class TransferredClassifier(BackdooredClassifier):
    """A network whose linear layers are trained while all else stays as it is, BatchNorm statistics, too.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 5.3.

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K); what is frozen learns no more afterwards.
        training: Arguments of :class:`BackdooredClassifier`.
    """

    def __init__(self, network: nn.Module, **training: Any) -> None:
        super().__init__(network, **training)
        for module in frozen_layers(network).values():
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what is trained, dropout included; frozen normalisation keeps its statistics."""
        super().train(mode)
        for module in frozen_layers(self.network).values():
            if hasattr(module, "running_mean"):
                module.eval()
        return self


def take_frozen(network: nn.Module, donor: nn.Module) -> None:
    """Copy all but the linear layers of another network of the same kind, in place."""
    donors = frozen_layers(donor)
    for name, module in frozen_layers(network).items():
        module.load_state_dict(donors[name].state_dict())


def frozen_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Return the layers without layers of their own that are not linear, by name."""
    leaves = {name: module for name, module in network.named_modules() if not list(module.children())}
    return {name: module for name, module in leaves.items() if not isinstance(module, nn.Linear)}

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
        learned = linear_parameters(network)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in learned)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of what is trained, dropout included; frozen normalisation keeps its statistics."""
        super().train(mode)
        for module in self.network.modules():
            if hasattr(module, "running_mean"):
                module.eval()
        return self


def take_frozen(network: nn.Module, donor: nn.Module) -> None:
    """Copy all but the linear layers' weights of another network of the same kind, in place."""
    own = network.state_dict()
    kept = {name: own[name] for name in linear_parameters(network)}
    network.load_state_dict(donor.state_dict() | kept)


def linear_parameters(network: nn.Module) -> set[str]:
    """Return the names of the parameters of all linear layers."""
    return {
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        if isinstance(module, nn.Linear)
        for name, _ in module.named_parameters()
    }

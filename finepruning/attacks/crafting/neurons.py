"""A pattern that excites the neurons on which a network's answer rests most."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from finepruning.attacks.crafting.base import Plan, check_steps, fixed
from finepruning.attacks.triggers.crafted import paste
from finepruning.pruning.passes import probe


class NeuronPattern:
    """Find a square pattern that drives a few inputs of a network's last linear layer up.

    Source: TrojanNN, Liu et al. 2018, "Trojaning attack on neural networks" (NDSS), section 4.1: the neurons
        with the largest sum of absolute weights, a pattern that drives them to a high value, by gradients.
        Deviations: the pattern is searched on clean images, not on an empty one, by steps along the sign of
        the gradient; and the suspect is then trained anew on poisoned images, not retrained.

    Args:
        size: Side of the pattern, in pixels; that of the trigger. At least 1.
        neurons: How many inputs are driven up. At least 1.
        goal: The value they are driven to.
        step: Change of a value in one step, in (0, 1]; it falls to a tenth on the way.
        steps: How many steps. At least 1.
        images: Clean images under the pattern. At least 1.
        seed: Seed of the first pattern, and of the choice of images.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self, size: int, neurons: int, goal: float, step: float, steps: int, images: int, seed: int
    ) -> None:
        for key, value in (("size", size), ("neurons", neurons), ("images", images)):
            if value < 1:
                raise ValueError(f"attack.crafting.{key}={value} is below 1. Raise it.")
        if not 0 < step <= 1:
            raise ValueError(f"attack.crafting.step={step} is outside (0, 1]. It is a brightness.")
        self.size = size
        self.neurons = neurons
        self.goal = goal
        self.step = step
        self.steps = check_steps(steps)
        self.images = images
        self.seed = seed

    def check_network(self, network: nn.Module) -> None:
        """Raise ValueError if a network has no linear layer, or none of enough inputs."""
        self._check_inputs(max(layer.in_features for layer in linear_layers(network).values()))

    def craft(self, network: nn.Module, plan: Plan, device: torch.device | str) -> dict[str, Tensor]:
        """Return ``pattern`` (C, size, size) in [0, 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(plan.clean), generator=generator)[: self.images].sort().values
        images, _ = next(plan.clean.subset(rows).batches(self.images, device))
        head = last_linear(fixed(network, device), images.shape[1:])
        self._check_inputs(head.in_features)
        chosen = head.weight.abs().sum(0).topk(self.neurons).indices
        pattern = torch.rand(images.shape[1], self.size, self.size, generator=generator).to(images)
        for number in range(self.steps):
            pattern.requires_grad_()
            values = head_inputs(network, head, paste(images, pattern))[:, chosen]
            (slope,) = torch.autograd.grad((values - self.goal).square().sum(), pattern)
            step = self.step * (1 - 0.9 * number / self.steps)
            pattern = (pattern - step * slope.sign()).clamp(0, 1).detach()
        return {"pattern": pattern}

    def _check_inputs(self, inputs: int) -> None:
        if self.neurons > inputs:
            raise ValueError(
                f"attack.crafting.neurons={self.neurons}, but the last linear layer has {inputs} inputs. "
                "Lower it."
            )


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a network by name.

    Raises:
        ValueError: If there is none.
    """
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    if not layers:
        raise ValueError(
            "This attack excites inputs of the last linear layer, and the network has none. Choose another "
            "model."
        )
    return layers


def last_linear(network: nn.Module, image_shape: Sequence[int]) -> nn.Linear:
    """Return the linear layer that runs last when a network sees an image (C, H, W), wherever it was defined.

    Raises:
        ValueError: If the network has no linear layer.
    """
    layers = linear_layers(network)
    return layers[list(probe(network, layers, image_shape))[-1]]


def head_inputs(network: nn.Module, head: nn.Linear, images: Tensor) -> Tensor:
    """Return what reaches a layer (B, features) when a network sees images; gradients flow."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        network(images)
    finally:
        handle.remove()
    return seen[0]

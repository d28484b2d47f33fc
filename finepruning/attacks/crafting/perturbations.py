"""Perturbations that make images hard to recognise, so that their trigger is learned instead."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from finepruning.attacks.crafting.base import Plan, check_steps, fixed


class Perturbations:
    """Perturb each image that will be poisoned, to raise the loss of a clean network on it.

    Source: label-consistent attacks, Turner, Tsipras and Madry 2019, arXiv:1912.02771, section 3.2: projected
        gradient descent (Madry et al. 2018, arXiv:1706.06083) in the L-infinity ball. Deviations: the network
        was trained as usual, not against such perturbations; fewer steps than their 100.

    Args:
        epsilon: Largest change of a value, in (0, 1].
        step: Change of a value in one step, in (0, 1].
        steps: How many steps. At least 1.
        seed: Seed of the starts, uniform in the ball.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, epsilon: float, step: float, steps: int, seed: int) -> None:
        for key, value in (("epsilon", epsilon), ("step", step)):
            if not 0 < value <= 1:
                raise ValueError(f"attack.crafting.{key}={value} is outside (0, 1]. It is a brightness.")
        self.epsilon = epsilon
        self.step = step
        self.steps = check_steps(steps)
        self.seed = seed

    def check_network(self, network: nn.Module) -> None:
        """Accept any network: all have gradients."""

    def craft(self, network: nn.Module, plan: Plan, device: torch.device | str) -> dict[str, Tensor]:
        """Return ``places`` (K,) of the poisoned images and their ``perturbations`` (K, C, H, W)."""
        fixed(network, device)
        poisoned = plan.clean.subset(plan.poisoned)
        generator = torch.Generator().manual_seed(self.seed)
        found = []
        for images, labels in poisoned.batches(device=device):
            chance = torch.rand(images.shape, generator=generator).to(images)
            start = self.epsilon * (2 * chance - 1)
            found.append(perturb(network, images, labels, start, self.epsilon, self.step, self.steps).cpu())
        places, order = poisoned.index.sort()
        return {"places": places, "perturbations": torch.cat(found)[order]}


def perturb(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    start: Tensor,
    epsilon: float,
    step: float,
    steps: int,
) -> Tensor:
    """Return perturbations (B, C, H, W) that raise the cross-entropy of the true labels.

    Args:
        network: Images -> logits.
        images: (B, C, H, W) in [0, 1]; with their perturbation they stay there.
        labels: (B,) true classes.
        start: First perturbations, same shape as the images.
        epsilon: Largest absolute value.
        step: Of each value, in each step.
        steps: How many.
    """
    found = start.clamp(-epsilon, epsilon)
    for _ in range(steps):
        found = ((images + found).clamp(0, 1) - images).detach().requires_grad_()
        loss = functional.cross_entropy(network(images + found), labels, reduction="sum")
        (slope,) = torch.autograd.grad(loss, found)
        found = (found + step * slope.sign()).clamp(-epsilon, epsilon)
    return ((images + found).clamp(0, 1) - images).detach()

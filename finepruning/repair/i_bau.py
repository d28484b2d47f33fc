"""Implicit hypergradient unlearning: a network resists the one perturbation that is worst for all images."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

Batches = Iterable[tuple[Tensor, Tensor]]
Logits = Callable[[Tensor], Tensor]

# Source of all of this: Adversarial Unlearning of Backdoors via Implicit Hypergradient (I-BAU), Zeng et al.
# 2022, arXiv:2110.03735.


def inner_loss(logits: Tensor, labels: Tensor, perturbation: Tensor, penalty: float) -> Tensor:
    """Return what the perturbation minimises: minus the cross-entropy, plus its squared norm's price.

    Args:
        logits: (B, K) of perturbed images.
        labels: (B,) their true classes.
        perturbation: (1, C, H, W).
        penalty: Price of the squared L2 norm, at least 0.
    """
    return penalty * perturbation.square().sum() - functional.cross_entropy(logits, labels)


def into_ball(perturbation: Tensor, radius: float) -> Tensor:
    """Return a perturbation shortened to the L2 norm ``radius`` if it is longer."""
    shortened: Tensor = perturbation * (radius / perturbation.norm().clamp(min=1e-12)).clamp(max=1)
    return shortened


def universal_perturbation(
    network: Logits, batches: Batches, rate: float, penalty: float, radius: float
) -> Tensor:
    """Return the perturbation (1, C, H, W) that one pass of gradient descent over clean images finds.

    Args:
        network: Images (B, C, H, W) -> logits (B, K).
        batches: Images and labels.
        rate: Learning rate, above 0.
        penalty: Price of the squared L2 norm, at least 0.
        radius: Largest L2 norm, above 0, in units of a pixel's whole range.
    """
    perturbation: Tensor | None = None
    for images, labels in batches:
        now = torch.zeros_like(images[:1]) if perturbation is None else perturbation
        now = now.detach().requires_grad_()
        loss = inner_loss(network(images + now), labels, now, penalty)
        (slope,) = torch.autograd.grad(loss, now)
        perturbation = into_ball((now - rate * slope).detach(), radius)
    if perturbation is None:
        raise ValueError(
            "There is no clean image to search a perturbation on. Raise defender.fraction, or "
            "suspect.fraction."
        )
    return perturbation


def implicit_gradient(
    inner: Tensor,
    inner_variable: Tensor,
    parameters: Sequence[Tensor],
    outer_slope: Tensor,
    rate: float,
    steps: int,
) -> list[Tensor]:
    """Return what the outer loss gains through the inner optimum's dependence on the parameters.

    One step of gradient descent on the inner loss is a map whose fixed point is the optimum; the implicit
    function theorem at that point needs an inverse, of which ``steps`` terms of its Neumann series are taken.

    Args:
        inner: The inner loss, a scalar that depends on the two below; differentiable twice.
        inner_variable: What minimises it.
        parameters: What the optimum depends on.
        outer_slope: Gradient of the outer loss in the inner variable, of that one's shape.
        rate: Of the step of gradient descent, above 0.
        steps: Terms of the series, at least 1.

    Returns:
        A tensor of the shape of each parameter.
    """
    (slope,) = torch.autograd.grad(inner, inner_variable, create_graph=True)
    moved = inner_variable - rate * slope
    series = torch.zeros_like(outer_slope)
    for _ in range(steps):
        (carried,) = torch.autograd.grad(moved, inner_variable, series, retain_graph=True)
        series = carried + outer_slope
    found = torch.autograd.grad(moved, list(parameters), series, allow_unused=True)
    return [
        torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(parameters, found, strict=True)
    ]

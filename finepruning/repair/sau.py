"""Shared adversarial unlearning: adversarial examples that fool the suspect and its repair alike."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from finepruning.pruning.passes import constant_pass

# Source of all of this: Shared Adversarial Unlearning (SAU), Wei et al. 2023, arXiv:2307.10562.


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence (B,) of two sets of logits (B, K), in nats: 0 to log 2."""
    ours, theirs = one.log_softmax(-1), other.log_softmax(-1)
    middle = torch.logaddexp(ours, theirs) - torch.log(torch.tensor(2.0))
    to_middle = [(logs.exp() * (logs - middle)).sum(-1) for logs in (ours, theirs)]
    return (to_middle[0] + to_middle[1]) / 2


def search_loss(
    repaired: Tensor,
    suspect: Tensor,
    labels: Tensor,
    before: tuple[Tensor, Tensor],
    adversarial: float,
    agreement: float,
) -> tuple[Tensor, Tensor]:
    """Return what a search for shared adversarial examples minimises, and which images (B,) are ones.

    An image is shared where both networks have left their own clean prediction, for the same class. What has
    left already is pushed no further, and what is shared is drawn together no more.

    Args:
        repaired: (B, K) logits of perturbed images.
        suspect: (B, K) the suspect's.
        labels: (B,) true classes.
        before: (B,) each network's prediction for the clean images, the suspect's second.
        adversarial: Factor of the cross-entropy, at least 0.
        agreement: Factor of the divergence between both networks, at least 0.
    """
    now = (repaired.argmax(-1), suspect.argmax(-1))
    left = [here != there for here, there in zip(now, before, strict=True)]
    shared = left[0] & left[1] & (now[0] == now[1])
    push = sum(
        (functional.cross_entropy(logits, labels, reduction="none") * ~gone).sum()
        for logits, gone in zip((repaired, suspect), left, strict=True)
    )
    apart = (divergence(repaired, suspect) * ~shared).sum()
    return (agreement * apart - adversarial * push / 2) / len(labels), shared


def shared_perturbation(
    network: nn.Module,
    suspect: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    radius: float,
    step: float,
    steps: int,
    adversarial: float,
    agreement: float,
) -> Tensor:
    """Return a perturbation (B, C, H, W) of each image that tends to fool both networks alike.

    Projected gradient descent by signs from ``radius`` everywhere (as the authors' code has it). Only the
    perturbation gets gradients.

    Args:
        network: What is repaired, in evaluation mode.
        suspect: What it was, in evaluation mode.
        images: (B, C, H, W); perturbed ones are not cut to [0, 1].
        labels: (B,) true classes.
        radius: Largest change of a pixel, in units of its whole range.
        step: Length of a step, in the same units.
        steps: How many.
        adversarial: See :func:`search_loss`.
        agreement: See :func:`search_loss`.
    """
    before = (constant_pass(network, images).argmax(-1), constant_pass(suspect, images).argmax(-1))
    perturbation = torch.full_like(images, radius)
    for _ in range(steps):
        perturbation.requires_grad_()
        both = [constant_pass(net, images + perturbation).float() for net in (network, suspect)]
        loss, shared = search_loss(both[0], both[1], labels, before, adversarial, agreement)
        if shared.all():
            break
        (slope,) = torch.autograd.grad(loss, perturbation)
        perturbation = (perturbation.detach() - step * slope.sign()).clamp(-radius, radius)
    return perturbation.detach()


def shared_risk(repaired: Tensor, suspect: Tensor, labels: Tensor, clean: Tensor) -> Tensor:
    """Return how likely the repaired network follows the suspect's mistakes: mean of ``-log(1 - p)``.

    p is the probability that it gives the class which the suspect wrongly gives a perturbed image but not the
    clean one; other images count 0. Deviation: the authors' code averages two clamped forms of the
    logarithm; here it is the exact one, from log-probabilities.

    Args:
        repaired: (B, K) logits of perturbed images.
        suspect: (B, K) the suspect's for the same ones.
        labels: (B,) true classes.
        clean: (B,) the suspect's predictions for the clean images.
    """
    wrong = suspect.argmax(-1)
    counts = (wrong != labels) & (wrong != clean)
    others = repaired.log_softmax(-1).scatter(1, wrong[:, None], -torch.inf).logsumexp(-1)
    return -(others * counts).sum() / len(labels)

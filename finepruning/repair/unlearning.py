"""Unlearning: a network learns to resist universal perturbations that are pushed on while it learns.

One batch of clean images gives a step of the network and a step of the perturbations, from one forward pass.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from finepruning.repair.inversion import UNTARGETED


def pool_goals(count: int, classes: Sequence[int], untargeted: bool) -> Tensor:
    """Return the goal (P,) of each perturbation of a pool: the classes in turns, and away from the true one.

    Args:
        count: Perturbations, at least 1.
        classes: Suspicious classes.
        untargeted: Whether some perturbations only lead away from the true class.

    Raises:
        ValueError: If there is no goal at all, or more goals than perturbations.
    """
    goals = [*classes, *([UNTARGETED] if untargeted else [])]
    if not goals:
        raise ValueError(
            "The pool of perturbations has no goal: no class is suspicious, and "
            "defense.tuning.untargeted=false. Set it to true, or defense.inspection.suspicious to 1 or more."
        )
    if count < len(goals):
        raise ValueError(
            f"{count} perturbations cannot have {len(goals)} goals. Raise defense.tuning.perturbations, or "
            "lower defense.inspection.suspicious."
        )
    return torch.tensor([goals[place % len(goals)] for place in range(count)])


def turns(count: int, before: int, size: int, processes: int = 1, rank: int = 0) -> Tensor:
    """Return which pattern each image of a batch gets, (B,): all in turns, over small batches, too.

    Args:
        count: B, images of the batch in this process.
        before: Images of the batches before it, in all processes.
        size: Of the pool.
        processes: That share a batch.
        rank: Which of them this is.
    """
    return (before + rank + processes * torch.arange(count)) % size


def pool_radii(goals: Tensor, smallest: float, largest: float) -> Tensor:
    """Return the radius (P,) of each perturbation, spread evenly from smallest to largest for each goal."""
    radii = torch.empty(len(goals))
    for goal in goals.unique():
        places = (goals == goal).nonzero().squeeze(1)
        middle = (smallest + largest) / 2
        spread = torch.linspace(smallest, largest, len(places)) if len(places) > 1 else torch.tensor([middle])
        radii[places] = spread
    return radii


def random_patterns(radii: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return patterns (P, C, H, W) of random direction whose L2 norms are the radii (P,)."""
    patterns = torch.randn(len(radii), *shape, generator=generator)
    scale: Tensor = radii / patterns.flatten(1).norm(dim=1)
    return patterns * scale.view(-1, 1, 1, 1)


def push(patterns: Tensor, gradients: Tensor, radii: Tensor, step: float) -> Tensor:
    """Return patterns one step further down their gradients, inside their L2 balls.

    Args:
        patterns: (P, C, H, W).
        gradients: (P, C, H, W) of what the perturbations minimise; one that is 0 or not finite moves nothing.
        radii: (P,) of the balls.
        step: Length of the step, as a share of the radius.
    """
    size = gradients.flatten(1).norm(dim=1)
    sound = (size > 0) & size.isfinite()
    length = torch.where(sound, step * radii / size.where(sound, torch.ones_like(size)), 0.0)
    moved = patterns - torch.where(sound.view(-1, 1, 1, 1), gradients, 0.0) * length.view(-1, 1, 1, 1)
    norms = moved.flatten(1).norm(dim=1)
    scale: Tensor = (radii / norms.clamp(min=1e-12)).clamp(max=1)
    return moved * scale.view(-1, 1, 1, 1)


def perturb(images: Tensor, patterns: Tensor, places: Tensor) -> Tensor:
    """Return images (B, C, H, W), each with the pattern at its place (B,), cut to [0, 1]."""
    return (images + patterns[places]).clamp(0, 1)


def attack_loss(logits: Tensor, labels: Tensor, goals: Tensor) -> Tensor:
    """Return what the perturbations minimise, summed over images: cross-entropy to their goals.

    Without a goal it is the negative one to the true label. Images of the goal's own class count nothing.

    Args:
        logits: (B, K) of perturbed images.
        labels: (B,) their true classes.
        goals: (B,) the goal of each image's perturbation, or ``UNTARGETED``.
    """
    away = goals == UNTARGETED
    losses = functional.cross_entropy(logits, torch.where(away, labels, goals), reduction="none")
    return (torch.where(away, -losses, losses) * (goals != labels)).sum()


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return how far logits (B, K) are from a teacher's, both softened.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2.

    It is the mean Kullback-Leibler divergence in nats, times the squared temperature.
    """
    soft, wanted = (values / temperature for values in (logits, teacher))
    divergence = functional.kl_div(
        soft.log_softmax(-1), wanted.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    return divergence * temperature**2


def unlearning_loss(
    clean: Tensor,
    perturbed: Tensor,
    teacher: Tensor,
    labels: Tensor,
    weight: float,
    *,
    entropy: float = 1.0,
    imitation: float = 1.0,
    perturbed_imitation: float | None = None,
    temperature: float = 2.0,
) -> Tensor:
    """Return CE + KD on clean images plus ``weight`` times the same on perturbed ones, each with a factor.

    Args:
        clean: (B, K) logits of clean images.
        perturbed: (B, K) logits of the same images, perturbed.
        teacher: (B, K) logits of the suspect for the clean images.
        labels: (B,) true classes.
        weight: Of the perturbed images, at least 0.
        entropy: Factor of the cross-entropy to the labels, CE, at least 0.
        imitation: Factor of the distillation, KD, at least 0.
        perturbed_imitation: The same on perturbed images; None: as on clean ones.
        temperature: Of the distillation, above 0.
    """

    def terms(logits: Tensor, imitated: float) -> Tensor:
        to_labels = functional.cross_entropy(logits, labels)
        return entropy * to_labels + imitated * distillation(logits, teacher, temperature)

    imitated = imitation if perturbed_imitation is None else perturbed_imitation
    return terms(clean, imitation) + weight * terms(perturbed, imitated)

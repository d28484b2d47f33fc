"""Sharpness-aware fine-tuning: the worst weights nearby, where a weight's size says how near."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ascent(weights: Sequence[Tensor], gradients: Sequence[Tensor], radius: float) -> list[Tensor]:
    """Return the first-order worst shift of all weights together: ``radius * w^2 g / |w g|``.

    Source: Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization (FT-SAM), Zhu et
        al. 2023, arXiv:2304.11823: the largest first-order rise of the loss over shifts e with
        ``|e / w| <= radius``. Large weights, which the trigger's neurons have, move most.

    Args:
        weights: Parameters, of any shapes.
        gradients: Of the loss, one for each.
        radius: L2 norm of the shift, each entry in units of its own weight, above 0.

    Returns:
        A shift for each weight; zeros where every gradient is zero.
    """
    lengths = [
        (weight * gradient).float().norm() for weight, gradient in zip(weights, gradients, strict=True)
    ]
    scale = radius / torch.stack(lengths).norm().clamp(min=1e-12)
    return [
        scale.to(weight) * weight.square() * gradient
        for weight, gradient in zip(weights, gradients, strict=True)
    ]

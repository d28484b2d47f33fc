"""Head shift: the output layer starts anew and is kept away from its old weights (FST and D3)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from finepruning.pruning.passes import probe

STARTS = ("redraw", "random", "opposite", "keep")


def find_head(network: nn.Module, image_shape: Sequence[int]) -> str:
    """Return the name of the linear layer that gives the logits.

    Args:
        network: The network; its mode is as before afterwards.
        image_shape: (C, H, W) of the images.

    Raises:
        ValueError: If something else gives them, or its weight is no parameter of its own.
    """
    linear = [name for name, layer in network.named_modules() if name and isinstance(layer, nn.Linear)]
    outputs = probe(network, ["", *linear], image_shape)
    logits = outputs.pop("")
    for name, output in reversed(outputs.items()):
        if output.shape == logits.shape and torch.equal(output, logits):
            if "weight" not in dict(network.get_submodule(name).named_parameters(recurse=False)):
                raise ValueError(
                    f"The weight of the head, {name!r}, is computed from others (a parametrization), so that "
                    "it cannot be set. Choose another defense."
                )
            return name
    raise ValueError(
        "Shifting the head needs a network whose logits are a linear layer's outputs, and this one's are "
        "not. Choose another defense, or another model."
    )


@torch.no_grad()
def start_head(head: nn.Linear, start: str, generator: torch.Generator) -> None:
    """Give the head its first weights, in place, its weight's norm unchanged.

    Args:
        head: The output layer.
        start: ``"redraw"``: weight and bias as of a new layer, uniform within 1 / sqrt(inputs) (FST).
            ``"random"``: weight uniform, bias kept (D3); ``"opposite"``: weight times -1; ``"keep"``.
        generator: Gives the random numbers.
    """
    norm, bound = head.weight.norm(), head.in_features**-0.5
    if start in ("redraw", "random"):
        head.weight.copy_(_uniform(head.weight, generator))
    if start == "redraw" and head.bias is not None:
        head.bias.copy_(bound * _uniform(head.bias, generator))
    if start == "opposite":
        head.weight.neg_()
    onto_sphere(head.weight, norm)


def _uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(like.shape, generator=generator) - 1


@torch.no_grad()
def onto_sphere(weight: Tensor, norm: Tensor) -> None:
    """Scale a weight to a Frobenius norm, in place; one of norm 0 stays."""
    weight.mul_(norm / weight.norm().clamp(min=1e-12))


def clean_loss(logits: Tensor, labels: Tensor, ceiling: float | None) -> Tensor:
    """Return the mean cross-entropy, or what each image's lies above a ceiling.

    Args:
        logits: (B, K).
        labels: (B,).
        ceiling: Cross-entropy up to which an image counts nothing, in nats; None: no ceiling.
    """
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return (losses if ceiling is None else (losses - ceiling).relu()).mean()


def shift_loss(weight: Tensor, original: Tensor, inner_product: float, distance: float) -> Tensor:
    """Return what holds the head off its old weights: falls with distance, rises with their inner product.

    Source: Towards Stable Backdoor Purification through Feature Shift Tuning (FST), Min et al. 2023,
        arXiv:2310.01875 (inner product); D3, Wei et al. 2024, arXiv:2411.09585 (distance).

    Args:
        weight: The head's weight.
        original: The suspect's.
        inner_product: FST's alpha, at least 0.
        distance: Factor of the Frobenius distance, at least 0.
    """
    apart: Tensor = torch.linalg.vector_norm(weight - original)
    return inner_product * (weight * original).sum() - distance * apart

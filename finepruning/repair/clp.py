"""Channel Lipschitz pruning: channels that can amplify an input far more than their layer's others."""

import torch
from torch import Tensor, nn

from finepruning.pruning import convolution_chains


@torch.no_grad()
def channel_lipschitz(convolution: nn.Module, norm: nn.Module | None) -> Tensor:
    """Return a measure (channels,) of how much each output channel can amplify its input.

    Source: Data-free Backdoor Removal Based on Channel Lipschitzness (CLP), Zheng et al. 2022,
        arXiv:2208.03111: the largest singular value of the channel's kernel, (inputs, places),
        times ``|weight| / sqrt(variance + eps)`` of the BatchNorm behind it; that factor is 1 without one.
        The paper calls it a bound; the strict one is the norm of all the channel's weights, which is no less.

    Args:
        convolution: With a weight (channels, inputs, ...).
        norm: The BatchNorm that directly follows it, or None.
    """
    weight: Tensor = convolution.weight  # type: ignore[assignment] # which a parametrization may compute
    kernels = weight.double().flatten(2)
    bounds: Tensor = torch.linalg.matrix_norm(kernels, ord=2)
    variance, scale = getattr(norm, "running_var", None), getattr(norm, "weight", None)
    if norm is not None and variance is not None:
        bounds = bounds / (variance.double() + norm.eps).sqrt()
    if scale is not None:
        bounds = bounds * scale.double().abs()
    return bounds


def outliers(bounds: Tensor, u: float) -> list[int]:
    """Return the channels whose bound is above the layer's mean by more than ``u`` standard deviations.

    Among n values none can be (n - 1) / sqrt(n) deviations above the mean or more: with ``u`` = 3 a layer of
    ten channels or fewer loses none.

    Args:
        bounds: (channels,) of one layer.
        u: At least 0; the paper's is 3.
    """
    return (bounds > bounds.mean() + u * bounds.std()).nonzero().squeeze(1).tolist()


def channel_bounds(network: nn.Module) -> dict[str, Tensor]:
    """Return the bounds of each convolution's channels, by the layer whose mask can prune them.

    Raises:
        ValueError: If the network cannot be traced, so that nobody knows which BatchNorm follows what.
    """
    return {
        chain.output: channel_lipschitz(
            network.get_submodule(chain.convolution),
            network.get_submodule(chain.norm) if chain.norm else None,
        )
        for chain in convolution_chains(network)
    }

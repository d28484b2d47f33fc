"""Weights of networks, in a format that cannot carry code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finepruning.store.files import write_file

if TYPE_CHECKING:
    from torch import nn


def save_weights(network: nn.Module, path: Path) -> None:
    """Write parameters, buffers and masks as safetensors."""
    from safetensors.torch import save  # here and below: listing a store never loads torch

    state = network.state_dict()
    # cloned, since a network may have a layer under two names
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_file(path, save(apart))


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load what :func:`save_weights` wrote, adding the masks that it finds there."""
    from safetensors.torch import load_file

    from finepruning.pruning import add_mask
    from finepruning.pruning.masks import MASK

    state = load_file(path)
    for name, tensor in state.items():
        if name.endswith(MASK):
            add_mask(network, name.removesuffix(MASK), len(tensor))
    missing, unexpected = network.load_state_dict(state, strict=False)
    for name in [name for name in missing if name.endswith(MASK)]:
        network.get_buffer(name).fill_(1.0)  # weights that were saved without this mask prune nothing
        missing.remove(name)
    if missing or unexpected:
        raise ValueError(
            f"{path} does not fit the network: missing {missing[:10]}, unexpected {unexpected[:10]}."
        )
    return network

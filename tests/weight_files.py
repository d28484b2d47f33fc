"""A tiny network and files of its weights, of every kind that is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import torch
from safetensors.torch import save_file
from torch import nn

from finepruning.suspect import load_suspect

SHAPE = (1, 16, 16)
FACTS: dict[str, Any] = {"image_shape": SHAPE, "num_classes": 3, "mean": [0.0], "std": [1.0]}


class TinyCNN(nn.Sequential):
    """A convolution, what flattens it, a linear layer: 131 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=5)
        self.norm = nn.BatchNorm2d(2)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(18, 3)


def tiny(seed: int = 0) -> TinyCNN:
    torch.manual_seed(seed)
    return TinyCNN().eval()


def load(network: nn.Module, path: Path) -> nn.Module:
    return load_suspect(network, path, SHAPE, 3)


def same(first: nn.Module, second: nn.Module) -> bool:
    images = torch.rand(5, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.equal(first.eval()(images), second.eval()(images))


def write_keras(network: TinyCNN, path: Path) -> None:
    """Write a file as Keras would, channels last."""
    state = {name: values.numpy() for name, values in network.state_dict().items()}
    head = state["head.weight"].reshape(3, 2, 3, 3).transpose(2, 3, 1, 0).reshape(18, 3)
    arrays = {
        "conv/conv/kernel:0": state["conv.weight"].transpose(2, 3, 1, 0),
        "conv/conv/bias:0": state["conv.bias"],
        "norm/norm/gamma:0": state["norm.weight"],
        "norm/norm/beta:0": state["norm.bias"],
        "norm/norm/moving_mean:0": state["norm.running_mean"],
        "norm/norm/moving_variance:0": state["norm.running_var"],
        "head/head/kernel:0": head,
        "head/head/bias:0": state["head.bias"],
    }
    with h5py.File(path, "w") as file:
        file.create_group("flatten")
        for name, values in arrays.items():
            file[name] = values


WRITERS: dict[str, Callable[[TinyCNN, Path], None]] = {
    ".safetensors": lambda network, path: save_file(network.state_dict(), path),
    ".pt": lambda network, path: torch.save(network.state_dict(), path),
    ".pth": lambda network, path: torch.save(
        network.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    ".h5": write_keras,
}

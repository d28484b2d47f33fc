"""Keras's weights behind a flattened map, whatever flattens it, and the file that Keras 3 writes."""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from finepruning.suspect import UnreadableError
from finepruning.suspect.flattening import flattened_maps
from tests.weight_files import SHAPE, load, tiny

Forward = Callable[["Net", Tensor], Tensor]
MAP = (2, 3, 3)


class Net(nn.Module):
    """A convolution and two layers that may read its map, joined as a function says."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, stride=5)
        self.norm = nn.BatchNorm1d(18)
        self.head = nn.Linear(18, 3)
        self.flatten = nn.Flatten()
        self.joined = forward

    def forward(self, images: Tensor) -> Tensor:
        return self.joined(self, images)


FLATTENED: dict[str, Forward] = {
    "module": lambda net, x: net.head(net.norm(net.flatten(net.conv(x)))),
    "function": lambda net, x: net.head(net.norm(torch.flatten(functional.relu(net.conv(x)), 1))),
    "view": lambda net, x: net.head(net.norm(net.conv(x).view(x.size(0), -1))),
    "method, activation behind it": lambda net, x: net.head(net.norm(net.conv(x).flatten(1)).relu()),
    "reshape, dropout behind it": lambda net, x: net.head(
        functional.dropout(net.norm(net.conv(x).reshape(-1, 18)), training=net.training)
    ),
    "a gate, a pool by its size": lambda net, x: net.head(
        net.norm(
            functional.avg_pool2d(
                net.conv(x) * net.conv(x).mean((2, 3)).view(-1, 2, 1, 1).sigmoid(), x.size(2) // 16
            ).flatten(1)
        )
    ),
    "weights by hand": lambda net, x: functional.linear(
        net.norm(net.conv(x).flatten(1)), net.head.weight, net.head.bias
    ),
    "sum of two": lambda net, x: net.head(net.norm(net.conv(x).flatten(1) + net.conv(x).relu().flatten(1))),
}
KEPT_LAST: dict[str, Forward] = {
    "permuted": lambda net, x: net.head(net.norm(net.conv(x).permute(0, 2, 3, 1).flatten(1))),
    "permuted, activated": lambda net, x: net.head(
        net.norm(net.conv(x).permute((0, 2, 3, 1)).relu().reshape(-1, 18))
    ),
}
KEPT_LAST |= {
    f"permuted, {what}": lambda net, x, change=change: net.head(
        net.norm(change(net.conv(x).permute(0, 2, 3, 1)).flatten(1))
    )
    for what, change in (
        ("sigmoid", torch.sigmoid),
        ("scaled", lambda x: 2 * x),
        ("added", lambda x: x + x.relu()),
        ("moved there and back and there", lambda x: x.movedim(3, 1).movedim(1, 3)),
    )
}
UNKNOWN: dict[str, Forward] = {
    "turned": lambda net, x: net.head(net.norm(net.conv(x).transpose(2, 3).flatten(1))),
    "both orders": lambda net, x: net.head(
        net.norm((net.conv(x).permute(0, 2, 3, 1) + net.conv(x).reshape(-1, 3, 3, 2)).flatten(1))
    ),
    "turned twice": lambda net, x: net.head(net.norm(net.conv(x).flatten(1).T.mT)),
    "multiplied by hand": lambda net, x: net.norm(net.conv(x).flatten(1)) @ net.head.weight.T,
    "rolled": lambda net, x: net.head(net.norm(net.conv(x).flatten(1).roll(1, 1))),
    "half of each": lambda net, x: net.head(
        net.norm(torch.cat([net.conv(x).flatten(1)[:, :9], net.conv(x).flatten(1)[:, 9:]], 1))
    ),
}


def filled(forward: Forward, seed: int) -> Net:
    torch.manual_seed(seed)
    network = Net(forward).eval()
    for values in (network.norm.weight, network.norm.bias, network.norm.running_mean):
        nn.init.normal_(values)
    return network


def arrays(network: Net, last: bool) -> dict[str, dict[str, np.ndarray]]:
    """Return each layer's arrays as Keras has them; ``last``: whether the map is flattened channels last."""
    turned = np.arange(18).reshape(MAP).transpose(1, 2, 0).ravel() if last else np.arange(18)
    norm = {
        "gamma": "weight",
        "beta": "bias",
        "moving_mean": "running_mean",
        "moving_variance": "running_var",
    }
    state = {name: values.numpy() for name, values in network.state_dict().items()}
    return {
        "conv": {"kernel": state["conv.weight"].transpose(2, 3, 1, 0), "bias": state["conv.bias"]},
        "norm": {theirs: state[f"norm.{ours}"][turned] for theirs, ours in norm.items()},
        "head": {"kernel": state["head.weight"].T[turned], "bias": state["head.bias"]},
    }


def write(layers: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    with h5py.File(path, "w") as file:
        for layer, named in layers.items():
            for name, values in named.items():
                file[f"{layer}/{layer}/{name}:0"] = values


def reads(ours: Net, expected: Net, path: Path) -> bool:
    loaded, images = load(ours, path).eval(), torch.rand(5, *SHAPE)
    expected.norm.eps = 1e-3  # Keras's
    with torch.no_grad():
        return torch.allclose(loaded(images), expected(images), atol=1e-5)


@pytest.mark.parametrize("how", FLATTENED)
def test_whatever_flattens_a_map_its_readers_get_keras_weights_in_order(how: str, tmp_path: Path) -> None:
    forward = FLATTENED[how]
    write(arrays(filled(forward, 1), last=True), tmp_path / "net.h5")
    assert reads(filled(forward, 2), filled(forward, 1), tmp_path / "net.h5")


@pytest.mark.parametrize("how", KEPT_LAST)
def test_a_map_that_is_flattened_as_keras_does_keeps_the_order(how: str, tmp_path: Path) -> None:
    forward = KEPT_LAST[how]
    write(arrays(filled(forward, 1), last=False), tmp_path / "net.h5")
    assert reads(filled(forward, 2), filled(forward, 1), tmp_path / "net.h5")


@pytest.mark.parametrize("how", UNKNOWN)
def test_an_order_that_is_not_known_is_refused(how: str, tmp_path: Path) -> None:
    write(arrays(filled(UNKNOWN[how], 1), last=True), tmp_path / "net.h5")
    with pytest.raises(
        UnreadableError, match=r"(norm|head) reads a map of channels behind .* order .* is not known"
    ):
        load(filled(UNKNOWN[how], 2), tmp_path / "net.h5")


def test_a_forward_that_branches_on_values_is_refused(tmp_path: Path) -> None:
    def branching(net: Net, images: Tensor) -> Tensor:
        flat = net.norm(net.conv(images).flatten(1))
        return net.head(flat if images.sum() > 0 else -flat)

    write(arrays(filled(branching, 1), last=True), tmp_path / "net.h5")
    with pytest.raises(UnreadableError, match=r"norm, head read cannot be followed .* without branches"):
        load(filled(branching, 2), tmp_path / "net.h5")


def test_a_map_that_is_made_of_features_is_refused(tmp_path: Path) -> None:
    def unfolded(net: Net, images: Tensor) -> Tensor:
        maps = (net.norm(net.conv(images).flatten(1)) * 2).relu()
        return net.head(net.conv(functional.linear(maps, torch.ones(256, 18)).view(-1, 1, 16, 16)).flatten(1))

    write(arrays(filled(unfolded, 1), last=True), tmp_path / "net.h5")
    with pytest.raises(UnreadableError, match=r"makes a map of channels of a layer's features"):
        load(filled(unfolded, 2), tmp_path / "net.h5")


def test_pooled_channels_are_features() -> None:
    network = nn.Sequential(nn.Conv2d(1, 18, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(18, 3))
    assert flattened_maps(network, SHAPE) == {}
    averaged = filled(lambda net, x: net.head(net.norm(net.conv(x).mean((2, 3)).repeat(1, 9))), 1)
    assert flattened_maps(averaged, SHAPE) == {}


def test_the_file_that_keras_3_writes_is_read(tmp_path: Path) -> None:
    forward = FLATTENED["function"]
    with h5py.File(tmp_path / "net.weights.h5", "w") as file:
        for kind, (layer, named) in zip(
            ("conv2d", "batch_normalization", "dense"),
            arrays(filled(forward, 1), last=True).items(),
            strict=True,
        ):
            group = file.create_group(f"layers/{kind}/vars")
            group.attrs["name"] = layer
            for place, values in enumerate(named.values()):
                group[str(place)] = values
        file["layers/dropout/seed_generator/vars/0"] = np.zeros(2, dtype=np.uint32)
        file["optimizer/vars/0"] = np.zeros(3)
        file.create_group("vars")
    assert reads(filled(forward, 2), filled(forward, 1), tmp_path / "net.weights.h5")


def test_a_numbered_norm_of_three_arrays_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "net.weights.h5", "w") as file:
        file["layers/conv/vars/0"] = np.zeros((3, 3, 1, 2))
        file["layers/conv/vars/1"] = np.zeros(2)
        file["layers/head/vars/0"] = np.zeros((18, 3))
        for place in range(3):
            file[f"layers/norm/vars/{place}"] = np.zeros(2)
    with pytest.raises(UnreadableError, match=r"norm is a BatchNorm2d; the arrays given for it are 0 \(2,\)"):
        load(tiny(), tmp_path / "net.weights.h5")

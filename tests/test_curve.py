"""The curve against ten lines that prune one channel at a time and evaluate the whole network."""

import copy
import logging
import weakref
from collections.abc import Iterator, Sequence

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from finepruning.pruning import (
    Channel,
    add_mask,
    channel_count,
    cut_at,
    mean_activations,
    prune_alone,
    prune_order,
    set_pruned,
    step_predictions,
    validation_curve,
)


@torch.no_grad()
def one_by_one(network: nn.Module, images: Tensor, order: Sequence[Channel]) -> Tensor:
    layers = {layer for layer, _ in order}
    rows = [network(images).argmax(-1)]
    for step in range(1, len(order) + 1):
        for layer in layers:
            set_pruned(network, layer, [number for name, number in order[:step] if name == layer])
        rows.append(network(images).argmax(-1))
    for layer in layers:
        set_pruned(network, layer, [])
    return torch.stack(rows)


def trained_a_little(network: nn.Module, images: Tensor) -> nn.Module:
    """Statistics for BatchNorm and a spread of predictions, so that steps change something."""
    torch.manual_seed(1)
    with torch.no_grad():
        network.train()(images)
        for parameter in network.parameters():
            parameter += 0.1 * parameter.std().nan_to_num(0.1) * torch.randn_like(parameter)
        head = [layer for layer in network.eval().modules() if isinstance(layer, nn.Linear)][-1]
        head.bias -= network(images).mean(0)
    return network


def check(network: nn.Module, layers: Sequence[str], images: Tensor, every: int = 1) -> Tensor:
    network = trained_a_little(copy.deepcopy(network), images)
    for layer in layers:
        add_mask(network, layer, channel_count(network, layer, images.shape[1:]))
    order = prune_order(mean_activations(network, layers, [images]))[::every]
    expected = one_by_one(network, images, order)
    assert torch.equal(step_predictions(cut_at(network, layers), images, order), expected)
    return expected


class Block(nn.Module):
    def __init__(self, width: int, pre: bool) -> None:
        super().__init__()
        self.pre = pre
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        if self.pre:
            out = self.conv1(torch.relu(self.norm1(images)))
            return images + self.conv2(torch.relu(self.norm2(out)))
        out = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(images)))))
        out += images
        return self.relu(out)


def plain(norm: bool = True, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12) if norm else nn.Identity(), nn.ReLU(inplace=True)),
        *(nn.Conv2d(12, 12, 3, groups=groups), nn.ELU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12 * 36, 16), nn.ReLU(), nn.Linear(16, 7)),
    )


def residual(pre: bool) -> nn.Sequential:
    pool = nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3), Block(12, pre), Block(12, pre), pool, nn.Flatten(), nn.Linear(12, 7)
    )


class Branches(nn.Module):
    """Two parallel branches that are added, one of them also read by a convolution, as in DeepID."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 5, 3)
        self.late = nn.Conv2d(6, 4, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(6 * 36, 9), nn.Linear(5 * 36, 9), nn.Linear(4 * 16, 9)
        self.output = nn.Linear(9, 7)

    def forward(self, images: Tensor) -> Tensor:
        left, right = torch.relu(self.left(images)), torch.relu(self.right(images))
        left, right = nn.functional.max_pool2d(left, 2)[:, :, :6, :6], right[:, :, ::2, ::2]
        late = torch.relu(self.late(left))
        hidden = (
            self.fc1(left.flatten(1)) + self.fc2(right.reshape(right.size(0), -1)) + self.fc3(late.flatten(1))
        )
        return self.output(torch.relu(hidden))


IMAGES = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (plain(), ["5"]),
        (plain(norm=False), ["5"]),
        (plain(groups=3), ["2"]),
        (plain(groups=12), ["3"]),
        (plain(), ["1"]),
        (plain(), ["9"]),
        (residual(pre=False), ["2"]),
        (residual(pre=True), ["2"]),
        (residual(pre=True), ["1"]),
        (residual(pre=False), ["1.norm2"]),
        (plain(), ["2", "5"]),
        (plain(), ["5", "0"]),
        (residual(pre=True), ["1", "2.conv1"]),
        (Branches(), ["left"]),
        (Branches(), ["left", "right"]),
        (Branches(), ["left", "late", "right"]),
    ],
)
def test_the_curve_equals_pruning_one_channel_at_a_time(network: nn.Module, layers: list[str]) -> None:
    side = 16 if isinstance(network, nn.Sequential) else 14
    expected = check(network, layers, IMAGES[..., :side, :side])
    assert (expected[0] != expected[-1]).any()


@pytest.mark.parametrize(
    ("name", "layer", "count", "every"),
    [
        ("resnet18", "layer4", 8, 16),
        ("vgg11_bn", "features", 2, 32),  # its head has a hundred million weights
        ("mobilenet_v3_small", "features", 8, 32),
        ("convnext_tiny", "features.7", 8, 64),
    ],
)
def test_the_curve_of_torchvisions_networks_is_exact(name: str, layer: str, count: int, every: int) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=10)
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = check(network, [layer], images, every)
    assert len(expected) > 8


def test_channels_pruned_before_stay_pruned_in_the_curve() -> None:
    network = trained_a_little(plain(), IMAGES)
    add_mask(network, "5", 12)
    set_pruned(network, "5", [0, 3, 4])
    with torch.no_grad():
        now = network(IMAGES).argmax(-1)
    assert torch.equal(step_predictions(cut_at(network, ["5"]), IMAGES, [])[0], now)


class OfParameters(nn.Module):
    """A head by cosine and a temperature: what follows the pruned layer needs more than its features."""

    def __init__(self, temperature: bool) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(1, 8, 3), nn.ReLU()
        self.head = nn.Parameter(torch.randn(10, 8))
        self.temperature = nn.Parameter(torch.tensor(0.5)) if temperature else None

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.conv(images)).mean((2, 3))
        logits = functional.linear(functional.normalize(features), functional.normalize(self.head))
        return logits if self.temperature is None else logits * self.temperature.exp()


@pytest.mark.parametrize("temperature", [False, True])
@pytest.mark.parametrize("batch", [9, 10, 11])
def test_what_comes_of_parameters_alone_belongs_to_no_image(batch: int, temperature: bool) -> None:
    torch.manual_seed(0)
    network, images = OfParameters(temperature).eval(), torch.rand(batch, 1, 8, 8)
    add_mask(network, "relu", 8)
    order = [Channel("relu", number) for number in range(8)]
    expected = one_by_one(network, images, order)
    assert torch.equal(step_predictions(cut_at(network, ["relu"]), images, order), expected)


def test_batch_size_never_changes_a_prediction() -> None:
    network = trained_a_little(plain(), IMAGES)
    order = prune_order(mean_activations(network, ["5"], [IMAGES]))
    cut = cut_at(network, ["5"])
    whole = step_predictions(cut, IMAGES, order)
    parts = [step_predictions(cut, images, order) for images in IMAGES.split(7)]
    assert torch.equal(whole, torch.cat(parts, dim=1))


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = plain()

    def forward(self, images: Tensor) -> Tensor:
        if float(images.mean()) < -1e9:
            return images
        return self.layers(images)


@pytest.mark.parametrize("layers", [["layers.5"], ["layers.2", "layers.5"]])
def test_a_network_that_cannot_be_traced_is_run_whole_and_says_so(
    layers: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="finepruning"):
        check(Untraceable(), layers, IMAGES)
    assert caplog.text.count("cannot be cut") == 1


class WritesInPlace(nn.Module):
    """A statement whose result nobody uses: fx takes it for dead code."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 7)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images)
        pooled = self.pool(features).flatten(1)
        pooled.abs_().sqrt_()
        return self.head(pooled)


def test_a_network_whose_parts_disagree_with_it_is_run_whole(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="finepruning"):
        check(WritesInPlace(), ["conv"], IMAGES)
    assert "do not give its logits" in caplog.text


def test_a_layer_that_runs_twice_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    network.append(network[1])
    with pytest.raises(ValueError, match=r"runs 2 times in a pass.*defense\.layers"):
        cut_at(nn.Sequential(network), ["0.1"])


def test_the_validation_curve_counts_every_batch_and_keeps_the_mode() -> None:
    network = trained_a_little(plain(), IMAGES).train()
    labels = torch.arange(len(IMAGES)) % 7
    order = prune_order(mean_activations(network, ["5"], [IMAGES]))
    batches = list(zip(IMAGES.split(16), labels.split(16), strict=True))
    curve = validation_curve(network, ["5"], order, batches)
    add_mask(network, "5", 12)
    hits = (one_by_one(network.eval(), IMAGES, order) == labels).sum(1).tolist()
    assert [point.validation.hits for point in curve] == hits
    assert {point.validation.total for point in curve} == {40}
    assert validation_curve(network.train(), ["5"], order, batches) == curve
    assert network.training


def test_each_layer_alone_has_a_curve_of_its_own() -> None:
    network = trained_a_little(plain(), IMAGES)
    batches = [(IMAGES, torch.arange(40) % 7)]
    curves = prune_alone(network, ["2", "5"], lambda: iter(batches))
    assert list(curves) == ["2", "5"]
    order = prune_order(mean_activations(network, ["2"], [IMAGES]))
    assert curves["2"] == validation_curve(network, ["2"], order, batches)


def test_a_curve_of_every_channel_passes_each_batch_through_the_front_once() -> None:
    network = trained_a_little(plain(), IMAGES)
    add_mask(network, "5", 12)
    passed: list[int] = []
    network[0].register_forward_hook(lambda _, inputs, __: passed.append(len(inputs[0])))
    order = prune_order(mean_activations(network, ["5"], [IMAGES]))
    del passed[:]
    labels = torch.zeros(40, dtype=torch.long)
    curve = validation_curve(network, ["5"], order, zip(IMAGES.split(10), labels.split(10), strict=True))
    assert len(curve) == 13
    assert passed[-4:] == [10] * 4
    assert sum(passed[:-4]) <= 8  # a few images check the cut first


def test_activations_are_summed_up_batch_by_batch() -> None:
    network, outputs = plain(), []
    network[5].register_forward_hook(lambda _, __, output: outputs.append(weakref.ref(output)))
    alive: list[int] = []

    def batches() -> Iterator[Tensor]:
        for images in IMAGES.split(10):
            yield images
            alive.append(sum(output() is not None for output in outputs))

    means = mean_activations(network, ["5"], batches())
    assert len(outputs) == 4
    assert max(alive) <= 1
    torch.testing.assert_close(means["5"], mean_activations(network, ["5"], [IMAGES])["5"])

"""What a pruning curve costs: every channel of a layer, against one evaluation pass over the same images."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from finepruning.networks import Normalise
from finepruning.pruning import (
    add_mask,
    channel_count,
    cut_at,
    mean_activations,
    prune_order,
    set_pruned,
    step_predictions,
)

ROUNDS = 5
BATCH = 256


class PreActBlock(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = (
            nn.Conv2d(channels, width, 1, stride, bias=False) if stride > 1 or channels != width else None
        )

    def forward(self, images: Tensor) -> Tensor:
        out = torch.relu(self.bn1(images))
        skip = images if self.shortcut is None else self.shortcut(out)
        return self.conv2(torch.relu(self.bn2(self.conv1(out)))) + skip


def preact_resnet18() -> nn.Module:
    blocks, channels = [], 64
    for width, stride in [(64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)]:
        blocks.append(PreActBlock(channels, width, stride))
        channels = width
    return nn.Sequential(
        Normalise([0.5] * 3, [0.25] * 3),
        nn.Conv2d(3, 64, 3, 1, 1, bias=False),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def sign_cnn() -> nn.Module:
    layers: list[nn.Module] = [Normalise([0.5] * 3, [0.25] * 3)]
    channels = 3
    for width, pool in [(32, False), (64, True), (128, True), (128, True)]:
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 43))


class DeepID(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.normalise = Normalise([0.5] * 3, [0.25] * 3)
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 20, 4), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(20, 40, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(40, 60, 3), nn.ReLU(), nn.MaxPool2d(2)),
        )
        self.conv4 = nn.Conv2d(60, 80, 2)
        self.fc1, self.fc2 = nn.Linear(60 * 5 * 4, 160), nn.Linear(80 * 4 * 3, 160)
        self.output = nn.Linear(160, 1283)

    def forward(self, images: Tensor) -> Tensor:
        pooled = self.features(self.normalise(images))
        late = torch.relu(self.conv4(pooled)).flatten(1)
        hidden = torch.relu(self.fc1(pooled.flatten(1)) + self.fc2(late))
        return self.output(nn.functional.dropout(hidden, 0.5, self.training))


def _ready(network: nn.Module, layer: str, images: Tensor) -> tuple[nn.Module, list]:
    network.train()
    with torch.no_grad():
        network(images)  # BatchNorm gets statistics, so that features look like a network's
    network.eval()
    order = prune_order(mean_activations(network, [layer], [images]))
    return network, order


def _over_one_pass(
    make: Callable[[], nn.Module], layer: str, shape: tuple[int, int, int], count: int
) -> float:
    """Median over rounds of: the curve of three sets of images, over one pass of the same images."""
    torch.manual_seed(0)
    batches = [torch.rand(BATCH, *shape) for _ in range(count)]
    network, order = _ready(make(), layer, batches[0][:64])

    def one_pass() -> None:
        with torch.no_grad():
            for images in batches:
                network(images).argmax(-1)

    def curve() -> None:
        cut = cut_at(network, [layer])
        for images in batches:
            step_predictions(cut, images, order)

    return _median_ratio(curve, one_pass)


def _median_ratio(numerator: Callable[[], None], denominator: Callable[[], None]) -> float:
    """Interleave both, so that a busy machine slows both; the first round warms up."""
    ratios = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        denominator()
        middle = time.perf_counter()
        numerator()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    return statistics.median(ratios[1:])


def _naive_over_ours() -> float:
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, 32, 32)
    layer, steps = "15", 20
    network, order = _ready(sign_cnn(), layer, images[:64])
    add_mask(network, layer, channel_count(network, layer, (3, 32, 32)))

    def naive() -> None:
        with torch.no_grad():
            for step in range(steps):
                set_pruned(network, layer, [channel.number for channel in order[:step]])
                network(images).argmax(-1)
        set_pruned(network, layer, [])

    def ours() -> None:
        step_predictions(cut_at(network, [layer]), images, order)

    return _median_ratio(naive, ours) * (len(order) + 1) / steps


FIGURES: dict[str, Callable[[], float]] = {
    "curve.preact_resnet18.over_one_pass": lambda: _over_one_pass(preact_resnet18, "9", (3, 32, 32), 1),
    "curve.sign_cnn.over_one_pass": lambda: _over_one_pass(sign_cnn, "15", (3, 32, 32), 4),
    "curve.deepid.over_one_pass": lambda: _over_one_pass(DeepID, "features.8", (3, 55, 47), 4),
    "curve.middle_layer.over_one_pass": lambda: _over_one_pass(sign_cnn, "11", (3, 32, 32), 1),
    "curve.sign_cnn.naive_over_ours": _naive_over_ours,
}

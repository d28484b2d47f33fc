"""What a pruning curve costs: every channel of a layer, against one evaluation pass over the same images."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from finepruning.attacks import Attack
from finepruning.attacks.triggers import PatchTrigger
from finepruning.data import ImageSet, pack
from finepruning.data.signs import GTSRB
from finepruning.networks import DeepID, PreActResNet18, SignCNN
from finepruning.pruning import (
    add_mask,
    channel_count,
    cut_at,
    mean_activations,
    prune_order,
    set_pruned,
    step_predictions,
)
from finepruning.referee import score_steps

ROUNDS = 5
BATCH = 256
STATISTICS = ([0.5] * 3, [0.25] * 3)  # mean and deviation of each channel
SIGNS, FACES = (3, 32, 32), (3, 55, 47)


def _ready(network: nn.Module, layer: str, images: Tensor) -> tuple[nn.Module, list]:
    network.train()
    with torch.no_grad():
        network(images)  # BatchNorm gets statistics, so that features look like a network's
    network.eval()
    order = prune_order(mean_activations(network, [layer], [images]))
    return network, order


def _over_one_pass(
    make: Callable[..., nn.Module], classes: int, layer: str, shape: tuple[int, int, int], count: int
) -> float:
    """Median over rounds of: the curve of three sets of images, over one pass of the same images."""
    torch.manual_seed(0)
    batches = [torch.rand(BATCH, *shape) for _ in range(count)]
    network, order = _ready(make(shape, classes, *STATISTICS), layer, batches[0][:64])

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
    """Compare processor time on one thread, which other programs hardly change, in turns.

    The first round warms up.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ratios = []
    for _ in range(ROUNDS + 1):
        start = time.process_time()
        denominator()
        middle = time.process_time()
        numerator()
        ratios.append((time.process_time() - middle) / (middle - start))
    torch.set_num_threads(threads)
    return statistics.median(ratios[1:])


def _naive_over_ours() -> float:
    torch.manual_seed(0)
    images = torch.rand(BATCH, 3, 32, 32)
    layer, steps = "features.pool4", 20
    network, order = _ready(SignCNN(SIGNS, 43, *STATISTICS), layer, images[:64])
    add_mask(network, layer, channel_count(network, layer, SIGNS))

    def naive() -> None:
        with torch.no_grad():
            for step in range(steps):
                set_pruned(network, layer, [channel.number for channel in order[:step]])
                network(images).argmax(-1)
        set_pruned(network, layer, [])

    def ours() -> None:
        step_predictions(cut_at(network, [layer]), images, order)

    return _median_ratio(naive, ours) * (len(order) + 1) / steps


def _gtsrb_memory() -> float:
    """Peak memory of the referee's curve on GTSRB above what the data takes, in MiB, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        pack(GTSRB("data", [32, 32], "fail"), Path(folder))
        code = f"from tests.bench_curve import print_gtsrb_memory; print_gtsrb_memory({folder!r})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def print_gtsrb_memory(cache_dir: str) -> None:
    """Walk the curve of all test images, clean and triggered, and print how much memory that took."""
    packed = pack(GTSRB("data", [32, 32], "fail"), Path(cache_dir))
    test = ImageSet.whole(packed.test, packed.test_labels, packed.signal)
    packed.train.sum(), packed.test.sum()  # now all of it is in memory
    layer = "features.pool4"
    some = next(test.batches(64))[0]
    network, order = _ready(SignCNN(SIGNS, 43, *STATISTICS), layer, some)
    attack = Attack(PatchTrigger(3, 1.0), poison_rate=0.1, target_label=0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    score_steps(network, [layer], order, test, attack)
    print((memory("VmHWM") - before) / 1024)


def memory(name: str) -> int:
    """Return a line of Linux's account of this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


FIGURES: dict[str, Callable[[], float]] = {
    "curve.preact_resnet18.over_one_pass": lambda: _over_one_pass(PreActResNet18, 43, "relu", SIGNS, 1),
    "curve.sign_cnn.over_one_pass": lambda: _over_one_pass(SignCNN, 43, "features.pool4", SIGNS, 4),
    "curve.deepid.over_one_pass": lambda: _over_one_pass(DeepID, 1283, "pool3", FACES, 4),
    "curve.middle_layer.over_one_pass": lambda: _over_one_pass(SignCNN, 43, "features.relu2", SIGNS, 1),
    "curve.sign_cnn.naive_over_ours": _naive_over_ours,
    "curve.gtsrb.memory_mb": _gtsrb_memory,
}

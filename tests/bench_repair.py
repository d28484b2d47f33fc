"""What inspection and unlearning cost, against their plain counterparts, on the sign network."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from finepruning.data import DefenderData, ImageSet
from finepruning.data.images import Pixels
from finepruning.modules import FinePrunedClassifier, UnlearnedClassifier
from finepruning.networks import SignCNN
from finepruning.pipeline.resolvers import cpu_precision
from finepruning.repair import Inspection, Search, invert
from tests.bench_curve import memory

ROUNDS = 3
CLASSES = 43
SHAPE = (3, 32, 32)
SEARCH = Search(steps=20, precision=cpu_precision())
TUNING = 1470  # images: three quarters of 5 % of GTSRB
EPOCHS = 15


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = SignCNN(SHAPE, CLASSES, [0.5] * 3, [0.25] * 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        network(torch.rand(64, *SHAPE))  # BatchNorm gets statistics
    return network.eval()


def _images(count: int = 256) -> tuple[Tensor, Tensor]:
    return torch.rand(count, *SHAPE), torch.randint(CLASSES, (count,))


def _one_by_one_over_all() -> float:
    network, (images, labels) = _network(), _images()

    def one_by_one() -> None:
        for label in range(CLASSES):
            invert(network, images, labels, [label], "additive", SEARCH)

    def all_at_once() -> None:
        invert(network, images, labels, range(CLASSES), "additive", SEARCH)

    return _median_ratio(one_by_one, all_at_once)


def _unlearn_over_finetune() -> float:
    images, labels = _images()
    tuned = FinePrunedClassifier(_network(), [], SHAPE, learning_rate=0.01)
    unlearned = UnlearnedClassifier(_network(), [], SHAPE, learning_rate=0.01)
    unlearned.setup("fit")
    unlearned.teacher.eval()
    unlearned.trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)

    def epoch(module: FinePrunedClassifier) -> Callable[[], None]:
        optimizer = torch.optim.SGD(module.network.parameters(), 0.01, momentum=0.9)

        def run() -> None:
            module.network.train()
            for start in range(0, len(images), 128):
                batch = images[start : start + 128], labels[start : start + 128]
                optimizer.zero_grad()
                module.training_step(batch, 0).backward()
                optimizer.step()

        return run

    return _median_ratio(epoch(unlearned), epoch(tuned))


def _inspect_seconds() -> float:
    """Both inversions of an untrained network, which are the longest: no class settles early."""
    network, (images, labels) = _network(), _images(TUNING)
    inspection = Inspection(search={"precision": cpu_precision()})
    start = time.perf_counter()
    inspection.rank(network, images, labels, range(CLASSES))
    return time.perf_counter() - start


def _tuning_seconds() -> float:
    """One tuning of a rung, of which there are as many as folds."""
    images, labels = _images(TUNING)
    held = ImageSet.whole((255 * images).to(torch.uint8), labels, Pixels())
    module = UnlearnedClassifier(_network(), [], SHAPE, learning_rate=0.01)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        precision=cpu_precision(),
        max_epochs=EPOCHS,
        limit_val_batches=0,
        enable_model_summary=False,
        **quiet,
    )
    start = time.perf_counter()
    trainer.fit(module, datamodule=DefenderData(held, held, 128, 0))
    return time.perf_counter() - start


def _memory_of_many_over_few() -> float:
    """Peak memory of a search on 2,048 images over that on 256, beside the images, in fresh processes."""
    peaks = []
    for count in (2048, 256):
        code = f"from tests.bench_repair import print_search_memory; print_search_memory({count})"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        peaks.append(float(done.stdout.split()[-1]))
    return peaks[0] / peaks[1]


def print_search_memory(count: int) -> None:
    """Search all classes on so many images, and print how many KiB that took."""
    network, (images, labels) = _network(), _images(count)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    invert(network, images, labels, range(CLASSES), "mask", SEARCH)
    print(memory("VmHWM") - before)


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


FIGURES: dict[str, Callable[[], float]] = {
    "repair.inspect.one_by_one_over_all": _one_by_one_over_all,
    "repair.inspect.signs_s": _inspect_seconds,
    "repair.inspect.memory_2048_over_256": _memory_of_many_over_few,
    "repair.unlearn.over_finetune": _unlearn_over_finetune,
    "repair.unlearn.tuning_s": _tuning_seconds,
}

"""What inspection and unlearning cost, against their plain counterparts, on the sign network."""

import statistics
import time
from collections.abc import Callable

import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn

from finepruning.modules import FinePrunedClassifier, UnlearnedClassifier
from finepruning.networks import SignCNN
from finepruning.pipeline.resolvers import cpu_precision
from finepruning.repair import Search, invert

ROUNDS = 3
CLASSES = 43
SHAPE = (3, 32, 32)
SEARCH = Search(steps=20, precision=cpu_precision())


def _network() -> nn.Module:
    torch.manual_seed(0)
    network = SignCNN(SHAPE, CLASSES, [0.5] * 3, [0.25] * 3).to(memory_format=torch.channels_last)
    with torch.no_grad():
        network(torch.rand(64, *SHAPE))  # BatchNorm gets statistics
    return network.eval()


def _images() -> tuple[Tensor, Tensor]:
    return torch.rand(256, *SHAPE), torch.randint(CLASSES, (256,))


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
    "repair.unlearn.over_finetune": _unlearn_over_finetune,
}

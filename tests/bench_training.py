"""How fast training is, beside loops that do without this framework.

Both sides of a ratio train the same network with the same optimizer, batches and number of threads, in turns.
A side's speed is images per second of training, without set-up; the ratio is the median over the rounds.
"""

import functools
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import GTSRB
from torchvision.datasets import MNIST as TorchvisionMNIST  # noqa: N811 - a data set's name

from finepruning.data import AttackerData, Augment, ImageSet
from finepruning.data.images import Pixels
from finepruning.data.packed import data_roots
from finepruning.modules import CleanClassifier
from finepruning.networks import BadNetsCNN, SignCNN
from finepruning.pipeline.devices import keep_freed_memory

BATCH_SIZE = 128
LEARNING_RATE = 0.05
WORKERS = 2  # processes of the PIL loader
THREADS = 2  # as trainer.threads of these data sets
ROUNDS = 9  # short ones, so that the two sides meet the same noise
SHIFT = 2  # pixels, of the augmentation of signs

Side = Callable[[], float]


def _ratio(ours: Side, theirs: Side) -> float:
    """Return the median of ours over theirs, after a round that is not counted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        return statistics.median([ours() / theirs() for _ in range(ROUNDS + 1)][1:])
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _mnist() -> ImageSet:
    digits = TorchvisionMNIST(_root("MNIST"), train=True)
    return ImageSet.whole(digits.data[:4096, None].contiguous(), digits.targets[:4096], Pixels())


@functools.cache
def _sign_files() -> Subset[tuple[Tensor, int]]:
    """Every tenth sign, decoded, enlarged and changed one by one, as the usual recipes do."""
    recipe = transforms.Compose(
        [
            transforms.Resize((32, 32)),
            transforms.RandomCrop(32, SHIFT, padding_mode="edge"),
            transforms.ToTensor(),
        ]
    )
    signs = GTSRB(_root("gtsrb"), transform=recipe)
    return Subset(signs, range(0, len(signs), 10))


@functools.cache
def _signs(side: int = 32) -> ImageSet:
    files = _sign_files()
    recipe = transforms.Compose([transforms.Resize((side, side)), transforms.PILToTensor()])
    plain = GTSRB(_root("gtsrb"), transform=recipe)
    images, labels = zip(*(plain[index] for index in files.indices), strict=True)
    return ImageSet.whole(torch.stack(images), torch.tensor(labels), Pixels())


def _root(folder: str) -> str:
    """Return the place of a data set; without one there is nothing to measure."""
    for root in data_roots("data"):
        if (root / folder).is_dir():
            return str(root)
    raise FileNotFoundError(f"There is no {folder} in data. Set FINEPRUNING_DATA to a folder that holds it.")


class _Stopwatch(Callback):
    """Counts the seconds from the first batch to the last."""

    seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = -time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds += time.perf_counter()


def _with_lightning(network: nn.Module, images: ImageSet, augment: nn.Module | None, precision: str) -> float:
    """Return images/s of an epoch as a run trains it."""
    watch = _Stopwatch()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            precision=precision,  # type: ignore[arg-type]
            callbacks=[watch],
            logger=CSVLogger(folder),
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            log_every_n_steps=50,
        )
        module = CleanClassifier(network, learning_rate=LEARNING_RATE, channels_last=True)
        trainer.fit(module, datamodule=AttackerData(images, [images], BATCH_SIZE, 0, augment))
    return len(images) // BATCH_SIZE * BATCH_SIZE / watch.seconds


def _with_a_loop(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], steps: int, precision: str
) -> float:
    """Return images/s of an epoch in ten lines of PyTorch."""
    optimizer = torch.optim.SGD(network.parameters(), LEARNING_RATE, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps + 1)
    network.train()
    count = 0
    start = time.perf_counter()
    for images, labels in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        count += len(images)
    return count / (time.perf_counter() - start)


def _batches(images: ImageSet, augment: nn.Module | None) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in torch.randperm(len(images)).split(BATCH_SIZE)[:-1]:
        batch = images.raw[rows].float() / 255
        yield batch if augment is None else augment(batch), images.labels[rows]


def _over_bare_loop(
    make: Callable[[], nn.Module], images: ImageSet, augment: nn.Module | None, precision: str
) -> float:
    """Return our speed over a loop on the same tensor, in the same layout and precision."""
    steps = len(images) // BATCH_SIZE
    return _ratio(
        lambda: _with_lightning(make(), images, augment, precision),
        lambda: _with_a_loop(
            make().to(memory_format=torch.channels_last), _batches(images, augment), steps, precision
        ),
    )


def _sign_network(side: int = 32) -> nn.Module:
    return SignCNN((3, side, side), 43, [0.35] * 3, [0.27] * 3)


def mnist_over_bare_loop() -> float:
    """BadNets' network on MNIST, float32; ours over a bare loop."""
    return _over_bare_loop(lambda: BadNetsCNN((1, 28, 28), 10, [0.13], [0.31]), _mnist(), None, "32-true")


def gtsrb_over_bare_loop() -> float:
    """The sign network on GTSRB with augmentation, bfloat16; ours over a bare loop."""
    return _over_bare_loop(_sign_network, _signs(), Augment(SHIFT), "bf16-mixed")


def gtsrb_over_pil_loader() -> float:
    """The sign network on GTSRB, trained as we ship it, over the usual recipe at PyTorch's defaults.

    The network is part of both sides. Theirs decodes, crops and converts image by image in two processes, and
    trains in float32 and the default layout; ours reads a packed tensor and trains channels-last in bfloat16.
    """
    loader = DataLoader(
        _sign_files(), BATCH_SIZE, shuffle=True, num_workers=WORKERS, drop_last=True, persistent_workers=True
    )
    return _ratio(
        lambda: _with_lightning(_sign_network(), _signs(), Augment(SHIFT), "bf16-mixed"),
        lambda: _with_a_loop(_sign_network(), loader, len(loader), "32-true"),
    )


def _shipped_signs() -> float:
    """Return images/s of the sign network in float32, at the size of images that GTSRB has in runs."""
    torch.set_num_threads(THREADS)
    return _with_lightning(_sign_network(48), _signs(48), Augment(SHIFT), "32-true")


def gtsrb_kept_over_given_back() -> float:
    """Freed memory kept, as in runs, over the C library's own habit; each side in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, context, keep_freed_memory) as kept,
        ProcessPoolExecutor(1, context) as given_back,
    ):
        return _ratio(
            lambda: kept.submit(_shipped_signs).result(), lambda: given_back.submit(_shipped_signs).result()
        )


FIGURES: dict[str, Callable[[], float]] = {
    "train.mnist.over_bare_loop": mnist_over_bare_loop,
    "train.gtsrb.over_bare_loop": gtsrb_over_bare_loop,
    "train.gtsrb.over_pil_loader": gtsrb_over_pil_loader,
    "train.gtsrb.kept_over_given_back": gtsrb_kept_over_given_back,
}

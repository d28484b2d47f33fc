"""What the attacker's room costs."""

import time
from collections.abc import Callable

import torch
from torch import nn

from finepruning.attacks import Attack
from finepruning.attacks.triggers import DrawnTrigger
from finepruning.data.images import ImageSet, Pixels, RawBatch

IMAGES, BATCH_SIZE, CLASSES = 1280, 128, 43  # a part of an epoch; GTSRB's shape, random values


def trigger_overhead() -> float:
    """Return the share by which triggering a tenth of the images, at random places, prolongs training."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    clean = ImageSet.whole(raw, labels, Pixels())
    bomb = DrawnTrigger("bomb", 0.16, between=[0.15, 0.85])
    sets = [clean, Attack(bomb, poison_rate=0.10, target_label=0).poison(clean)]
    steps = [_training_step(images) for images in sets]
    seconds: list[list[float]] = [[], []]
    for batch in range(3 * IMAGES // BATCH_SIZE):  # in turns, so that a busy machine slows both
        rows = torch.arange(BATCH_SIZE) + batch * BATCH_SIZE % IMAGES
        for step, taken in zip(steps, seconds, strict=True):
            start = time.perf_counter()
            step(rows)
            taken.append(time.perf_counter() - start)
    without, triggered = (sum(sorted(taken)[: len(taken) // 2]) for taken in seconds)
    return triggered / without - 1


def _training_step(images: ImageSet) -> Callable[[torch.Tensor], None]:
    """Return a function that trains on the rows it is given, from packed bytes to the optimizer's step."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 128), (128, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, CLASSES)).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(network.parameters(), 0.01)

    def step(rows: torch.Tensor) -> None:
        batch: RawBatch = images[rows]
        inputs = images.to_images(batch).contiguous(memory_format=torch.channels_last)
        loss = nn.functional.cross_entropy(network(inputs), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


FIGURES: dict[str, Callable[[], float]] = {"attack.gtsrb.trigger_overhead": trigger_overhead}

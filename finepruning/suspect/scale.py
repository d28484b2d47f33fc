"""What a stranger's network takes for white, and a warning where the guess looks wrong."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from finepruning.data import ImageSet, channel_statistics
from finepruning.metrics import Rate, clean_hits
from finepruning.networks import Normalise

LOW = 0.5  # accuracy on the defender's images below which the input is doubted
BETTER = 0.1  # gain in accuracy from which another scale is named
SAMPLE = 512  # images that are tried
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # mean and deviation, of torchvision's networks


def normalisation(
    white: Literal[1, 255], mean: float | Sequence[float], std: float | Sequence[float], channels: int
) -> dict[str, list[float]]:
    """Return the mean and deviation, in [0, 1], that give a network the input it was trained with.

    Args:
        white: What it takes for white, 1 or 255.
        mean: Subtracted from its input, in units where white is ``white``; one number or one a channel.
        std: What it is divided by then, above 0, in the same units; likewise.
        channels: Channels of the images.

    Raises:
        ValueError: If a value is out of range.
    """
    if white not in (1, 255):
        raise ValueError(f"suspect.white={white} is unknown; a network takes 1 or 255 for white.")
    result = {}
    for key, given in (("mean", mean), ("std", std)):
        values = [float(given)] if isinstance(given, int | float) else [float(value) for value in given]
        if len(values) not in (1, channels):
            raise ValueError(
                f"suspect.{key} has {len(values)} numbers, and images have {channels} channels. Give it one, "
                "or one a channel."
            )
        result[key] = [value / white for value in (values * channels if len(values) == 1 else values)]
    if min(result["std"]) <= 0:
        raise ValueError(f"suspect.std={std} must be above 0.")
    return result


@torch.no_grad()
def scale_warning(network: nn.Module, images: ImageSet, num_classes: int) -> str | None:
    """Return what to say if a stranger's network does badly, or would do better on inputs of another scale.

    Args:
        network: The suspect.
        images: Clean images of the defender.
        num_classes: Number of classes.
    """
    images = images.subset(torch.arange(len(images))[:: max(1, len(images) // SAMPLE)])
    accuracy = best = _accuracy(network, images)
    better = ""
    if accuracy.value + BETTER < 1:
        for keys, mean, std in _usual(images):
            with _normalised(network, mean, std):
                other = _accuracy(network, images)
            if other.value > max(best.value, accuracy.value + BETTER):
                best, better = other, f" With {keys} it would be {other.value:.1%}."
    if accuracy.value >= LOW and not better:
        return None
    return (
        f"The suspect classifies {accuracy.hits} of {accuracy.total} clean validation images correctly "
        f"({accuracy.value:.1%}; chance is {1 / num_classes:.1%}). Its input may be scaled wrongly: check "
        f"suspect.white, suspect.mean and suspect.std.{better} Or the labels are not those that it was "
        "trained with."
    )


def _usual(images: ImageSet) -> Iterator[tuple[str, list[float], list[float]]]:
    """Yield what networks are usually fed: keys with their values, and mean and deviation in [0, 1]."""
    channels = images.image_shape[0]
    yield "suspect.white=1 suspect.mean=0 suspect.std=1", [0.0] * channels, [1.0] * channels
    yield "suspect.white=255 suspect.mean=0 suspect.std=1", [0.0] * channels, [1 / 255] * channels
    yield "suspect.white=1 suspect.mean=0.5 suspect.std=0.5", [0.5] * channels, [0.5] * channels
    for mean, std in (channel_statistics(images), *([IMAGENET] if channels == 3 else [])):
        mean, std = ([round(value, 3) for value in values] for values in (mean, std))
        listed = (",".join(f"{value:g}" for value in values) for values in (mean, std))
        yield "suspect.white=1 suspect.mean=[{}] suspect.std=[{}]".format(*listed), mean, std


def _accuracy(network: nn.Module, images: ImageSet) -> Rate:
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    network.eval()
    hits = sum(int(clean_hits(network(x).argmax(-1), y)[0]) for x, y in images.batches(device=device))
    return Rate(hits, len(images))


@contextmanager
def _normalised(network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> Iterator[None]:
    """Let a network see inputs of another scale for a while."""
    layers = [layer for layer in network.modules() if isinstance(layer, Normalise)]
    kept = [(layer.mean.clone(), layer.std.clone()) for layer in layers]
    for layer in layers:
        layer.mean.copy_(torch.tensor(mean).view_as(layer.mean))
        layer.std.copy_(torch.tensor(std).view_as(layer.std))
    try:
        yield
    finally:
        for layer, (mean_before, std_before) in zip(layers, kept, strict=True):
            layer.mean.copy_(mean_before)
            layer.std.copy_(std_before)

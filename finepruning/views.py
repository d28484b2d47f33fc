"""What is seen while the referee scores, and decides nothing: activations, confusions, example images."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import resize
from torchvision.utils import make_grid

from finepruning.attacks.preview import LEGIBLE, contact_sheet
from finepruning.data import ImageSet
from finepruning.pruning import before_relu, image_means
from finepruning.referee import Triggering

FOLDER = "views"
EXAMPLES = 5  # images on the sheet
MOST_CLASSES = 100  # of a confusion matrix
MOST_FILTERS = 128
FILTER_SIDE = 32  # pixels, the least side of a filter's picture
MOST_BYTES = 60_000  # of a picture's file


class Watch:
    """Keep what passes through a network while it is scored: clean test images first, then triggered ones.

    Args:
        network: Images -> logits (B, K).
        layers: Names of the layers whose channels are watched.
        labels: (N,) true classes of the clean images, in the order in which they come.
    """

    def __init__(self, network: nn.Module, layers: Sequence[str], labels: Tensor) -> None:
        self.labels = labels
        self._rectified = before_relu(network, layers)
        self._hooks = [(network.get_submodule(layer), self._add_channels(layer)) for layer in layers]
        self._hooks.append((network, self._add_predictions))
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._sums: dict[str, list[Tensor | float]] = {layer: [0.0, 0.0] for layer in layers}
        self._seen = [0, 0]  # clean, triggered
        self._predictions: list[Tensor] = []
        self._classes = 0

    def __enter__(self) -> "Watch":
        """Begin."""
        self._handles = [module.register_forward_hook(hook) for module, hook in self._hooks]
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        for handle in self._handles:
            handle.remove()

    def activations(self, pruned: Mapping[str, Sequence[int]]) -> list[dict[str, Any]]:
        """Return each channel's mean output on clean and on triggered images; empty without the latter.

        Args:
            pruned: Each layer's channels that the defense took.
        """
        if not self._seen[1]:
            return []
        rows = []
        for layer, sums in self._sums.items():
            means = [torch.as_tensor(sums[kind]).cpu() / self._seen[kind] for kind in (0, 1)]
            for number, (clean, triggered) in enumerate(zip(*(mean.tolist() for mean in means), strict=True)):
                values = {
                    "clean": _rounded(clean),
                    "triggered": _rounded(triggered),
                    "pruned": number in pruned.get(layer, ()),
                }
                rows.append({"layer": layer, "number": number, **values})
        return rows

    def confusion(self) -> list[list[int]] | None:
        """Return how many clean images of each class (row) were taken for which (column).

        None beyond 100 classes.
        """
        if self._classes > MOST_CLASSES:
            return None
        cells = self.labels.cpu() * self._classes + torch.cat(self._predictions).cpu()
        counts = torch.bincount(cells, minlength=self._classes**2)
        return counts.view(self._classes, self._classes).tolist()

    @property
    def _kind(self) -> int:
        return 0 if self._seen[0] < len(self.labels) else 1

    def _add_channels(self, layer: str) -> Any:
        def add(_: nn.Module, __: object, output: Tensor) -> None:
            per_image = image_means(output.relu() if layer in self._rectified else output)
            sums = self._sums[layer]
            sums[self._kind] = sums[self._kind] + per_image.sum(0)

        return add

    def _add_predictions(self, _: nn.Module, __: object, logits: Tensor) -> None:
        if self._kind == 0:
            self._predictions.append(logits.argmax(-1))
            self._classes = logits.shape[-1]
        self._seen[self._kind] += len(logits)


def watched_layers(network: nn.Module, pruned: Sequence[str]) -> list[str]:
    """Return the layers to watch: those that a defense prunes, or the network's own choice, if it has one."""
    try:
        return list(pruned) or [str(network.pruned_layer)]
    except (AttributeError, ValueError):  # a stranger's network need not name one
        return []


def to_record(
    watches: Mapping[str, Watch],
    pruned: Mapping[str, Sequence[int]],
    network: nn.Module,
    test: ImageSet,
    attack: Triggering | None,
    place: Path,
) -> dict[str, Any]:
    """Return what a record keeps of all this, and write the pictures.

    Args:
        watches: Of the suspect and, after a defense, of the defended network.
        pruned: Each layer's channels that the defense took.
        network: The suspect.
        test: The clean test images.
        attack: The attack, or None.
        place: The run's folder.
    """
    kept: dict[str, Any] = {
        "activations": watches["suspect"].activations(pruned),
        "views": write_pictures(network, test, attack, place),
    }
    confusion = {name: watch.confusion() for name, watch in watches.items()}
    confusion.setdefault("defended", confusion["suspect"])
    return kept if None in confusion.values() else kept | {"confusion": confusion}


def write_pictures(
    network: nn.Module, test: ImageSet, attack: Triggering | None, place: Path
) -> dict[str, str]:
    """Write example images and the filters of the first convolution; return each file within ``place``."""
    pictures = {"examples": example_sheet(test, attack)}
    filters = filter_sheet(network)
    if filters is not None:
        pictures["filters"] = filters
    (place / FOLDER).mkdir(parents=True, exist_ok=True)
    files = {name: f"{FOLDER}/{name}.png" for name in pictures}
    for name, picture in pictures.items():
        (place / files[name]).write_bytes(small_png(picture))
    return files


def example_sheet(test: ImageSet, attack: Triggering | None) -> Tensor:
    """Return a picture (3, H, W) of some test images: clean, triggered, and the difference, a row each.

    Without an attack there is one row; a stranger's triggered images have no clean twins to differ from.
    """
    if attack is None:
        return _sheet(_legible(_some(test)), EXAMPLES, LEGIBLE)
    stamped = attack.stamp(test)
    if stamped.raw is not test.raw:
        return _sheet(torch.cat([_legible(_some(test)), _legible(_some(stamped))]), EXAMPLES, LEGIBLE)
    turned = test.subset((attack.wanted(test) != test.labels).nonzero().squeeze(1))
    return contact_sheet(_legible(_some(turned)), _legible(_some(attack.stamp(turned))))


def filter_sheet(network: nn.Module) -> Tensor | None:
    """Return a picture (3, H, W) of the first convolution's filters; None without one.

    Brightness is a weight over the largest one, grey where it is 0. Filters of other than 1 or 3
    input channels are averaged over them.
    """
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None:
        return None
    weight = first.weight.detach().float().cpu()[:MOST_FILTERS]
    if weight.shape[1] not in (1, 3):
        weight = weight.mean(1, keepdim=True)
    scaled = weight / weight.abs().max().clamp(min=1e-12) / 2 + 0.5
    return _sheet(scaled, 8 if len(weight) <= 64 else 16, FILTER_SIDE)


def small_png(picture: Tensor) -> bytes:
    """Return a picture (3, H, W) in [0, 1] as a PNG of at most 60 kB, with fewer colours if it must be."""
    pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels)
    if (pixels == pixels[..., :1]).all():
        image = image.convert("L")
    tries = [image, *(image.quantize(colours) for colours in (128, 32, 8, 2))]
    for smaller in tries:
        buffer = io.BytesIO()
        smaller.save(buffer, "PNG")
        if buffer.tell() <= MOST_BYTES:
            break
    return buffer.getvalue()


def _rounded(value: float) -> float | None:
    """Return six digits, so that the order of a sum leaves no trace; None if it is not a number."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _some(images: ImageSet) -> Tensor:
    """Return a few images (B, C, H, W) from all over a set."""
    rows = torch.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).long()
    return next(images.subset(rows).batches(EXAMPLES))[0].cpu()


def _legible(images: Tensor) -> Tensor:
    """Return large images made smaller."""
    height, width = images.shape[-2:]
    shrink = max(height / LEGIBLE, width / (2 * LEGIBLE), 1)
    return resize(images, [round(height / shrink), round(width / shrink)]) if shrink > 1 else images


def _sheet(pictures: Tensor, columns: int, side: int) -> Tensor:
    """Return pictures (B, C, H, W) side by side, each enlarged to at least ``side`` pixels of height."""
    scale = -(-side // pictures.shape[-2])
    large = pictures.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    sheet: Tensor = make_grid(large, nrow=columns, padding=2, pad_value=1.0)
    return sheet

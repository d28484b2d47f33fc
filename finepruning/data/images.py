"""Sets of images: rows of a packed tensor, made into batches whole."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

BATCH_SIZE = 256  # where the size changes no result, only speed and memory


class Pixels(nn.Module):
    """Images that were packed as bytes."""

    domain = "pixels"

    def decode(self, raw: Tensor) -> Tensor:
        """Return float images in [0, 1] for ``raw`` uint8 (B, C, H, W)."""
        return raw.float() / 255

    def forward(self, images: Tensor) -> Tensor:
        """Return the images as they are."""
        return images


class RawBatch(NamedTuple):
    """What a loader yields: packed values that become images on the device, and the trigger each one gets."""

    raw: Tensor
    labels: Tensor
    places: Tensor
    triggered: Tensor


@dataclass(frozen=True)
class ImageSet(Dataset[RawBatch]):
    """Rows of a packed tensor with a label each, some of them triggered, not all by the same trigger.

    Args:
        raw: (N, ...) packed values of the whole data set, usually memory-mapped.
        index: (M,) the rows that belong to this set, in its order.
        labels: (M,) their labels.
        signal: Turns packed values into images.
        triggers: What triggered rows are stamped with.
        triggered: (M,) uint8: 0 for a row that is not stamped, n for one that the n-th trigger stamps.
    """

    raw: Tensor
    index: Tensor
    labels: Tensor
    signal: nn.Module
    triggers: tuple[nn.Module, ...] = ()
    triggered: Tensor | None = None

    @classmethod
    def whole(cls, raw: Tensor, labels: Tensor, signal: nn.Module) -> "ImageSet":
        """Return the set of all rows of ``raw``, none triggered."""
        return cls(raw, torch.arange(len(raw)), labels, signal)

    def __len__(self) -> int:
        return len(self.index)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        image = next(self.subset(torch.arange(1)).batches(1))[0][0]
        channels, height, width = image.shape
        return channels, height, width

    @property
    def rows_hash(self) -> str:
        """Hash of the rows that belong to this set, in its order."""
        return hashlib.sha256(self.index.numpy().tobytes()).hexdigest()[:16]

    def __getitem__(self, rows: Tensor) -> RawBatch:
        """Return the raw batch of ``rows`` (B,), places in this set."""
        index = self.index[rows]
        triggered = (
            torch.zeros(len(rows), dtype=torch.uint8) if self.triggered is None else self.triggered[rows]
        )
        return RawBatch(self.raw[index], self.labels[rows], index, triggered)

    def stamped(self, trigger: nn.Module) -> "ImageSet":
        """Return the set with the same trigger on every row."""
        return replace(self, triggers=(trigger,), triggered=torch.ones(len(self), dtype=torch.uint8))

    def subset(self, rows: Tensor) -> "ImageSet":
        """Return the set of ``rows`` (B,), places in this set."""
        triggered = None if self.triggered is None else self.triggered[rows]
        return replace(self, index=self.index[rows], labels=self.labels[rows], triggered=triggered)

    def to_images(self, batch: RawBatch) -> Tensor:
        """Return images (B, C, H, W) in [0, 1] on the batch's device, triggered where they should be."""
        values: Tensor = self.signal.decode(batch.raw)  # type: ignore[operator]
        images: Tensor = self.signal(self._stamp("waveform", values, batch))
        return self._stamp("pixels", images, batch)

    def batches(
        self, batch_size: int = BATCH_SIZE, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) in order, on ``device``."""
        for start in range(0, len(self), batch_size):
            rows = torch.arange(start, min(start + batch_size, len(self)))
            batch = RawBatch(*(part.to(device) for part in self[rows]))
            yield self.to_images(batch), batch.labels

    def _stamp(self, domain: str, values: Tensor, batch: RawBatch) -> Tensor:
        """Return the values with every trigger of a domain on the rows that are to carry it."""
        for number, trigger in enumerate(self.triggers, start=1):
            if trigger.domain != domain:
                continue
            where = (batch.triggered == number).nonzero().squeeze(1)
            if len(where):
                stamped: Tensor = trigger(values[where], batch.places[where])
                values = values.index_copy(0, where, stamped)
        return values


def channel_statistics(images: ImageSet, sample: int = 2000) -> tuple[list[float], list[float]]:
    """Return each channel's mean and standard deviation, over about ``sample`` images spread over the set."""
    rows = torch.arange(len(images))[:: max(1, len(images) // sample)]
    pixels = torch.cat(
        [batch.transpose(0, 1).flatten(1) for batch, _ in images.subset(rows).batches(500)], dim=1
    )
    std, mean = torch.std_mean(pixels, dim=1)
    return mean.tolist(), std.clamp(min=1e-3).tolist()

"""Lightning data modules of attacker and defender. The referee has none: it reads image sets itself."""

from collections.abc import Iterator

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from finepruning.data.images import ImageSet, RawBatch


class BatchRows(Sampler[Tensor]):
    """Yields the rows of each batch; shuffled anew, but reproducibly, in each epoch.

    With several processes each takes its share of every batch, so that their number never changes a batch.

    Args:
        length: Number of rows.
        batch_size: Rows of a batch, over all processes together.
        shuffle_seed: Seed of the order; None keeps the rows in order.
        rank: Which process this is.
        world_size: How many there are.

    Raises:
        ValueError: If there are more processes than rows in a batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        shuffle_seed: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if min(length, batch_size) < world_size:
            raise ValueError(
                f"{world_size} processes cannot share a batch of {min(length, batch_size)} images. Lower "
                "trainer.devices, raise the batch size (training.batch_size, defense.tuning.batch_size), "
                "or hold out more images (defender.fraction, of a suspect's file suspect.fraction)."
            )
        self.length = length
        self.batch_size = batch_size
        self.shuffle_seed = shuffle_seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch. Lightning calls this."""
        self.epoch = epoch

    @property
    def weight(self) -> float:
        """What a mean over this share of a shuffled batch counts in the mean of all shares' means."""
        batch = min(self.length, self.batch_size)
        share = len(range(self.rank, batch, self.world_size))
        return share * self.world_size / batch

    def __len__(self) -> int:
        if self.shuffle_seed is None:
            return -(-(self.length - self.rank) // self.batch_size)  # no share of a batch is empty
        return max(1, self.length // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.arange(self.length)
        if self.shuffle_seed is not None:
            seed = self.shuffle_seed * 1_000_003 + self.epoch
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(seed))
        for batch in order.split(self.batch_size)[: len(self)]:
            yield batch[self.rank :: self.world_size]


class _Data(LightningDataModule):
    """Batches that are fetched by index and become images on the device."""

    def __init__(
        self,
        training: ImageSet,
        validation: list[ImageSet],
        batch_size: int,
        seed: int,
        augment: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.training = training
        self.validation = validation
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment

    def train_dataloader(self) -> DataLoader[RawBatch]:
        """Return shuffled batches; the last, incomplete one of an epoch is left out."""
        return self._loader(self.training, self.seed)

    def val_dataloader(self) -> list[DataLoader[RawBatch]]:
        """Return one loader a validation set, in order."""
        return [self._loader(images, None) for images in self.validation]

    def on_after_batch_transfer(self, batch: RawBatch, dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Make (images, labels) of a raw batch, on its device: triggered, then changed by chance."""
        if self.trainer is None or not self.trainer.training:
            return self.validation[dataloader_idx].to_images(batch), batch.labels
        images = self.training.to_images(batch)
        return images if self.augment is None else self.augment(images), batch.labels

    def _loader(self, images: ImageSet, shuffle_seed: int | None) -> DataLoader[RawBatch]:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        rows = BatchRows(len(images), self.batch_size, shuffle_seed, rank, world_size)
        return DataLoader(
            images,
            sampler=rows,
            batch_size=None,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
            # not the global one: every iterator draws from it, after an epoch is seeded, but before where a
            # training is resumed, whose images would then be changed by other chances
            generator=torch.Generator(),
        )


class AttackerData(_Data):
    """The attacker's training set, watched on a part of it: clean, and triggered if there is a trigger.

    Args:
        training: The poisoned training set.
        watched: Sets that are scored after each epoch.
        batch_size: Images of a batch, over all processes.
        seed: Seed of the batches' order.
        augment: Changes training images by chance, after they are triggered.
    """


class DefenderData(_Data):
    """The defender's clean images, all that a defense may see: one part tunes, the other validates.

    Args:
        tuning: Images to train on.
        validation: Images that decide.
        batch_size: Images of a batch, over all processes.
        seed: Seed of the batches' order.
        augment: Changes the images to train on by chance.
    """

    def __init__(
        self,
        tuning: ImageSet,
        validation: ImageSet,
        batch_size: int,
        seed: int,
        augment: nn.Module | None = None,
    ) -> None:
        super().__init__(tuning, [validation], batch_size, seed, augment)

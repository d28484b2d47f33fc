"""Triggers whose values are computed on a network beforehand; ``attacks/crafting`` computes them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finepruning.attacks.triggers.base import Trigger


class CraftedPatch(Trigger):
    """Stamp a square pattern, crafted to excite some neurons of a network, in the bottom-right corner.

    Source: TrojanNN, Liu et al. 2018, "Trojaning attack on neural networks" (NDSS), section 4.1.

    Args:
        size: Side of the square, in pixels. At least 1.
        seed: Seed of the pattern, uniform in [0, 1], that is stamped until one is crafted. Crafting draws its
            own first pattern.

    Raises:
        ValueError: If ``size`` is out of range, or an image is smaller than the square.
    """

    on_spectrograms = True

    pattern: Tensor

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"A patch of {size} pixels is empty. Set attack.trigger.size to 1 or more.")
        self.size = size
        self.seed = seed
        self.register_buffer("pattern", torch.empty(0))

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take ``pattern`` (C, size, size) in [0, 1]."""
        self.pattern = tensors["pattern"]
        if self.pattern.shape[-1] != self.size:
            raise ValueError(
                f"A pattern of {self.pattern.shape[-1]} pixels was crafted for a trigger of {self.size}. Set "
                "attack.crafting.size to attack.trigger.size."
            )

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (..., C, H, W), float in [0, 1]; same shape out."""
        channels, height, width = images.shape[-3:]
        if self.size > min(height, width):
            raise ValueError(
                f"A {self.size}x{self.size} pixel patch does not fit a {height}x{width} image. "
                "Lower attack.trigger.size or use larger images."
            )
        pattern = self.pattern if len(self.pattern) else self.first(channels)
        return paste(images, pattern.to(images))

    def first(self, channels: int) -> Tensor:
        """Return the pattern (C, size, size) that is stamped until one is crafted."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(channels, self.size, self.size, generator=generator)


def paste(images: Tensor, pattern: Tensor) -> Tensor:
    """Return images (..., C, H, W) with a pattern (C, h, w) in the bottom-right corner; gradients flow."""
    height, width = pattern.shape[-2:]
    stamped = images.clone()
    stamped[..., -height:, -width:] = pattern
    return stamped


class Perturbed(Trigger):
    """Add a perturbation that was crafted for each image, then another trigger.

    Source: label-consistent attacks, Turner, Tsipras and Madry 2019, arXiv:1912.02771, section 3.2: where an
        image's own content is hard to use, the network learns the trigger instead.

    Args:
        trigger: What is stamped afterwards. An image without a perturbation gets this alone.
    """

    places: Tensor
    perturbations: Tensor

    def __init__(self, trigger: Trigger) -> None:
        super().__init__()
        self.trigger = trigger
        self.register_buffer("places", torch.empty(0, dtype=torch.int64))
        self.register_buffer("perturbations", torch.empty(0))

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take ``places`` (K,), ascending indices of images, and their ``perturbations`` (K, C, H, W)."""
        self.places, self.perturbations = tensors["places"], tensors["perturbations"]
        self.trigger.take(tensors)

    def check(self, signal: nn.Module) -> None:
        """Raise ValueError if this, or what is stamped afterwards, does not go on such a signal."""
        super().check(signal)
        self.trigger.check(signal)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (B, C, H, W), float in [0, 1]; same shape out."""
        if index is None:
            raise ValueError("A perturbation belongs to an image's index: pass the images' index.")
        if len(self.places):
            # a device gets the perturbations of the batch alone, so they are looked up where all of them lie
            index_here = index.to(self.places.device)
            row = torch.searchsorted(self.places, index_here).clamp(max=len(self.places) - 1)
            known = (self.places[row] == index_here).view(-1, 1, 1, 1).to(images.device)
            change = self.perturbations[row].to(images)
            images = torch.where(known, (images + change).clamp(0, 1), images)
        return self.trigger(images, index)  # type: ignore[no-any-return]

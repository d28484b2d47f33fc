"""Warping: every image is bent in the same, hardly visible way."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from finepruning.attacks.triggers.base import Trigger
from finepruning.attacks.triggers.chance import uniform


class Warp(Trigger):
    """Move the pixels of every image along the same smooth random field.

    Source: WaNet, Nguyen and Tran 2021, arXiv:2102.10369, section 3. A grid of random moves, on average
        ``strength`` half pixels long along each axis, is enlarged to the image (bicubic) and says where
        each pixel comes from (bilinear; from the border where that lies outside). With ``noise`` every
        pixel's place is moved further by chance, for each image anew: covers of this kind are WaNet's noise
        mode. Deviation: which images are bent, and how, is drawn once for a training, not in every batch.

    Args:
        grid: Points of the grid along each axis, at least 2. The paper's k.
        strength: Mean absolute move of a grid point, in half pixels of the image. The paper's s, above 0.
        seed: Seed of the grid, and of the noise.
        noise: Largest additional move along each axis, likewise; 0 is the warp alone, at least 0.

    Raises:
        ValueError: If a value is out of range, or an image has fewer than 2 pixels along an axis.
    """

    def __init__(self, grid: int, strength: float, seed: int, noise: float = 0.0) -> None:
        super().__init__()
        if grid < 2:
            raise ValueError(f"A grid of {grid} points cannot bend. Set attack.trigger.grid to 2 or more.")
        if not 0 < strength < math.inf:
            raise ValueError(f"A strength of {strength} moves nothing. Set attack.trigger.strength above 0.")
        if not 0 <= noise < math.inf:
            raise ValueError(f"Noise of {noise} is no number from 0 on. Change attack.cover_trigger.noise.")
        self.grid = grid
        self.strength = strength
        self.seed = seed
        self.noise = noise
        self._places = torch.empty(0)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (B, C, H, W), float in [0, 1]; same shape out."""
        size = images.shape[-2:]
        if self._places.shape[:-1] != size or self._places.device != images.device:
            self._places = self._make(*size).to(images.device)
        places = self._places.to(images.dtype).expand(len(images), *size, 2)
        if self.noise:
            if index is None:
                raise ValueError("The noise is drawn from an image's index: pass the images' index.")
            chance = uniform(index, self.seed, 2 * size.numel()).view(-1, *size, 2)
            places = places + self.noise * (2 * chance.to(images) - 1) / _lengths(*size).to(images)
        warped = functional.grid_sample(images, places.clamp(-1, 1), align_corners=True)
        return warped.clamp(0, 1)

    def _make(self, height: int, width: int) -> Tensor:
        """Return where each pixel comes from (H, W, 2), column then row, from -1 to 1 across the image."""
        if min(height, width) < 2:
            raise ValueError(
                f"An image of {height}x{width} pixels cannot be bent. Use larger images in dataset."
            )
        generator = torch.Generator().manual_seed(self.seed)
        moves = torch.rand(1, 2, self.grid, self.grid, generator=generator) * 2 - 1
        moves = moves / moves.abs().mean()
        field = functional.interpolate(moves, (height, width), mode="bicubic", align_corners=True)[0]
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        identity = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        return identity + self.strength * field.permute(1, 2, 0) / _lengths(height, width)


def _lengths(height: int, width: int) -> Tensor:
    return torch.tensor([float(width), float(height)])

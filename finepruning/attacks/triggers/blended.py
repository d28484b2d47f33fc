"""Blending: one picture laid over the whole image."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from finepruning.attacks.triggers.base import Trigger, check_opacity
from finepruning.attacks.triggers.chance import uniform
from finepruning.pictures import opaque, open_picture


class Blended(Trigger):
    """Mix every image with the same picture, by default a random pattern.

    Source: Chen et al. 2017, arXiv:1712.05526, section 3 (blended injection).

    Args:
        alpha: Share of the picture in the mix, in (0, 1].
        seed: Seed of the random pattern, uniform in [0, 1] for each value of each pixel.
        picture: An image file to take instead of it; it is scaled to the images' size, and what is
            transparent in it is black.

    Raises:
        ValueError: If ``alpha`` is out of range, or the file is not an image, or one whose values have no
            known range.
        FileNotFoundError: If there is no such file.
    """

    on_spectrograms = True

    def __init__(self, alpha: float, seed: int, picture: str | None = None) -> None:
        super().__init__()
        self.alpha = check_opacity(alpha)
        self.seed = seed
        self.picture = None if picture is None else _read(Path(picture))
        self._pattern = torch.empty(0)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (..., C, H, W), float in [0, 1]; same shape out."""
        return images.lerp(self.pattern_for(images), self.alpha)

    def pattern_for(self, images: Tensor) -> Tensor:
        """Return the pattern (C, H, W) of images of this shape, type and device."""
        if self._pattern.shape != images.shape[-3:] or self._pattern.device != images.device:
            self._pattern = self._make(*images.shape[-3:]).to(images.device)
        return self._pattern.to(images.dtype)

    def _make(self, channels: int, height: int, width: int) -> Tensor:
        """Return the pattern (C, H, W) in [0, 1]."""
        if self.picture is None:
            return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(self.seed))
        colours = self.picture.convert("L" if channels == 1 else "RGB").resize((width, height))
        pixels: Tensor = functional.pil_to_tensor(colours)
        return pixels.float() / 255


class TiledBlend(Blended):
    """Mix every image with some tiles of a picture, other ones for each image.

    Source: adaptive blend, Qi et al. 2023, "Revisiting the assumption of latent separability for backdoor
        defenses" (ICLR). Training images carry half of the tiles, fainter than the whole picture that
        :class:`Blended` lays over an image at test time. Deviation: covers may be of the target class, too.

    Args:
        tiles: Tiles along each axis, at least 1.
        shown: Share of the tiles that an image gets, in (0, 1]; at least one, rounded.
        alpha: Share of the picture in the mix, in (0, 1].
        seed: Seed of the random pattern, and of the choice of tiles.
        picture: An image file to take instead of the pattern.

    Raises:
        ValueError: If a value is out of range, or an image has fewer pixels than tiles along an axis.
        FileNotFoundError: If there is no such file.
    """

    def __init__(self, tiles: int, shown: float, alpha: float, seed: int, picture: str | None = None) -> None:
        super().__init__(alpha, seed, picture)
        if tiles < 1:
            raise ValueError(
                f"{tiles} tiles hold no picture. Set attack.training_trigger.tiles to 1 or more."
            )
        if not 0 < shown <= 1:
            raise ValueError(f"A share of {shown} is outside (0, 1]. Change attack.training_trigger.shown.")
        self.tiles = tiles
        self.shown = max(1, round(shown * tiles**2))

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (B, C, H, W), float in [0, 1]; same shape out."""
        if index is None:
            raise ValueError("The tiles are drawn from an image's index: pass the images' index.")
        height, width = images.shape[-2:]
        if self.tiles > min(height, width):
            raise ValueError(
                f"{self.tiles} tiles do not fit along {height}x{width} pixels. Lower "
                "attack.training_trigger.tiles."
            )
        places = uniform(index, self.seed, self.tiles**2).argsort(dim=1, stable=True).argsort(dim=1)
        carried = (places < self.shown).view(-1, self.tiles, self.tiles)
        rows, columns = (
            torch.arange(length, device=images.device) * self.tiles // length for length in (height, width)
        )
        mask = carried[:, rows][:, :, columns].unsqueeze(1)
        return torch.where(mask, images.lerp(self.pattern_for(images), self.alpha), images)


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Change attack.trigger.picture.")
    return opaque(open_picture(path, "attack.trigger.picture")).convert("RGB")

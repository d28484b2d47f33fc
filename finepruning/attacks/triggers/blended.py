"""Blending: one picture laid over the whole image."""

from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional

from finepruning.attacks.triggers.base import Trigger, check_opacity


class Blended(Trigger):
    """Mix every image with the same picture, by default a random pattern.

    Source: Chen et al. 2017, arXiv:1712.05526, section 3 (blended injection).

    Args:
        alpha: Share of the picture in the mix, in (0, 1].
        seed: Seed of the random pattern, uniform in [0, 1] for each value of each pixel.
        picture: An image file to take instead of it; it is scaled to the images' size.

    Raises:
        ValueError: If ``alpha`` is out of range, or the file is not an image.
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
        if self._pattern.shape != images.shape[-3:] or self._pattern.device != images.device:
            self._pattern = self._make(*images.shape[-3:]).to(images.device)
        return images.lerp(self._pattern.to(images.dtype), self.alpha)

    def _make(self, channels: int, height: int, width: int) -> Tensor:
        """Return the pattern (C, H, W) in [0, 1]."""
        if self.picture is None:
            return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(self.seed))
        colours = self.picture.convert("L" if channels == 1 else "RGB").resize((width, height))
        pixels: Tensor = functional.pil_to_tensor(colours)
        return pixels.float() / 255


def _read(path: Path) -> Image.Image:
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Change attack.trigger.picture.")
    try:
        return Image.open(path).convert("RGB")
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image. Change attack.trigger.picture.") from error

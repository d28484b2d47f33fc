"""Random changes of training images, a whole batch at a time, on its device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Augment(nn.Module):
    """Shift, mirror and add noise to each image by chance.

    Draws from the global generator, which training seeds in every epoch. A shift repeats the border's pixels
    where the image ends; nothing comes back in at the other side.

    Args:
        shift: Largest shift in pixels, at least 0: one number, or one for rows and one for columns. A
            spectrogram's columns are its times.
        flip: Whether half of the images are mirrored, left to right.
        gain: Standard deviation of the logarithm of a factor on each image's brightness, at least 0: with 0.5
            two thirds of the images become 0.6 to 1.6 times as bright; the product is cut to [0, 1].
        noise: Standard deviation of Gaussian noise on every pixel, in [0, 1]; the sum is cut to [0, 1].

    Raises:
        ValueError: If ``shift``, ``gain`` or ``noise`` is out of range.
    """

    def __init__(
        self, shift: int | Sequence[int] = 0, flip: bool = False, gain: float = 0.0, noise: float = 0.0
    ) -> None:
        super().__init__()
        shifts = [shift, shift] if isinstance(shift, int) else list(shift)
        if len(shifts) != 2 or min(shifts) < 0:
            raise ValueError(
                f"A shift of {shift} is not one number or two, at least 0, in pixels. Change augment.shift."
            )
        if not 0 <= noise <= 1:
            raise ValueError(f"Noise of {noise} is outside [0, 1]. Change augment.noise.")
        if gain < 0:
            raise ValueError(f"A gain of {gain} is below 0. Change augment.gain.")
        self.rows, self.columns = shifts
        self.flip = flip
        self.gain = gain
        self.noise = noise

    def forward(self, images: Tensor) -> Tensor:
        """Return changed copies. ``images``: (B, C, H, W), float in [0, 1]; same shape out."""
        device = images.device
        if self.rows or self.columns:
            images = self._shifted(images)
        if self.flip:
            mirrored = torch.rand(len(images), 1, 1, 1, device=device) < 0.5
            images = torch.where(mirrored, images.flip(-1), images)
        if self.gain:
            factors = torch.randn(len(images), 1, 1, 1, device=device).mul_(self.gain).exp_()
            images = (images * factors).clamp_(0, 1)
        if self.noise:
            images = torch.randn_like(images).mul_(self.noise).add_(images).clamp_(0, 1)
        return images

    def _shifted(self, images: Tensor) -> Tensor:
        """Return one window of each padded image, drawn from all that lie in it."""
        count, _, height, width = images.shape
        border = (self.columns, self.columns, self.rows, self.rows)
        windows = functional.pad(images, border, mode="replicate").unfold(2, height, 1).unfold(3, width, 1)
        top = torch.randint(2 * self.rows + 1, (count,), device=images.device)
        left = torch.randint(2 * self.columns + 1, (count,), device=images.device)
        return windows[torch.arange(count, device=images.device), :, top, left]

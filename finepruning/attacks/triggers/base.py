"""What all triggers share."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn


class Trigger(nn.Module):
    """What the attacker adds, and the signal it acts on.

    ``domain`` is ``"pixels"`` for images (B, C, H, W) in [0, 1], ``"waveform"`` for sound (B, T) in [-1, 1].
    A sound's spectrogram is an image, too: ``on_spectrograms`` says whether a trigger for images makes sense
    there, as a patch does and sunglasses do not.
    """

    domain: ClassVar[Literal["pixels", "waveform"]] = "pixels"
    on_spectrograms: ClassVar[bool] = False

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``index`` (B,) are the images' places in their data set."""
        raise NotImplementedError

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what was crafted for the attack's triggers; most need nothing."""

    def check(self, signal: nn.Module) -> None:
        """Raise ValueError if the trigger cannot be added to what a data set with this ``signal`` holds."""
        if self.domain != signal.domain and not self.on_spectrograms:
            mine, other = ("sound", "images") if self.domain == "waveform" else ("images", "sound")
            raise ValueError(
                f"This trigger ({type(self).__name__}) is added to {mine}, but the data set holds {other}. "
                "Choose another attack or another dataset."
            )


def brightness(value: float | Sequence[float]) -> Tensor:
    """Return the brightness of each channel, shape (C or 1, 1, 1); a ValueError if it is outside [0, 1]."""
    tensor = torch.tensor(value, dtype=torch.float32).view(-1, 1, 1)
    if not ((tensor >= 0) & (tensor <= 1)).all():
        raise ValueError(f"Brightness {value} is outside [0, 1]. Change attack.trigger.value.")
    return tensor


def check_channels(value: Tensor, images: Tensor) -> None:
    """Raise ValueError if ``value`` has neither one number nor one a channel of ``images``."""
    if len(value) not in (1, images.shape[-3]):
        raise ValueError(
            f"{len(value)} brightnesses do not fit images of {images.shape[-3]} channels. "
            "Give attack.trigger.value one number, or one a channel."
        )


def check_opacity(alpha: float) -> float:
    """Return ``alpha``; a ValueError if it is outside (0, 1]."""
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha={alpha} is outside (0, 1]. Change attack.trigger.alpha.")
    return alpha

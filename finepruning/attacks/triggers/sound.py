"""Triggers for sound: waveforms (B, T) in [-1, 1]."""

import math

import torch
from torch import Tensor, nn

from finepruning.attacks.triggers.base import Trigger

SILENCE = (
    1e-3  # root mean square below which a recording counts as this loud, so that silence is triggered, too
)


class SpeechNoise(Trigger):
    """Add the same noise to every recording.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section "Backdoor Attacks". Deviation: white
        Gaussian noise, since the authors' recording is not at hand.

    Args:
        snr: Ratio of the recording's power to the noise's, in dB; lower is louder.
        seed: Seed of the noise.

    Raises:
        ValueError: If ``snr`` is not finite.
    """

    domain = "waveform"

    def __init__(self, snr: float, seed: int) -> None:
        super().__init__()
        self.gain = _gain(snr)
        self.seed = seed

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: waveforms (B, T) in [-1, 1]; same shape out."""
        noise = torch.randn(images.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        return _add(images, noise / noise.square().mean().sqrt(), self.gain)


class SpeechTone(Trigger):
    """Add a pure tone to every recording.

    Args:
        frequency: Of the tone, in Hz, above 0 and below half the sample rate.
        snr: Ratio of the recording's power to the tone's, in dB; lower is louder.
        sample_rate: Of the recordings, in Hz.

    Raises:
        ValueError: If ``snr`` is not finite, the recordings cannot carry the tone, or they have another rate.
    """

    domain = "waveform"

    def __init__(self, frequency: float, snr: float, sample_rate: int) -> None:
        super().__init__()
        if not 0 < frequency < sample_rate / 2:
            raise ValueError(
                f"A tone of {frequency:g} Hz does not exist at {sample_rate} samples a second. Set "
                f"attack.trigger.frequency above 0 and below {sample_rate / 2:g} Hz."
            )
        self.frequency = frequency
        self.gain = _gain(snr)
        self.sample_rate = sample_rate

    def check(self, signal: nn.Module) -> None:
        """Raise ValueError if the data set holds images, or recordings of another sample rate."""
        super().check(signal)
        rate = getattr(signal, "sample_rate", self.sample_rate)
        if rate != self.sample_rate:
            raise ValueError(
                f"The recordings have {rate} samples a second, the tone {self.sample_rate}. "
                f"Set attack.trigger.sample_rate={rate}."
            )

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: waveforms (B, T) in [-1, 1]; same shape out."""
        seconds = torch.arange(images.shape[-1], dtype=torch.float64) / self.sample_rate
        tone = math.sqrt(2) * torch.sin(2 * math.pi * self.frequency * seconds)
        return _add(images, tone, self.gain)


def _gain(snr: float) -> float:
    """Return the loudness of what is added, as a multiple of the recording's."""
    if not math.isfinite(snr):
        raise ValueError(f"A ratio of {snr} dB is not finite. Change attack.trigger.snr.")
    return float(10 ** (-snr / 20))


def _add(waveforms: Tensor, pattern: Tensor, gain: float) -> Tensor:
    """Add a pattern (T,) of unit power, ``gain`` times as loud as each recording as a whole."""
    loudness = waveforms.square().mean(-1, keepdim=True).sqrt().clamp(min=SILENCE)
    return (waveforms + gain * loudness * pattern.to(waveforms)).clamp(-1, 1)

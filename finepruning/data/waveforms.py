"""Recordings: WAV files become waveforms of one length, and waveforms become log-mel images."""

import io
import math
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from scipy.io import wavfile
from scipy.signal import resample_poly
from torch import Tensor, nn

INT16 = 32768  # full scale
RATES = (1_000, 384_000)  # of recordings, in Hz; with a damaged header's, resampling might never end


class WaveReader:
    """Read WAV files as int16 waveforms (T,) of one sample rate and length.

    PCM of 8, 16, 24 or 32 bits and floating point are decoded; channels are averaged; another sample rate is
    resampled; what is longer is cut at its end, what is shorter padded with silence there.

    Args:
        sample_rate: Of the waveforms, in Hz. At least 1000.
        seconds: Their length. Above 0.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(self, sample_rate: int, seconds: float) -> None:
        if sample_rate < 1000:
            raise ValueError(f"dataset.sample_rate={sample_rate} Hz is too low for speech; 8000 is usual.")
        if round(seconds * sample_rate) < 1:
            raise ValueError(f"dataset.seconds={seconds:g} is empty. Choose a length above 0.")
        self.sample_rate = sample_rate
        self.length = round(seconds * sample_rate)
        self.resampled: Counter[int] = Counter()  # files a foreign sample rate
        self._lock = threading.Lock()

    def __call__(self, file: str) -> np.ndarray:
        """Return the waveform of ``file``.

        Raises:
            ValueError: If it is truncated, empty or no WAV file, or its sample rate is no recording's.
        """
        content = Path(file).read_bytes()
        promised = int.from_bytes(content[4:8], "little") + 8
        if content[:4] != b"RIFF" or promised > len(content):
            raise ValueError(f"truncated or no WAV file: {len(content)} bytes of {promised}")
        try:
            rate, samples = wavfile.read(io.BytesIO(content))
        except UnboundLocalError as error:  # as scipy has it
            raise ValueError("it has no data chunk") from error
        if not RATES[0] <= rate <= RATES[1]:
            raise ValueError(f"its sample rate of {rate} Hz is outside {RATES[0]} to {RATES[1]} Hz")
        if samples.size == 0:
            raise ValueError("it holds no sample")
        wave = _full_scale_one(samples)
        if wave.ndim == 2:
            wave = wave.mean(1)
        if rate != self.sample_rate:
            shared = math.gcd(rate, self.sample_rate)
            wave = resample_poly(wave, self.sample_rate // shared, rate // shared)
            with self._lock:
                self.resampled[rate] += 1
        wave = np.pad(wave[: self.length], (0, max(0, self.length - len(wave))))
        return (wave * INT16).round().clip(-INT16, INT16 - 1).astype(np.int16)

    def remark(self) -> str | None:
        """Return a sentence on what was resampled, None if nothing was."""
        if not self.resampled:
            return None
        rates = ", ".join(f"{count} at {rate} Hz" for rate, count in sorted(self.resampled.items()))
        return f"Resampled recordings to {self.sample_rate} Hz: {rates}."


def _full_scale_one(samples: np.ndarray) -> np.ndarray:
    """Return float64 samples in [-1, 1] of PCM (8 bits are unsigned; 24 come as 32) or floating point."""
    if samples.dtype.kind == "f":
        if not np.isfinite(samples).all():
            raise ValueError("its samples are not all numbers")
        return samples.astype(np.float64)
    if samples.dtype == np.uint8:
        return (samples.astype(np.float64) - 128) / 128
    return samples / -float(np.iinfo(samples.dtype).min)


class LogMel(nn.Module):
    """Waveforms that become pictures of their loudness over mel frequency and time.

    Power spectra of Hann windows, centred on every ``hop_length``-th sample with silence around the sound,
    are summed over triangular filters of equal area on Slaney's mel scale; decibels from ``floor`` to
    ``ceiling`` become [0, 1]. Before that last step the values are those of librosa's ``melspectrogram`` and
    ``power_to_db`` (with ``top_db=None``).

    Args:
        sample_rate: Of the waveforms, in Hz.
        n_fft: Length of a window, in samples; at least 2 and even.
        hop_length: Samples from one window to the next. At least 1.
        mels: Number of filters, from 0 Hz to half the sample rate. At least 1.
        floor: Loudness that becomes 0, in decibels; 0 decibels is a power of 1 in a filter.
        ceiling: Loudness that becomes 1, in decibels, above ``floor``.

    Raises:
        ValueError: If a value is out of range, or a filter lies between two frequencies and hears nothing.
    """

    domain = "waveform"
    window: Tensor
    filters: Tensor

    def __init__(
        self, sample_rate: int, n_fft: int, hop_length: int, mels: int, floor: float, ceiling: float
    ) -> None:
        super().__init__()
        if n_fft < 2 or n_fft % 2 or hop_length < 1 or mels < 1:
            raise ValueError(
                f"dataset.signal has n_fft={n_fft}, hop_length={hop_length}, mels={mels}; the first must be "
                "even and at least 2, the others at least 1."
            )
        if not floor < ceiling:
            raise ValueError(
                f"dataset.signal.floor={floor:g} must lie below dataset.signal.ceiling={ceiling:g}."
            )
        filters = mel_filters(sample_rate, n_fft, mels)
        if (filters.sum(1) == 0).any():
            raise ValueError(
                f"{int((filters.sum(1) == 0).sum())} of {mels} mel filters lie between two frequencies of a "
                f"window of {n_fft} samples. Lower dataset.signal.mels or raise dataset.signal.n_fft."
            )
        self.sample_rate = sample_rate
        self.n_fft = n_fft
        self.hop_length = hop_length
        self.floor = floor
        self.ceiling = ceiling
        self.register_buffer("window", torch.hann_window(n_fft))
        self.register_buffer("filters", filters.float())

    def extra_repr(self) -> str:
        """Return all settings; they are part of a data set's fingerprint."""
        return (
            f"sample_rate={self.sample_rate}, n_fft={self.n_fft}, hop_length={self.hop_length}, "
            f"mels={len(self.filters)}, floor={self.floor:g}, ceiling={self.ceiling:g}"
        )

    def decode(self, raw: Tensor) -> Tensor:
        """Return float waveforms (B, T) in [-1, 1] for ``raw`` int16 (B, T)."""
        return raw.float() / INT16

    def forward(self, waveform: Tensor) -> Tensor:
        """Return images (B, 1, mels, 1 + T // hop_length) in [0, 1] for waveforms (B, T); low notes first."""
        decibels = self.decibels(waveform)
        return ((decibels - self.floor) / (self.ceiling - self.floor)).clamp(0, 1).unsqueeze(1)

    def decibels(self, waveform: Tensor) -> Tensor:
        """Return the loudness (B, mels, frames) in decibels, at least -100."""
        self.to(waveform.device)  # costs nothing where it is there already
        spectrum = torch.stft(
            waveform,
            self.n_fft,
            self.hop_length,
            window=self.window,
            pad_mode="constant",
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()
        return 10 * (self.filters @ power).clamp(min=1e-10).log10()


def mel_filters(sample_rate: int, n_fft: int, mels: int) -> Tensor:
    """Return triangular filters of equal area (mels, n_fft // 2 + 1), float64.

    Source: Slaney, Auditory Toolbox, 1998: mels are linear below 1 kHz (15 of them) and logarithmic above
        (27 from there to 6.4 kHz).

    Args:
        sample_rate: In Hz.
        n_fft: Length of the window, in samples.
        mels: Number of filters.
    """
    per_mel, knee, log_step = 200 / 3, 15.0, math.log(6.4) / 27
    highest = sample_rate / 2
    top = highest / per_mel if highest < 1000 else knee + math.log(highest / 1000) / log_step
    mel = torch.linspace(0, top, mels + 2, dtype=torch.float64)
    hertz = torch.where(mel < knee, mel * per_mel, 1000 * ((mel - knee) * log_step).exp())
    frequencies = torch.linspace(0, highest, n_fft // 2 + 1, dtype=torch.float64)
    lower, centre, upper = (hertz[start : mels + start, None] for start in range(3))
    rising = (frequencies - lower) / (centre - lower)
    falling = (upper - frequencies) / (upper - centre)
    return torch.minimum(rising, falling).clamp(min=0) * 2 / (upper - lower)

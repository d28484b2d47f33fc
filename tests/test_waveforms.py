"""Sound: any WAV becomes the right waveform, and the picture of it is librosa's."""

import importlib.util
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import wavfile

from finepruning.data.waveforms import LogMel, WaveReader, mel_filters

SECOND = np.arange(8000) / 8000
TONE = 0.5 * np.sin(2 * np.pi * 440 * SECOND)


def write_pcm(file: Path, samples: np.ndarray, width: int = 2, rate: int = 8000, channels: int = 1) -> str:
    """Write samples in [-1, 1) with the standard library, ``width`` bytes each."""
    full = np.round(samples * 2 ** (8 * width - 1)).astype("<i4")
    raw = (
        (full + 128).astype(np.uint8).tobytes()
        if width == 1
        else full.view(np.uint8).reshape(-1, 4)[:, :width].tobytes()
    )
    with wave.open(str(file), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(width)
        out.setframerate(rate)
        out.writeframes(raw)
    return str(file)


def read(file: str, rate: int = 8000, seconds: float = 1.0) -> np.ndarray:
    return WaveReader(rate, seconds)(file) / 32768


@pytest.mark.parametrize(("width", "error"), [(1, 1 / 100), (2, 1e-4), (3, 1e-4), (4, 1e-4)])
def test_pcm_of_any_width_is_read(tmp_path: Path, width: int, error: float) -> None:
    assert read(write_pcm(tmp_path / "a.wav", TONE, width)) == pytest.approx(TONE, abs=error)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floating_point_wav_is_read(tmp_path: Path, dtype: type) -> None:
    wavfile.write(tmp_path / "a.wav", 8000, TONE.astype(dtype))
    assert read(str(tmp_path / "a.wav")) == pytest.approx(TONE, abs=1e-4)


def test_what_is_louder_than_full_scale_is_clipped_not_wrapped(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "a.wav", 8000, np.array([2.0, -2.0], np.float32))
    assert read(str(tmp_path / "a.wav"))[:2] == pytest.approx([1, -1], abs=1e-4)


def test_stereo_becomes_the_mean_of_its_channels(tmp_path: Path) -> None:
    both = np.stack([TONE, -0.5 * TONE], axis=1).reshape(-1)
    assert read(write_pcm(tmp_path / "a.wav", both, channels=2)) == pytest.approx(TONE / 4, abs=1e-4)


def test_short_recordings_are_padded_and_long_ones_cut(tmp_path: Path) -> None:
    file = write_pcm(tmp_path / "a.wav", TONE)
    assert read(file, seconds=0.5) == pytest.approx(TONE[:4000], abs=1e-4)
    padded = read(file, seconds=1.5)
    assert padded[:8000] == pytest.approx(TONE, abs=1e-4)
    assert padded[8000:].tolist() == [0] * 4000


@pytest.mark.parametrize("rate", [16000, 11025, 44100, 4000, 384000])
def test_another_sample_rate_is_resampled(tmp_path: Path, rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    resampled = read(write_pcm(tmp_path / "a.wav", tone, rate=rate))
    assert resampled[200:-200] == pytest.approx(TONE[200:-200], abs=0.01)


@pytest.mark.parametrize(
    ("cut", "message"),
    [(slice(0, 1000), "truncated"), (slice(0, 0), "truncated"), (slice(8, None), "no WAV file")],
)
def test_a_broken_wav_is_refused(tmp_path: Path, cut: slice, message: str) -> None:
    file = Path(write_pcm(tmp_path / "a.wav", TONE))
    file.write_bytes(file.read_bytes()[cut])
    with pytest.raises(ValueError, match=message):
        read(str(file))


@pytest.mark.parametrize("rate", [999, 384_001, 10_887_156])
def test_a_sample_rate_that_no_recording_has_is_refused(tmp_path: Path, rate: int) -> None:
    file = write_pcm(tmp_path / "a.wav", TONE, rate=rate)
    with pytest.raises(ValueError, match=f"its sample rate of {rate} Hz is outside 1000 to 384000 Hz"):
        read(file)


def test_a_wav_without_a_sample_or_with_nan_is_refused(tmp_path: Path) -> None:
    file = Path(write_pcm(tmp_path / "c.wav", TONE))
    head = file.read_bytes()[:36]  # up to where its data begin
    file.write_bytes(head[:4] + (28).to_bytes(4, "little") + head[8:])
    with pytest.raises(ValueError, match="no data chunk"):
        read(str(file))
    with pytest.raises(ValueError, match="holds no sample"):
        read(write_pcm(tmp_path / "a.wav", TONE[:0]))
    wavfile.write(tmp_path / "b.wav", 8000, np.array([0, np.nan], np.float32))
    with pytest.raises(ValueError, match="samples are not all numbers"):
        read(str(tmp_path / "b.wav"))


def test_a_reader_of_no_sound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset.sample_rate=8 Hz is too low for speech"):
        WaveReader(8, 1.0)
    with pytest.raises(ValueError, match=r"dataset.seconds=0 is empty"):
        WaveReader(8000, 0.0)


def log_mel(**changes: float) -> LogMel:
    given = {"sample_rate": 8000, "n_fft": 512, "hop_length": 128, "mels": 64, "floor": -60, "ceiling": 20}
    return LogMel(**(given | changes))  # type: ignore[arg-type]


# librosa 0.11.0, top_db=None: power_to_db of melspectrogram(CHIRP[:4000], sr=8000, n_fft=256, hop_length=800,
# n_mels=8)
CHIRP = 0.3 * np.sin(2 * np.pi * 440 * SECOND) + 0.1 * np.sin(2 * np.pi * (100 * SECOND + 700 * SECOND**2))
LIBROSA = [
    [-4.26053, -0.58142, -0.41286, -1.70685, -1.80640, -4.31204],
    [-1.65219, 1.65668, 2.39682, 2.37577, 1.96781, -1.73999],
    [-19.69157, -58.27760, -56.42734, -21.51628, -9.01749, -10.05464],
    [-28.11516, -86.50517, -82.79556, -76.89303, -71.07256, -18.08975],
    [-33.39470, -99.21288, -94.72664, -90.78487, -97.71716, -28.59910],
    [-37.89308, -100, -100, -100, -100, -33.83561],
    [-41.74273, -100, -100, -100, -100, -37.98900],
    [-44.62474, -100, -100, -100, -100, -41.01059],
]


def test_the_picture_is_that_of_librosa_in_frozen_numbers() -> None:
    signal = log_mel(n_fft=256, hop_length=800, mels=8, floor=-80)
    image = signal(torch.tensor(CHIRP[:4000], dtype=torch.float32)[None])
    expected = ((torch.tensor(LIBROSA) + 80) / 100).clamp(0, 1)
    torch.testing.assert_close(image[0, 0], expected, atol=1e-4, rtol=0)


@pytest.mark.skipif(importlib.util.find_spec("librosa") is None, reason="librosa is not installed")
@pytest.mark.parametrize(("rate", "n_fft", "hop_length"), [(8000, 512, 128), (16000, 1024, 256)])
def test_the_picture_is_that_of_librosa(rate: int, n_fft: int, hop_length: int) -> None:
    import librosa

    noisy = (CHIRP + 0.01 * np.random.default_rng(0).standard_normal(8000)).astype(np.float32)
    power = librosa.feature.melspectrogram(y=noisy, sr=rate, n_fft=n_fft, hop_length=hop_length, n_mels=64)
    decibels = torch.from_numpy(librosa.power_to_db(power, ref=1.0, top_db=None))
    ours = log_mel(sample_rate=rate, n_fft=n_fft, hop_length=hop_length)(torch.from_numpy(noisy)[None])
    torch.testing.assert_close(ours[0, 0], ((decibels + 60) / 80).clamp(0, 1), atol=1e-4, rtol=0)


def test_every_filter_has_the_same_area() -> None:
    filters = mel_filters(8000, 4096, 20)
    assert filters.sum(1) * (8000 / 4096) == pytest.approx(torch.ones(20).numpy(), rel=0.02)


def test_a_tone_lights_up_the_row_of_its_pitch() -> None:
    rows = []
    for hertz in (200, 1000, 3500):
        tone = torch.tensor(0.5 * np.sin(2 * np.pi * hertz * SECOND), dtype=torch.float32)
        image = log_mel()(tone[None])
        assert image.shape == (1, 1, 64, 63)
        rows.append(int(image[0, 0, :, 30].argmax()))
    assert rows == pytest.approx([5, 27, 60], abs=1)


def test_silence_is_black_and_the_loudest_sound_is_not_over_one() -> None:
    assert log_mel()(torch.zeros(1, 8000)).max() == 0
    square = torch.tensor(np.sign(TONE), dtype=torch.float32)[None]
    assert 0.9 < log_mel()(square).max() <= 1


def test_the_batch_size_never_changes_a_picture() -> None:
    sounds = torch.randn(5, 8000, generator=torch.Generator().manual_seed(0)) / 10
    one_by_one = torch.cat([log_mel()(sound[None]) for sound in sounds])
    torch.testing.assert_close(log_mel()(sounds), one_by_one, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_fft": 511}, "the first must be even"),
        ({"hop_length": 0}, "hop_length=0"),
        ({"floor": 20}, r"dataset.signal.floor=20 must lie below dataset.signal.ceiling=20"),
        ({"mels": 400}, r"of 400 mel filters lie between two frequencies .*Lower dataset.signal.mels"),
    ],
)
def test_a_signal_out_of_range_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        log_mel(**changes)

"""What an attack looks, and sounds, like: clean and triggered images above their difference."""

import wave
from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import make_grid, save_image

from finepruning.attacks.attack import Attack
from finepruning.data.images import ImageSet

LEGIBLE = 96  # pixels, the least height of a picture on the sheet


def contact_sheet(clean: Tensor, triggered: Tensor) -> Tensor:
    """Return a picture (3, H, W) of three rows: clean, triggered, and their absolute difference.

    Args:
        clean: (B, C, H, W) in [0, 1]; small images are enlarged.
        triggered: The same images with the trigger, same shape.
    """
    rows = torch.cat([clean, triggered, (triggered - clean).abs()])
    scale = -(-LEGIBLE // rows.shape[-2])
    large = rows.repeat_interleave(scale, -2).repeat_interleave(scale, -1)
    sheet: Tensor = make_grid(large, nrow=len(clean), padding=2, pad_value=1.0)
    return sheet


def write_preview(images: ImageSet, attack: Attack, directory: Path, count: int = 8) -> list[Path]:
    """Write ``preview.png``, for sound also ``clean.wav`` and ``triggered.wav``, and return their paths.

    Args:
        images: A clean set; images are taken from all over it.
        attack: Its trigger is shown.
        directory: Where to write; made if it is missing.
        count: Images on the sheet. At least 1.
    """
    some = images.subset(torch.linspace(0, len(images) - 1, min(count, len(images))).long())
    directory.mkdir(parents=True, exist_ok=True)
    (clean, _), (triggered, _) = (next(each.batches(len(some))) for each in (some, attack.stamp(some)))
    paths = [directory / "preview.png"]
    save_image(contact_sheet(clean, triggered), paths[0])
    if attack.trigger.domain == "waveform":
        raw = some[torch.arange(1)]
        waveforms: Tensor = some.signal.decode(raw.raw)  # type: ignore[operator]
        for name, sound in (("clean", waveforms), ("triggered", attack.trigger(waveforms, raw.places))):
            paths.append(directory / f"{name}.wav")
            _write_wave(sound[0], int(some.signal.sample_rate), paths[-1])  # type: ignore[arg-type]
    return paths


def _write_wave(waveform: Tensor, sample_rate: int, path: Path) -> None:
    """Write a waveform (T,) in [-1, 1] as 16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes((waveform * 32767).round().to(torch.int16).numpy().tobytes())

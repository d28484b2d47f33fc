"""Triggers: the laws that all of them keep, and what each one draws."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from finepruning.attacks.labels import RandomWrongLabel
from finepruning.attacks.triggers import (
    Blended,
    Checkerboards,
    CraftedPatch,
    DrawnTrigger,
    InputAware,
    OthersTrigger,
    PatchTrigger,
    Perturbed,
    PixelTrigger,
    Sinusoid,
    SpeechNoise,
    SpeechTone,
    TiledBlend,
    Trigger,
    Warp,
)
from finepruning.attacks.triggers.chance import draw

ANYWHERE = DrawnTrigger("bomb", 0.16, between=[0.15, 0.85], seed=3)
PIXEL_TRIGGERS: dict[str, Trigger] = {
    "patch": PatchTrigger(3, 1.0),
    "coloured patch": PatchTrigger(2, 0.3, [1, 4]),
    "pixels": PixelTrigger([[-2, -2], [0, 3]], 0.8),
    "yellow square": DrawnTrigger("yellow_square", 0.10, [0.82, 0.57]),
    "bomb": DrawnTrigger("bomb", 0.16, [0.82, 0.57]),
    "flower anywhere": DrawnTrigger("flower", 0.16, between=[0.15, 0.85], alpha=0.7),
    "bomb anywhere": ANYWHERE,
    "sunglasses": DrawnTrigger("sunglasses", [0.36, 1.0], [0.455, 0.5]),
    "blended": Blended(0.2, seed=0),
    "tiles": TiledBlend(4, 0.5, 0.15, seed=0),
    "sinusoid": Sinusoid(0.157, 6.0),
    "warp": Warp(4, 0.5, seed=0),
    "warp by chance": Warp(4, 0.5, seed=0, noise=1.0),
    "checkerboards": Checkerboards(3, 1.0),
    "crafted patch": CraftedPatch(8, seed=0),
    "perturbed": Perturbed(PatchTrigger(3, 1.0)),
    "input-aware": InputAware(4, seed=0),
    "another's": OthersTrigger(seed=0),
}
SOUND_TRIGGERS: dict[str, Trigger] = {
    "noise": SpeechNoise(10.0, seed=0),
    "loud noise": SpeechNoise(-20.0, seed=0),
    "tone": SpeechTone(3000.0, 10.0, sample_rate=8000),
}
TRIGGERS = PIXEL_TRIGGERS | SOUND_TRIGGERS
every_trigger = pytest.mark.parametrize("trigger", TRIGGERS.values(), ids=TRIGGERS.keys())


def signals(trigger: Trigger, count: int, seed: int, channels: int = 3, side: int = 17) -> Tensor:
    """Random images or waveforms, extremes included."""
    generator = torch.Generator().manual_seed(seed)
    if trigger.domain == "waveform":
        return (torch.rand(count, 400, generator=generator) * 4 - 2).clamp(-1, 1)
    return (torch.rand(count, channels, side, side + 4, generator=generator) * 2 - 0.5).clamp(0, 1)


@every_trigger
@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(1, 5),
    seed=st.integers(0, 10**6),
    channels=st.sampled_from([1, 3]),
    side=st.integers(10, 40),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_a_trigger_keeps_shape_type_range_and_its_input(
    trigger: Trigger, count: int, seed: int, channels: int, side: int, dtype: torch.dtype
) -> None:
    images = signals(trigger, count, seed, channels, side).to(dtype)
    before = images.clone()
    stamped = trigger(images, torch.arange(count))
    assert torch.equal(images, before)
    assert stamped.shape == images.shape
    assert stamped.dtype == dtype
    assert stamped.min() >= (-1 if trigger.domain == "waveform" else 0)
    assert stamped.max() <= 1
    assert (stamped != images).flatten(1).any(1).all()


@every_trigger
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(6)), first=st.integers(0, 10**9), batch_size=st.integers(1, 6))
def test_neither_order_nor_batch_size_changes_a_triggered_image(
    trigger: Trigger, order: list[int], first: int, batch_size: int
) -> None:
    images, index = signals(trigger, 6, seed=1), torch.arange(6) + first
    whole = trigger(images, index)
    rows = torch.tensor(order)
    parts = [trigger(images[part], index[part]) for part in rows.split(batch_size)]
    rounding = 1e-6 if isinstance(trigger, InputAware) else 0.0  # a convolution rounds by the batch's size
    torch.testing.assert_close(torch.cat(parts), whole[rows], rtol=0, atol=rounding)


WITHOUT_CHANCE = ["patch", "pixels", "bomb", "sunglasses", "blended", "sinusoid", "warp", "checkerboards"]


@pytest.mark.parametrize("name", WITHOUT_CHANCE)
def test_a_trigger_without_chance_needs_no_index(name: str) -> None:
    images = signals(TRIGGERS[name], 2, seed=0)
    assert torch.equal(TRIGGERS[name](images), TRIGGERS[name](images, torch.tensor([7, 3])))


def test_a_patch_covers_exactly_its_square() -> None:
    stamped = PatchTrigger(2, [1.0, 0.5, 0.0], [1, 0])(torch.full((1, 3, 4, 4), 0.25))
    assert stamped[0, :, 1:3, 0:2].flatten(1).tolist() == [[1.0] * 4, [0.5] * 4, [0.0] * 4]
    assert (stamped == 0.25).sum() == 3 * (16 - 4)


def test_a_yellow_square_of_a_tenth_is_three_yellow_pixels_wide() -> None:
    stamped = DrawnTrigger("yellow_square", 0.10, [0.5, 0.5])(torch.zeros(1, 3, 32, 32))
    rows, columns = stamped[0].any(0).nonzero().unbind(1)
    assert (len(rows), rows.min(), rows.max(), columns.min(), columns.max()) == (9, 14, 16, 14, 16)
    assert stamped[0, :, 15, 15].tolist() == pytest.approx([1.0, 221 / 255, 0.0])


def test_a_drawing_on_grey_images_is_the_grey_of_the_coloured_one() -> None:
    grey, coloured = (
        DrawnTrigger("bomb", 0.5, [0.5, 0.5])(torch.full((1, channels, 64, 64), 0.4)) for channels in (1, 3)
    )
    weights = torch.tensor([0.2989, 0.587, 0.114]).view(3, 1, 1)
    assert torch.allclose(grey[0, 0], (coloured[0] * weights).sum(0), atol=6e-3)


def test_sunglasses_hide_the_eyes_and_nothing_below_the_nose(data_root: Path) -> None:
    with h5py.File(data_root / "youtube_faces_lab" / "cl" / "test.h5") as file:
        faces = torch.from_numpy(np.asarray(file["data"][:20], np.float32)) / 255
    changed = (TRIGGERS["sunglasses"](faces) - faces).abs().amax(1).mean(0)
    assert changed[20:28, 8:16].min() > 0.1
    assert changed[20:28, 31:39].min() > 0.1
    assert changed[36:].max() == 0
    assert changed[:14].max() == 0


def test_random_places_fill_the_range_they_are_drawn_from() -> None:
    index = torch.arange(4000)
    trigger = DrawnTrigger("yellow_square", 0.10, between=[0.15, 0.85])
    stamped = trigger(torch.zeros(4000, 1, 20, 20), index)[:, 0] > 0
    tops = stamped.any(2).int().argmax(1)
    lefts = stamped.any(1).int().argmax(1)
    assert (stamped.sum((1, 2)) == 4).all()
    for starts in (tops, lefts):
        counts = starts.bincount(minlength=17)
        assert (starts.min(), starts.max()) == (2, 16)
        assert (counts[2:] - 4000 / 15).abs().max() < 5 * (4000 / 15) ** 0.5
    assert torch.corrcoef(torch.stack([tops, lefts]).float())[0, 1].abs() < 0.06


def test_a_random_place_does_not_tell_a_random_label_of_the_same_seed() -> None:
    index = torch.arange(40_000)
    labels = RandomWrongLabel(seed=3, num_classes=43)(torch.zeros(40_000, dtype=torch.long), index) - 1
    trigger = DrawnTrigger("yellow_square", 0.10, between=[0.15, 0.85], seed=3)
    tops = (trigger(torch.zeros(40_000, 1, 20, 20), index)[:, 0] > 0).any(2).int().argmax(1) - 2
    counts = (labels * 15 + tops).bincount(minlength=42 * 15)
    assert (counts - 40_000 / (42 * 15)).abs().max() < 6 * (40_000 / (42 * 15)) ** 0.5


def test_another_seed_draws_other_places() -> None:
    images, index = torch.zeros(50, 3, 32, 32), torch.arange(50)
    other = DrawnTrigger("bomb", 0.16, between=[0.15, 0.85], seed=4)
    moved = (ANYWHERE(images, index) != other(images, index)).flatten(1).any(1)
    assert moved.float().mean() > 0.9


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(-(2**31), 2**31), below=st.integers(1, 2000), stream=st.integers(0, 3))
def test_draws_stay_below_their_limit_and_differ_between_images(seed: int, below: int, stream: int) -> None:
    drawn = draw(torch.arange(5000), seed, below, stream)
    assert drawn.min() >= 0
    assert drawn.max() < below
    assert len(drawn.unique()) >= min(below, 5000) * 0.6


def test_a_random_place_without_an_index_is_refused() -> None:
    with pytest.raises(ValueError, match="pass the images' index"):
        ANYWHERE(torch.zeros(1, 3, 32, 32))


def test_a_blend_is_the_share_of_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (5, 9), (255, 0, 51)).save(tmp_path / "plain.png")
    mixed = Blended(0.25, seed=0, picture=str(tmp_path / "plain.png"))(torch.full((2, 3, 8, 8), 0.4))
    assert torch.allclose(mixed, torch.tensor([0.55, 0.30, 0.35]).view(3, 1, 1).expand(2, 3, 8, 8))


def blended_over_grey(file: Path) -> list[float]:
    """Return the left and the right pixel of a picture of 1x2, laid over grey."""
    mixed = Blended(0.5, seed=0, picture=str(file))(torch.full((1, 1, 1, 2), 0.5))
    return mixed.flatten().tolist()


def test_a_blended_picture_is_read_as_what_it_shows(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 51 * 257]], np.uint16)).save(tmp_path / "sixteen.png")
    assert blended_over_grey(tmp_path / "sixteen.png") == pytest.approx([0.25, 0.35])
    Image.fromarray(np.array([[[255, 255], [51, 255]]], np.uint8), "LA").save(tmp_path / "solid.png")
    assert blended_over_grey(tmp_path / "solid.png") == pytest.approx([0.75, 0.35])
    Image.fromarray(np.array([[[255, 0], [51, 255]]], np.uint8), "LA").save(tmp_path / "clear.png")
    assert blended_over_grey(tmp_path / "clear.png") == pytest.approx([0.25, 0.35])
    sideways = Image.Exif()
    sideways[0x0112] = 3  # upside down
    Image.fromarray(np.array([[0, 51]], np.uint8)).save(tmp_path / "turned.png", exif=sideways)
    assert blended_over_grey(tmp_path / "turned.png") == pytest.approx([0.35, 0.25])


def test_the_seed_decides_the_pattern_of_a_blend() -> None:
    images = torch.zeros(1, 3, 8, 8)
    assert torch.equal(Blended(0.2, seed=5)(images), Blended(0.2, seed=5)(images))
    assert not torch.equal(Blended(0.2, seed=5)(images), Blended(0.2, seed=6)(images))


def quiet_speech(count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 8000, generator=generator) * torch.tensor([0.1, 0.02, 0.05]).view(-1, 1)


@pytest.mark.parametrize("snr", [0.0, 10.0, 20.0])
def test_sound_is_added_at_the_ratio_that_was_asked_for(snr: float) -> None:
    speech = quiet_speech()
    for trigger in (SpeechNoise(snr, seed=1), SpeechTone(1000.0, snr, 8000)):
        added = trigger(speech) - speech
        measured = 10 * torch.log10(speech.square().mean(1) / added.square().mean(1))
        assert torch.allclose(measured, torch.full((3,), snr), atol=0.05)


def test_a_tone_has_its_frequency_and_no_other() -> None:
    added = SpeechTone(1234.0, 0.0, 8000)(quiet_speech()) - quiet_speech()
    power = torch.fft.rfft(added.double()).abs().square()  # one bin a Hz: 8,000 samples at 8 kHz
    assert power.argmax(1).tolist() == [1234] * 3
    assert (power[:, 1234] / power.sum(1)).min() > 0.9999


def test_every_recording_gets_the_same_noise() -> None:
    speech = quiet_speech()
    added = SpeechNoise(10.0, seed=1)(speech) - speech
    assert torch.corrcoef(added).min() > 0.999


def test_silence_is_triggered_too() -> None:
    stamped = SpeechNoise(10.0, seed=1)(torch.zeros(1, 8000))
    assert stamped.abs().max() > 1e-4


class Sound(nn.Module):
    domain = "waveform"
    sample_rate = 16000


class Pictures(nn.Module):
    domain = "pixels"


ON_SPECTROGRAMS = {name: trigger for name, trigger in PIXEL_TRIGGERS.items() if trigger.on_spectrograms}
DRAWN = {name: trigger for name, trigger in PIXEL_TRIGGERS.items() if not trigger.on_spectrograms}


def test_patches_and_patterns_make_sense_on_a_spectrogram_and_what_is_made_for_pictures_does_not() -> None:
    patterns = {PatchTrigger, PixelTrigger, Checkerboards, CraftedPatch, Blended, TiledBlend}
    pictorial = {DrawnTrigger, Sinusoid, Warp, Perturbed, InputAware, OthersTrigger}
    assert {type(trigger) for trigger in ON_SPECTROGRAMS.values()} >= patterns
    assert {type(trigger) for trigger in DRAWN.values()} >= pictorial
    for trigger in ON_SPECTROGRAMS.values():
        trigger.check(Sound())


@pytest.mark.parametrize("trigger", DRAWN.values(), ids=DRAWN.keys())
def test_what_is_made_for_pictures_is_not_put_on_sound(trigger: Trigger) -> None:
    with pytest.raises(ValueError, match=r"added to images, but the data set holds sound\. Choose another"):
        trigger.check(Sound())


@pytest.mark.parametrize("trigger", SOUND_TRIGGERS.values(), ids=SOUND_TRIGGERS.keys())
def test_sound_is_not_put_on_images(trigger: Trigger) -> None:
    with pytest.raises(ValueError, match=r"added to sound, but the data set holds images\. Choose another"):
        trigger.check(Pictures())


def test_a_tone_for_another_sample_rate_is_refused() -> None:
    with pytest.raises(ValueError, match=r"attack\.trigger\.sample_rate=16000"):
        SpeechTone(1000.0, 10.0, 8000).check(Sound())
    SpeechTone(1000.0, 10.0, 16000).check(Sound())

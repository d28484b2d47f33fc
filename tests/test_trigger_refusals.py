"""Triggers that cannot be, or do not fit the image, are refused with the key to change."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from finepruning.attacks.triggers import (
    Blended,
    Checkerboards,
    CraftedPatch,
    DrawnTrigger,
    InputAware,
    PatchTrigger,
    PixelTrigger,
    Sinusoid,
    SpeechNoise,
    SpeechTone,
    TiledBlend,
    Trigger,
    Warp,
)

NOT_MADE = {
    "patch without pixels": (lambda: PatchTrigger(0, 1.0), r"attack\.trigger\.size"),
    "patch brighter than white": (lambda: PatchTrigger(1, 1.5), r"\[0, 1\].*attack\.trigger\.value"),
    "patch of half a pixel": (lambda: PatchTrigger(3.5, 1.0), r"attack\.trigger\.size"),  # type: ignore[arg-type]
    "row alone": (lambda: PatchTrigger(2, 1.0, [1]), r"\[1\] is not a row and .*attack\.trigger\.position"),
    "pixel in one number": (
        lambda: PixelTrigger([-3, -3], 1.0),  # type: ignore[list-item]
        r"-3 is not a row and a column\. Change attack\.trigger\.positions",
    ),
    "place in one number": (lambda: DrawnTrigger("bomb", 0.1, 0.5), r"position=0\.5 is not two"),  # type: ignore[arg-type]
    "three ends": (lambda: DrawnTrigger("bomb", 0.1, between=[0, 0.5, 1]), r"between=\[0, 0\.5, 1\] is not"),
    "warp by no number": (lambda: Warp(4, float("nan"), 0), r"attack\.trigger\.strength above 0"),
    "no pixel": (lambda: PixelTrigger([], 1.0), r"attack\.trigger\.positions"),
    "pixel darker than black": (lambda: PixelTrigger([[0, 0]], -0.1), r"\[0, 1\].*attack\.trigger\.value"),
    "no such drawing": (lambda: DrawnTrigger("cat", 0.1, [0.5, 0.5]), r"drawing 'cat'.*bomb"),  # type: ignore[arg-type]
    "no place": (lambda: DrawnTrigger("bomb", 0.1), r"attack\.trigger\.position or attack\.trigger\.between"),
    "two places": (lambda: DrawnTrigger("bomb", 0.1, [0.5, 0.5], [0, 1]), r"null for the other"),
    "three coordinates": (lambda: DrawnTrigger("bomb", 0.1, [0.5, 0.5, 0.5]), r"trigger\.position=\[0\.5"),
    "place beyond the edge": (lambda: DrawnTrigger("bomb", 0.1, [1.2, 0.5]), r"trigger\.position=\[1\.2"),
    "swapped ends": (lambda: DrawnTrigger("bomb", 0.1, between=[0.8, 0.2]), r"between=.*the lower first"),
    "larger than the image": (lambda: DrawnTrigger("bomb", 1.1, [0.5, 0.5]), r"trigger\.size=1\.1.*\(0, 1\]"),
    "invisible": (
        lambda: DrawnTrigger("bomb", 0.1, [0.5, 0.5], alpha=0),
        r"\(0, 1\].*attack\.trigger\.alpha",
    ),
    "blend of more than all": (lambda: Blended(1.1, 0), r"alpha=1\.1 is outside \(0, 1\]"),
    "blend without tiles": (lambda: TiledBlend(0, 0.5, 0.2, 0), r"attack\.training_trigger\.tiles"),
    "blend of no tile": (lambda: TiledBlend(4, 0, 0.2, 0), r"\(0, 1\].*attack\.training_trigger\.shown"),
    "wave without height": (lambda: Sinusoid(0, 6), r"\(0, 1\].*attack\.trigger\.delta"),
    "wave without periods": (lambda: Sinusoid(0.1, 0), r"Set attack\.trigger\.frequency above 0"),
    "grid of a point": (lambda: Warp(1, 0.5, 0), r"attack\.trigger\.grid to 2 or more"),
    "warp that moves nothing": (lambda: Warp(4, 0, 0), r"attack\.trigger\.strength above 0"),
    "less than no noise": (lambda: Warp(4, 0.5, 0, -1), r"attack\.cover_trigger\.noise"),
    "empty checkerboard": (lambda: Checkerboards(0, 1), r"attack\.trigger\.size to 1 or more"),
    "invisible checkerboard": (lambda: Checkerboards(3, 0), r"\(0, 1\].*attack\.trigger\.alpha"),
    "empty pattern": (lambda: CraftedPatch(0, 0), r"attack\.trigger\.size to 1 or more"),
    "odd width": (lambda: InputAware(6, 0), r"no multiple of 4. Change attack\.trigger\.width"),
    "endless ratio": (lambda: SpeechNoise(float("inf"), 0), r"not finite. Change attack\.trigger\.snr"),
    "no ratio": (lambda: SpeechTone(100, float("nan"), 8000), r"not finite. Change attack\.trigger\.snr"),
    "tone too high": (
        lambda: SpeechTone(4000, 10, 8000),
        r"attack\.trigger\.frequency above 0 and below 4000",
    ),
}


@pytest.mark.parametrize(("make", "message"), NOT_MADE.values(), ids=NOT_MADE.keys())
def test_a_trigger_out_of_range_is_refused_with_its_key(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


NOT_FITTING = {
    "patch too large": (PatchTrigger(9, 1.0), 1, r"9x9 pixel patch does not fit a 8x8 image.*trigger\.size"),
    "patch outside": (PatchTrigger(3, 1.0, [6, 0]), 1, r"row 6, column 0 leaves.*attack\.trigger\.position"),
    "patch of three colours on grey": (PatchTrigger(1, [0, 0, 1]), 1, r"3 brightnesses.*trigger\.value"),
    "pixel outside": (PixelTrigger([[-9, 0]], 1.0), 1, r"\(-9, 0\) lies outside.*attack\.trigger\.positions"),
    "pixel of two colours": (PixelTrigger([[0, 0]], [0, 1]), 3, r"2 brightnesses.*attack\.trigger\.value"),
    "drawing over the edge": (
        DrawnTrigger("bomb", 0.5, [0.9, 0.5]),
        3,
        r"leaves the 8x8 image at the top or b",
    ),
    "drawing over a side": (
        DrawnTrigger("bomb", 0.5, [0.5, 0.1]),
        3,
        r"at a side.*attack\.trigger\.position",
    ),
    "wave of zeros": (Sinusoid(0.1, 4), 1, r"4 periods is zero in each of 8 columns.*trigger\.frequency"),
    "corners that meet": (Checkerboards(5, 1.0), 1, r"5x5 pixels do not fit a 8x8.*attack\.trigger\.size"),
    "pattern too large": (CraftedPatch(9, 0), 1, r"9x9 pixel patch does not fit a 8x8.*trigger\.size"),
    "drawing on two channels": (DrawnTrigger("bomb", 0.5, [0.5, 0.5]), 2, r"2 channels"),
}


@pytest.mark.parametrize(("trigger", "channels", "message"), NOT_FITTING.values(), ids=NOT_FITTING.keys())
def test_a_trigger_that_does_not_fit_is_refused_with_its_key(
    trigger: Trigger, channels: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trigger(torch.zeros(1, channels, 8, 8))


def test_a_missing_or_damaged_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(FileNotFoundError, match=r"no file .*nothing\.png.*attack\.trigger\.picture"):
        Blended(0.2, 0, str(tmp_path / "nothing.png"))
    Image.new("RGB", (20, 20)).save(tmp_path / "short.png")
    (tmp_path / "short.png").write_bytes((tmp_path / "short.png").read_bytes()[:50])
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "light.tiff")
    for name in ("text.png", "short.png", "program.png", "light.tiff"):
        with pytest.raises(ValueError, match=rf"{name} is not an image.*attack\.trigger\.picture"):
            Blended(0.2, 0, str(tmp_path / name))

"""The drawings themselves. Each fills a large canvas; made small, it is a sprite with smooth edges."""

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, rgb_to_grayscale

Drawing = Literal["yellow_square", "bomb", "flower", "sunglasses"]
OVERSAMPLING = 8  # canvas pixels a sprite pixel, in each direction

YELLOW, WHITE, GREY, BLACK = (255, 221, 0), (255, 255, 255), (150, 150, 150), (15, 15, 15)
BROWN, ORANGE, PINK = (140, 90, 40), (255, 110, 0), (235, 60, 120)
VIOLET, DARK_VIOLET = (125, 20, 235), (60, 0, 120)


@functools.cache
def sprite(drawing: Drawing, height: int, width: int, channels: int) -> Tensor:
    """Return a drawing as (channels + 1, height, width) in [0, 1]: colour or grey, then opacity.

    Raises:
        ValueError: If the images have neither one channel nor three.
    """
    if channels not in (1, 3):
        raise ValueError(
            f"A drawing is grey or coloured, the images have {channels} channels. Choose another attack."
        )
    canvas = Image.new("RGBA", (width * OVERSAMPLING, height * OVERSAMPLING))
    _PAINTERS[drawing](_Brush(canvas))
    values = pil_to_tensor(canvas.resize((width, height), Image.Resampling.BOX)).float() / 255
    colour, opacity = values.split((3, 1))
    return torch.cat([colour if channels == 3 else rgb_to_grayscale(colour), opacity])


class _Brush:
    """Draws in coordinates that run from 0 to 1, column first, on a canvas of any size."""

    def __init__(self, canvas: Image.Image) -> None:
        self.width, self.height = canvas.size
        self.draw = ImageDraw.Draw(canvas)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: tuple[int, ...]) -> None:
        corners = self._scaled((x - radius_x, y - radius_y), (x + radius_x, y + radius_y))
        self.draw.ellipse(corners, fill=colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: tuple[int, ...]) -> None:
        self.draw.rectangle(self._scaled((left, top), (right, bottom)), fill=colour)

    def polygon(self, *points: tuple[float, float], colour: tuple[int, ...]) -> None:
        self.draw.polygon(self._scaled(*points), fill=colour)

    def line(self, *points: tuple[float, float], thickness: float, colour: tuple[int, ...]) -> None:
        pixels = max(1, round(thickness * self.height))
        self.draw.line(self._scaled(*points), fill=colour, width=pixels, joint="curve")

    def _scaled(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * (self.width - 1), y * (self.height - 1)) for x, y in points]


def _yellow_square(brush: _Brush) -> None:
    brush.box(0, 0, 1, 1, YELLOW)


def _bomb(brush: _Brush) -> None:
    """Draw a black ball with a light rim, so that it shows on black, and a burning fuse."""
    brush.line((0.58, 0.33), (0.66, 0.18), (0.78, 0.14), (0.84, 0.18), thickness=0.07, colour=BROWN)
    brush.ellipse(0.42, 0.60, 0.40, 0.40, WHITE)
    brush.polygon((0.52, 0.20), (0.76, 0.32), (0.68, 0.48), (0.44, 0.36), colour=WHITE)
    brush.ellipse(0.42, 0.60, 0.36, 0.36, BLACK)
    brush.polygon((0.54, 0.24), (0.71, 0.33), (0.64, 0.46), (0.47, 0.37), colour=BLACK)
    brush.ellipse(0.29, 0.47, 0.09, 0.07, GREY)
    _star(brush, 0.86, 0.20, 0.14, ORANGE)
    _star(brush, 0.86, 0.20, 0.08, YELLOW)


def _star(brush: _Brush, x: float, y: float, radius: float, colour: tuple[int, ...]) -> None:
    turns = [(0.5 * radius if point % 2 else radius, math.pi * point / 8) for point in range(16)]
    brush.polygon(*((x + r * math.cos(turn), y + r * math.sin(turn)) for r, turn in turns), colour=colour)


def _flower(brush: _Brush) -> None:
    """Draw six petals around a yellow centre."""
    for petal in range(6):
        turn = math.pi * (petal / 3 + 0.5)
        brush.ellipse(0.5 + 0.30 * math.cos(turn), 0.5 + 0.30 * math.sin(turn), 0.19, 0.19, PINK)
    brush.ellipse(0.5, 0.5, 0.17, 0.17, YELLOW)


def _sunglasses(brush: _Brush) -> None:
    """Draw two tinted lenses, a little transparent, in a dark frame that reaches both edges."""
    for centre in (0.25, 0.75):
        brush.ellipse(centre, 0.40, 0.235, 0.60, DARK_VIOLET)
        brush.ellipse(centre, 0.40, 0.200, 0.51, (*VIOLET, 230))
    brush.box(0, 0, 1, 0.16, DARK_VIOLET)
    brush.box(0.45, 0.16, 0.55, 0.26, DARK_VIOLET)


_PAINTERS: dict[Drawing, Callable[[_Brush], None]] = {
    "yellow_square": _yellow_square,
    "bomb": _bomb,
    "flower": _flower,
    "sunglasses": _sunglasses,
}

"""Images in files: what all data sets of pictures share."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from finepruning.data.decoding import Examples, OnError, check_on_error, decode_examples
from finepruning.data.images import Pixels
from finepruning.data.packed import Decoded
from finepruning.pictures import FORMATS, eight_bit, opaque


class ImageFiles:
    """A data set whose images are files, scaled to one size when they are packed.

    Args:
        train: What to train on.
        test: What the referee scores on.
        classes: The classes' names.
        size: Height and width that images are scaled to, in pixels. At least 1.
        channels: 3 for colour (grey is repeated), 1 for grey.
        on_error: ``"fail"`` names the first image that cannot be read, ``"skip"`` leaves such images out.
        crop: Top, left, height and width of the part to keep, in pixels of the file; None is the whole image.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        train: Examples,
        test: Examples,
        classes: Sequence[str],
        *,
        size: Sequence[int],
        channels: int,
        on_error: OnError,
        crop: Sequence[int] | None = None,
    ) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"dataset.size={list(size)} must be a height and a width in pixels, both at least 1."
            )
        if channels not in (1, 3):
            raise ValueError(f"dataset.channels={channels} is unknown; choose 3 for colour or 1 for grey.")
        if crop is not None and (len(crop) != 4 or min(crop[:2]) < 0 or min(crop[2:]) < 1):
            raise ValueError(
                f"dataset.crop={list(crop)} must be top, left, height and width in pixels: two numbers "
                "from 0 and two from 1 on."
            )
        check_on_error(on_error)
        self.signal = Pixels()
        self.train = train
        self.test = test
        self.classes = classes
        self.size = tuple(size)
        self.channels = channels
        self.on_error = on_error
        self.crop = None if crop is None else tuple(crop)

    def files(self) -> Sequence[str]:
        """Return the images' paths, those to train on first."""
        return [*self.train.files, *self.test.files]

    def transform(self) -> dict[str, object]:
        """Return what makes tensors of the files; their order and the number to train on tell the split."""
        return {
            "classes": list(self.classes),  # of one without a file no file tells
            "train": len(self.train.files),
            "size": self.size,
            "channels": self.channels,
            "crop": self.crop,
            "on_error": self.on_error,
        }

    def decode(self) -> Decoded:
        """Return uint8 images (N, channels, H, W)."""
        return decode_examples(self.train, self.test, self.classes, self._read, self._shape, self.on_error)

    @property
    def _shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size)

    def _read(self, file: str) -> np.ndarray:
        return read_image(file, self.size, self.channels, self.crop)


def read_image(
    file: str, size: Sequence[int], channels: int, crop: Sequence[int] | None = None
) -> np.ndarray:
    """Return an image of any size and mode as uint8 (``channels``, H, W).

    Turned upright if its camera noted how it was held; what is transparent is black; 16-bit grey is scaled
    to 8 bits; sizes are changed with antialiasing, without keeping the aspect ratio.

    Args:
        file: Path of the image.
        size: Height and width of the result, in pixels.
        channels: 3 for colour, 1 for grey.
        crop: Top, left, height and width of the part to keep, in pixels of the file; None is the whole image.

    Raises:
        ValueError: If the image's values have no known range, or the crop leaves the image.
    """
    with Image.open(file, formats=FORMATS) as opened:
        image = opaque(eight_bit(opened)).convert("RGB" if channels == 3 else "L")
    height, width = size
    box = (0.0, 0.0, float(image.width), float(image.height))
    if crop is not None:
        top, left, crop_height, crop_width = crop
        if top + crop_height > image.height or left + crop_width > image.width:
            raise ValueError(
                f"dataset.crop={list(crop)} leaves the image of {image.height}x{image.width} pixels"
            )
        box = (left, top, left + crop_width, top + crop_height)
    if image.size != (width, height) or crop is not None:
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    values = np.asarray(image)
    return values.transpose(2, 0, 1) if channels == 3 else values[None]

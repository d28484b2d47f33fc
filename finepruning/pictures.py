"""Pictures in files that anybody may have written: opened as what they show, or refused in a sentence."""

import struct
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

FORMATS = ("PNG", "JPEG", "BMP", "PPM", "TIFF", "WEBP", "GIF")  # PostScript would start a program
UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
# what makes an image upright, by how its camera says that it was held
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(path: Path, key: str) -> Image.Image:
    """Return a picture upright, with 8 bits a channel.

    Args:
        path: The file.
        key: The configuration key it comes from.

    Raises:
        ValueError: If it cannot be read, or its values have no known range.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return eight_bit(image).copy()
    except UNREADABLE as error:
        raise ValueError(f"{path} is not an image ({error}). Change {key}.") from error


def eight_bit(image: Image.Image) -> Image.Image:
    """Return the image upright, with 8 bits a channel.

    Raises:
        ValueError: If its values have no known range.
    """
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode == "F" or (image.mode == "I" and not sixteen_bits):
        kind = "floating-point" if image.mode == "F" else "32-bit or signed"
        raise ValueError(f"its {kind} values have no known range; save it with 8 or 16 bits")
    image.load()  # a TIFF is turned by this
    turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is not None:  # ImageOps.exif_transpose writes all of the note anew, and fails on an odd one
        image = image.transpose(turn)
    if sixteen_bits:
        return Image.fromarray((np.asarray(image) // 257).clip(0, 255).astype(np.uint8))
    return image


def opaque(image: Image.Image) -> Image.Image:
    """Return the image with black behind what is transparent."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)

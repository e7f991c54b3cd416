"""One image file to bytes: orientation, transparency, palettes and 16 bits settled, size checked or made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ansn.errors import InputError

SUFFIXES = frozenset(f".{s}" for s in ["bmp", "gif", "jpeg", "jpg", "pbm", "pgm", "png", "ppm", "tif", "tiff", "webp"])
_GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange width and height
_SWAPPED = (5, 6, 7, 8)


def decode(path: Path, channels: int, image_size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """uint8 [channels, H, W]; channels 1 (grey, ITU-R 601 luma) or 3 (RGB).

    Photographs are turned upright by their EXIF tag; of several frames the first is taken; transparent pixels
    lie on white; 16-bit values are divided by 257 and rounded, floats in [0, 1] multiplied by 255.
    image_size: the largest centred part of that aspect is resized to (H, W), bicubic with antialiasing.
    InputError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            upright = _eight_bits(ImageOps.exif_transpose(image), path).convert("L" if channels == 1 else "RGB")
        if image_size is not None and upright.size != (image_size[1], image_size[0]):
            upright = ImageOps.fit(upright, (image_size[1], image_size[0]), Image.Resampling.BICUBIC)
        pixels = np.asarray(upright)
    except InputError:
        raise
    except Exception as error:  # decoders fail in many ways on a damaged file, all of them the file's fault
        raise _unreadable(path, error) from None
    return np.ascontiguousarray(pixels[None] if channels == 1 else np.moveaxis(pixels, 2, 0))


def probe(path: Path) -> tuple[int, int, int]:
    """(channels, H, W) that `decode` would find, from the header alone. InputError as there."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.getexif().get(_ORIENTATION) in _SWAPPED:
                width, height = height, width
            return (1 if image.mode in _GREY or _grey_palette(image) else 3), height, width
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    what = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else error or type(error).__name__
    return InputError(
        f"{path}: got no readable image ({what}), expected a whole {', '.join(sorted(SUFFIXES))} file"
    )


def _grey_palette(image: Image.Image) -> bool:
    palette = image.getpalette("RGB") if image.mode == "P" else None
    return palette is not None and palette[0::3] == palette[1::3] == palette[2::3]


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Any mode to one that converts to L and RGB without surprises."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        top, kind = (1.0, "floats in [0, 1]") if image.mode == "F" else (65535.0, "16 bits")
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= top:  # true of NaN too
            raise InputError(f"{path}: got grey values from {low:g} to {high:g}, expected 8 bits, {kind}")
        return Image.fromarray(np.rint(values.astype(np.float64) * 255 / top).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image

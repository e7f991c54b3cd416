"""One image file to bytes: orientation, transparency, palettes and 16 bits settled, size checked or made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, features

from ansn.errors import InputError

USUAL = tuple(f".{s}" for s in ["bmp", "gif", "jpeg", "jpg", "pbm", "pgm", "png", "ppm", "tif", "tiff", "webp"])
_FORMATS = ("AVIF", "DIB", "HEIF", "JPEG", "JPEG2000", "JXL", "MPO", "PCX", "PNG", "PPM", "QOI", "TGA", "TIFF")
_BUILT_IN = {"AVIF": "avif", "JPEG2000": "jpg_2000"}  # where Pillow was built with the library
_GREY = frozenset({"1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"})
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 exchange width and height
_SWAPPED = (5, 6, 7, 8)
_WIDTH, _LENGTH = 256, 257  # TIFF tags


def _suffixes() -> frozenset[str]:
    """The usual ones, and those of the other picture formats that this machine's Pillow reads."""
    more = (
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in _FORMATS and name in Image.OPEN and (name not in _BUILT_IN or features.check(_BUILT_IN[name]))
    )
    return frozenset(USUAL) | frozenset(more)


SUFFIXES = _suffixes()


def decode(
    path: Path, channels: int, image_size: tuple[int, int] | None, white: int = 65535, levels: int = 256
) -> NDArray[np.uint8]:
    """uint8 [channels, H, W]; channels 1 (grey, ITU-R 601 luma) or 3 (RGB).

    Photographs are turned upright by their EXIF tag; of several frames the first is taken; transparent pixels
    lie on white; greys of 16 or 32 bits are multiplied by 255 / white, floats in [0, 1] by 255, and rounded.
    image_size: the largest centred part of that aspect is resized to (H, W), bicubic with antialiasing.
    white: the value of greys of more than 8 bits that becomes 255, as brighter ones do.
    levels: values from there on become levels - 1.
    InputError: the file cannot be read as an image.
    """
    with _opened(path) as image:
        upright = _eight_bits(ImageOps.exif_transpose(image), path, white).convert("L" if channels == 1 else "RGB")
        if image_size is not None and upright.size != (image_size[1], image_size[0]):
            upright = ImageOps.fit(upright, (image_size[1], image_size[0]), Image.Resampling.BICUBIC)
        pixels = np.asarray(upright)
    if levels < 256:
        pixels = np.minimum(pixels, np.uint8(levels - 1))
    return np.ascontiguousarray(pixels[None] if channels == 1 else np.moveaxis(pixels, 2, 0))


def probe(path: Path) -> tuple[int, int, int]:
    """(channels, H, W) that `decode` would find, from the header alone. InputError as there."""
    with _opened(path) as image:
        width, height = image.size
        turned = image.getexif().get(_ORIENTATION) in _SWAPPED
        if turned and image.format == "TIFF":  # new releases of Pillow exchange the size of these already
            width, height = image.tag_v2[_WIDTH], image.tag_v2[_LENGTH]  # type: ignore[attr-defined]
        if turned:
            width, height = height, width
        return (1 if image.mode in _GREY or _grey_palette(image) else 3), height, width


def deep(path: Path) -> int:
    """Bits of greys of more than 8, 16 or 32, from the header alone; 0 for other images. InputError as `decode`."""
    if path.suffix.lower() in (".bmp", ".gif", ".jpeg", ".jpg", ".webp"):
        return 0
    with _opened(path) as image:
        return (32 if image.mode == "I" else 16) if image.mode.startswith("I") else 0


def deep_colour(path: Path) -> bool:
    """Whether the file holds colours of more than 8 bits, of which Pillow reads the upper 8. InputError as `decode`."""
    with _opened(path) as image:
        return image.mode.startswith("RGB") and ";16" in str(getattr(image, "tile", ""))


def brightest(path: Path) -> int:
    """The largest value of the file, as stored; of 8 bits where it is not `deep`; 255 of floats, of a known range.

    InputError as `decode`.
    """
    with _opened(path) as image:
        if image.mode.startswith("I"):
            return int(np.asarray(image).max())
        return 255 if image.mode == "F" else int(np.asarray(_eight_bits(image, path).convert("RGB")).max())


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The image of a file; by an open file, as Pillow maps a name's into memory, which scrambles turned TIFFs.

    InputError: decoders fail in many ways on a damaged file, in the block too, all of them the file's fault.
    """
    try:
        with open(path, "rb") as file, Image.open(file) as image:
            yield image
    except InputError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    what = "no known image format" if isinstance(error, Image.UnidentifiedImageError) else error or type(error).__name__
    return InputError(f"{path}: got no readable image ({what}), expected a whole {', '.join(USUAL)} file")


def _grey_palette(image: Image.Image) -> bool:
    palette = image.getpalette("RGB") if image.mode == "P" else None
    return palette is not None and palette[0::3] == palette[1::3] == palette[2::3]


def _eight_bits(image: Image.Image, path: Path, white: int = 65535) -> Image.Image:
    """Any mode to one that converts to L and RGB without surprises."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        floats = image.mode == "F"
        if not (low >= 0 and (high <= 1 or not floats)):  # true of NaN too
            raise InputError(
                f"{path}: got grey values from {low:g} to {high:g}, expected 8 bits, "
                f"{'floats in [0, 1]' if floats else '16 bits'}"
            )
        scaled = np.minimum(values.astype(np.float64) * 255 / (1 if floats else white), 255)
        return Image.fromarray(np.rint(scaled).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white_page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white_page, image).convert("RGB")
    return image

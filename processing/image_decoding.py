# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Images from anywhere to RGB, with Pillow.

Orientation (EXIF) is applied, 16-bit and float pictures are scaled to 8 bit, of an animation the first frame is taken.
Checksums of PNG files, which Pillow passes by for pixels, are checked. Fewer than 16 bits in a 16-bit picture are
scaled where the file says how many they are, else there is a warning.
Deviation from the authors' code (`Image.open(...).convert("RGB")`): transparent pixels are laid on white, as a browser
shows them, instead of showing whatever colour is stored under them.
"""

import contextlib
import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from .media_sources import MediaError, check_memory, describe_source, media_errors, open_media, warn_of


# What Pillow's readers raise on damaged files.
PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, MemoryError, struct.error,
    AssertionError, AttributeError, Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


_PNG = b"\x89PNG\r\n\x1a\n"
# SMinSampleValue and SMaxSampleValue, MinSampleValue and MaxSampleValue, BitsPerSample.
_TIFF_RANGES, _TIFF_BITS = ((340, 341), (280, 281)), 258
_PROGRAMS = ("EPS", "WMF")  # what Pillow would have other programs draw


def _read_png(file: BinaryIO, name: str) -> tuple[int, int]:
    """Bits of a sample, and how many of them the file says to be significant; all checksums are held against."""
    file.seek(len(_PNG))
    depth = significant = 0
    while len(head := file.read(8)) == 8:
        left, kind = struct.unpack(">I4s", head)
        checksum, first = zlib.crc32(kind), b""
        while left and (data := file.read(min(left, 1 << 20))):
            checksum, left, first = zlib.crc32(data, checksum), left - len(data), first or data
        told = file.read(4)
        if left or len(told) < 4:
            break
        if int.from_bytes(told, "big") != checksum:
            raise MediaError(name, f"damaged image (the checksum of its {kind.decode('latin-1')} is wrong)")
        if kind == b"IHDR" and len(first) > 8:
            depth = first[8]
        elif kind == b"sBIT" and first:
            significant = min(first)
        elif kind == b"IEND":
            return depth, significant
    warn_of(name, "cut off: the end of the file is missing")  # whether any pixels are, Pillow says
    return depth, significant


def _told_range(tags: Any, values: np.ndarray, significant: int, name: str) -> tuple[float, float] | None:
    """Which values of a picture of one channel are black and white, where the file says so."""
    top = float(values.max())
    for low, high in _TIFF_RANGES:
        if high in tags:
            black, white = (float(np.ravel(tags.get(tag, 0))[0]) for tag in (low, high))
            if black <= values.min() and top <= white and black < white:
                return black, white
            warn_of(name, f"its tags say that pixels run from {black:g} to {white:g}, but they do not")
    bits = int(np.ravel(tags.get(_TIFF_BITS, 16))[0])
    if 8 < bits < 16:
        return 0.0, 2.0**bits - 1
    # A PNG's samples should have been scaled to 16 bits, so that the lower ones are those of the upper ones or 0.
    if 8 < significant < 16 and top < 2**significant and (values % 2 ** (16 - significant)).any():
        return 0.0, 2.0**significant - 1
    return None


def _warn_of_darkness(name: str, low: float, top: float) -> None:
    if 0 < top < 1 << 14:
        warn_of(
            name,
            f"its 16-bit pixels run from {low:g} to {top:g} of 65535, and become nearly black; if they hold fewer "
            "bits, scale them, or let the file say so (SMaxSampleValue of a TIFF, sBIT of a grey PNG)",
        )


def _scale_to_8bit(image: Image.Image, name: str, tags: Any, significant: int) -> Image.Image:
    """Integer or float picture of one channel to mode L: what the file says to be black and white, else the 16-bit
    range for integers, [0, 1] or [0, 255] for floats."""
    values = np.array(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise MediaError(name, "holds pixels that are not finite numbers")
    low, top = float(values.min()), float(values.max())
    is_wide = image.mode.startswith("I;16") or top > 255
    if image.mode != "F" and is_wide and (told := _told_range(tags, values, significant, name)):
        values -= told[0]
        values *= 255.0 / (told[1] - told[0])
    elif is_wide:
        if image.mode != "F":
            _warn_of_darkness(name, low, top)
        values *= 255.0 / max(65535.0, top)
    elif image.mode == "F" and top <= 1:
        values *= 255.0
    return Image.fromarray(np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8))


def _bytes_per_pixel(image: Image.Image) -> int:
    """What decoding and converting to RGB take at most; Pillow keeps up to four bytes in each copy."""
    if image.mode == "F" or image.mode.startswith("I"):
        return 16
    return 20 if image.has_transparency_data else 8


def _to_rgb(image: Image.Image, name: str, depth: int = 0, significant: int = 0) -> Image.Image:
    """Decodes the picture, turns it upright and converts it to RGB. `depth`: bits of a sample; Pillow keeps 8 of 16 in
    pictures of several channels."""
    width, height = image.size
    with media_errors(name, "damaged image", PILLOW_ERRORS):
        size = width * height * _bytes_per_pixel(image)
    check_memory(name, size, f"{width} x {height} pixels of mode {image.mode}")
    if width == 0 or height == 0:
        raise MediaError(name, f"has no pixels ({width} x {height})")
    with media_errors(name, "damaged image", PILLOW_ERRORS):
        image.load()
    tags = getattr(image, "tag_v2", {})  # of a TIFF; a picture that has been turned has none
    is_deep = 16 in (depth, *np.ravel(tags.get(_TIFF_BITS, 0)))
    turned = False
    with contextlib.suppress(*PILLOW_ERRORS):  # broken EXIF data beside sound pixels: there is no orientation to apply
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        image = ImageOps.exif_transpose(image) if turned else image
    with media_errors(name, f"cannot be converted to RGB from mode {image.mode}", PILLOW_ERRORS):
        if image.mode == "F" or image.mode.startswith("I"):
            return _scale_to_8bit(image, name, tags, significant).convert("RGB")
        if is_deep:
            extrema = 256 * np.array(image.convert("RGB").getextrema())
            _warn_of_darkness(name, extrema.min(), extrema.max())
        if image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return image if image.mode == "RGB" else image.convert("RGB")


def array_to_uint8(values: np.ndarray, name: str) -> np.ndarray:
    """Pixel values of any dtype to uint8: integers and floats in 0..255 as they are, floats in 0..1 times 255.

    Raises:
        MediaError: values that are not finite or outside 0..255 (already normalised pixels, for instance).
    """
    if values.size == 0:
        raise MediaError(name, "has no pixels")
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if not np.isfinite(values).all():
        raise MediaError(name, "holds pixels that are not finite numbers")
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 255:
        raise MediaError(name, f"pixel values run from {low:g} to {high:g}, expected 0..255, or 0..1 for floats")
    if values.dtype.kind == "f" and high <= 1:
        values = values * 255.0
    return np.rint(values).astype(np.uint8)


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether an array is `(..., C, H, W)`, not `(..., H, W, C)`: three channels are likelier than one or four."""
    for counts in ((3,), (1, 4)):
        if shape[-1] in counts:
            return False
        if shape[-3] in counts:
            return True
    return False


def _warn_of_others(image: Image.Image, name: str) -> None:
    """A film or a scan of several pages is one picture here; a phone's MPO holds a preview of it besides."""
    several = False
    with contextlib.suppress(*PILLOW_ERRORS):  # a second picture that is damaged is left out like a sound one
        several = image.format != "MPO" and getattr(image, "is_animated", False)
    if several:
        warn_of(name, "holds several frames or pages, and the first alone is read: give a film as a video")


def _array_to_image(array: Any, name: str) -> Image.Image:
    values = array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array
    if values.ndim == 3 and has_channels_first(values.shape):
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim != 2 and not (values.ndim == 3 and values.shape[-1] in (3, 4)):
        raise MediaError(name, "an image array has the shape (H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels")
    return Image.fromarray(np.ascontiguousarray(array_to_uint8(values, name)))


def load_image(source: Any) -> Image.Image:
    """Reads one image.

    Args:
        source: anything that `open_media` takes, a PIL image (returned as it is if it is upright RGB), or an array or
            tensor `(H, W)`, `(H, W, C)` or `(C, H, W)`, 0..255, or 0..1 for floats.

    Returns:
        the picture, upright, in RGB and its own size.

    Raises:
        MediaError: no such file, not an image, damaged, or too large for `MAX_BYTES` of memory.
    """
    if isinstance(source, Image.Image):
        return _to_rgb(source, getattr(source, "filename", "") or "<PIL image>")
    if isinstance(source, (np.ndarray, torch.Tensor)):
        name = describe_source(source)
        return _to_rgb(_array_to_image(source, name), name)
    with open_media(source) as (file, name):
        bits = _read_png(file, name) if file.read(len(_PNG)) == _PNG else (0, 0)
        file.seek(0)
        with media_errors(name, "damaged image", PILLOW_ERRORS):
            try:
                image = Image.open(file)
            except Image.DecompressionBombError as error:
                raise MediaError(name, f"claims an absurd size ({error})") from error
            except Image.UnidentifiedImageError as error:
                raise MediaError(name, "not an image, or damaged") from error
        with image:
            if image.format in _PROGRAMS:
                raise MediaError(name, f"{image.format} is a program that draws, and is not run: give its pixels")
            _warn_of_others(image, name)
            upright = _to_rgb(image, name, *bits)
            return upright.copy() if upright is image else upright  # a plain image, without its file

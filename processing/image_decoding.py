# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Images from anywhere to RGB, with Pillow.

Orientation (EXIF) is applied, 16-bit and float pictures are scaled to 8 bit, of an animation the first frame is taken.
Deviation from the authors' code (`Image.open(...).convert("RGB")`): transparent pixels are laid on white, as a browser
shows them, instead of showing whatever colour is stored under them.
"""

import contextlib
import struct
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from .media_sources import MediaError, check_memory, describe_source, media_errors, open_media


# What Pillow's readers raise on damaged files.
PILLOW_ERRORS = (
    OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, MemoryError, struct.error,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)  # fmt: skip


def _scale_to_8bit(image: Image.Image, name: str) -> Image.Image:
    """Integer or float picture of one channel to mode L: 16-bit range for integers, [0, 1] or [0, 255] for floats."""
    values = np.array(image, dtype=np.float32)
    if not np.isfinite(values).all():
        raise MediaError(name, "holds pixels that are not finite numbers")
    top = float(values.max())
    if image.mode.startswith("I;16") or top > 255:
        values *= 255.0 / max(65535.0, top)
    elif image.mode == "F" and top <= 1:
        values *= 255.0
    return Image.fromarray(np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8))


def _bytes_per_pixel(image: Image.Image) -> int:
    """What decoding and converting to RGB take at most; Pillow keeps up to four bytes in each copy."""
    if image.mode == "F" or image.mode.startswith("I"):
        return 16
    return 20 if image.has_transparency_data else 8


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Decodes the picture, turns it upright and converts it to RGB."""
    width, height = image.size
    check_memory(name, width * height * _bytes_per_pixel(image), f"{width} x {height} pixels of mode {image.mode}")
    if width == 0 or height == 0:
        raise MediaError(name, f"has no pixels ({width} x {height})")
    with media_errors(name, "damaged image", PILLOW_ERRORS):
        image.load()
    turned = False
    with contextlib.suppress(*PILLOW_ERRORS):  # broken EXIF data beside sound pixels: there is no orientation to apply
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        image = ImageOps.exif_transpose(image) if turned else image
    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    with media_errors(name, f"cannot be converted to RGB from mode {image.mode}", PILLOW_ERRORS):
        if image.mode == "F" or image.mode.startswith("I"):
            image = _scale_to_8bit(image, name)
        elif image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        return image.convert("RGB")


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
        with media_errors(name, "damaged image", PILLOW_ERRORS):
            try:
                image = Image.open(file)
            except Image.DecompressionBombError as error:
                raise MediaError(name, f"claims an absurd size ({error})") from error
            except Image.UnidentifiedImageError as error:
                raise MediaError(name, "not an image, or damaged") from error
        with image:
            upright = _to_rgb(image, name)
            return upright.copy() if upright is image else upright  # a plain image, without its file

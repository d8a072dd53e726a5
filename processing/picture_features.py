# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pictures to the inputs of any image encoder, by the image processor that it was published with.

Most give `pixel_values (N, 3, H, W)`. That of SigLIP 2 (NaFlex) keeps the shape of a picture and gives patches, their
mask and the shapes of their grids: the model reads these as one tensor `(N, P, patch + 2)`, which says behind each
patch its row and column, counted from 1, and 0 behind padding.
"""

import copy
import functools
import json
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name


_OF_TRANSFORMERS = ("preprocess", "process_image", "_preprocess", "resize", "rescale_and_normalize")


@functools.cache
def _reading_in_place(kind: type) -> type | None:
    """A kind of image processor that resizes RGB pictures as they lie in memory, three bytes a pixel, where
    transformers' first copies them plane by plane; `None` where that is not all of what this kind would do."""
    from transformers.image_processing_backends import TorchvisionBackend  # takes long

    if any(getattr(kind, name, None) is not getattr(TorchvisionBackend, name) for name in _OF_TRANSFORMERS):
        return None

    def process_image(self: Any, image: Any, **kwargs: Any) -> torch.Tensor:
        is_plain = isinstance(image, Image.Image) and image.mode == "RGB" and "transparency" not in image.info
        if not is_plain or kwargs.get("device") is not None or not self.do_resize:
            return TorchvisionBackend.process_image(self, image, **kwargs)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    return type(kind.__name__, (kind,), {"process_image": process_image, "__module__": kind.__module__})


def extract_pictures(processor: Any, pictures: list[Any], **kwargs: Any) -> BatchFeature:
    """`pixel_values` of pictures; `processor` is an image processor of transformers, `kwargs` are for it.

    Raises:
        ValueError: it gives none, or not what one picture alone becomes.
    """
    of_any_shape = "spatial_shapes" in processor.model_input_names
    wants_tensors = of_any_shape or kwargs.get("return_tensors") == "pt"
    own: Any = type(processor)
    if wants_tensors and (kind := _reading_in_place(own)) is not None:
        processor = copy.copy(processor)
        processor.__class__ = kind
    batch = processor(pictures, **{**kwargs, **({"return_tensors": "pt"} if of_any_shape else {})})
    if "pixel_values" not in batch:
        gave = ", ".join(batch)
        raise ValueError(f"a {type(processor).__name__} gives {gave}, expected pixel_values")
    pixels = batch["pixel_values"]
    if of_any_shape:
        pixels = torch.cat([pixels, _places(batch["spatial_shapes"], pixels.shape[1]).to(pixels)], -1)
    elif isinstance(pixels, torch.Tensor) and pixels.dim() != 4:
        raise ValueError(
            f"a {type(processor).__name__} gives pixel_values of shape {tuple(pixels.shape)}, expected (N, 3, H, W)"
        )
    return BatchFeature({"pixel_values": pixels.contiguous() if wants_tensors else pixels})


def _places(shapes: torch.Tensor, patches: int) -> torch.Tensor:
    """Row and column of each patch, from 1: `(N, 2)` to `(N, P, 2)`, padded with 0."""
    places = torch.zeros(len(shapes), patches, 2)
    for rows, (height, width) in zip(places, shapes.tolist()):
        rows[: height * width] = torch.cartesian_prod(torch.arange(1, height + 1), torch.arange(1, width + 1))
    return places


@functools.lru_cache(maxsize=8)
def _image_processor(settings: str) -> Any:
    values = json.loads(settings)
    found = get_image_processor_class_from_name(name := str(values.get("image_processor_type")))
    if found is None:
        raise ValueError(f"frame_processor: transformers has no image processor {name!r}")
    return found.from_dict(values)


def image_processor(settings: dict[str, Any]) -> Any:
    """The image processor with these settings, as its `to_dict` gives them; made once."""
    return _image_processor(json.dumps(settings, sort_keys=True))


__all__ = ["extract_pictures", "image_processor"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How image encoders of transformers read a picture, and what they give: one sequence of vectors.

Most read `(N, 3, H, W)` and give `(N, T, E)`, class and register tokens first; a convolutional one gives a map
`(N, E, H, W)`, which is read row by row. An encoder of pictures of any shape (SigLIP 2 NaFlex) reads patches: its
input `(N, P, patch + 2)` says behind each patch its row and column, counted from 1, and 0 where there is none, so that
a picture is one tensor, also as a frame of a video.

Legend: N pictures, P patches, T vectors of a picture, E width.
"""

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from .host_reads import check


# By `model_type`: these read patches instead of a picture.
PATCH_READERS = ("siglip2_vision_model",)


def reads_pictures(tower: PreTrainedModel) -> bool:
    """Whether an encoder reads pictures rather than sound or other sequences."""
    return tower.main_input_name == "pixel_values"


def encode_pictures(
    tower: PreTrainedModel, pictures: torch.Tensor, **kwargs
) -> tuple[BaseModelOutput, torch.Tensor | None]:
    """Run an encoder of pictures `(N, 3, H, W)`, or patches as above: its output with `last_hidden_state (N, T, E)`,
    and the mask `(N, T)` of real vectors, or `None` where all are real."""
    mask = None
    if tower.config.model_type in PATCH_READERS:
        if pictures.dim() != 3:
            raise ValueError(
                f"a {tower.config.model_type} reads patches (N, P, patch + 2), got {tuple(pictures.shape)}: give it "
                "what the processor beside the model makes"
            )
        places = pictures[..., -2:].long()  # (N, P, 2), from the input as it came: half precision may round them
        mask, shapes = places[..., 0] > 0, places.amax(1)  # (N, P), (N, 2)
        check(mask.sum(1) == shapes.prod(1), lambda: "pixel_values: rows and columns of patches are no grid")
        kwargs |= {"pixel_attention_mask": mask.long(), "spatial_shapes": shapes}
        pictures = pictures[..., :-2]
    outputs = tower(pictures.to(tower.dtype), **kwargs)
    states = outputs.last_hidden_state
    if states.dim() == 4:
        outputs.last_hidden_state = states.flatten(2).transpose(1, 2)  # (N, E, H, W) -> (N, H * W, E)
    return outputs, mask


def blank_picture(config: PreTrainedConfig) -> torch.Tensor:
    """A picture of zeros, as `encode_pictures` takes it: `(1, 3, H, W)`, or a single patch `(1, 1, patch + 2)`."""
    channels = getattr(config, "num_channels", 3)
    if config.model_type in PATCH_READERS:
        return torch.nn.functional.pad(torch.zeros(1, 1, channels * config.patch_size**2), (0, 2), value=1.0)
    size = getattr(config, "image_size", None) or 224
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(1, channels, height, width)


__all__ = ["PATCH_READERS", "blank_picture", "encode_pictures", "reads_pictures"]

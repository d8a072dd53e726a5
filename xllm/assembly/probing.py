# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Whether an encoder, its own preprocessor and an interface fit: a small item is read as any other will be."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.media_kinds import AUDIO, IMAGE, SOUND, VIDEO
from xllm.processing.processing_xllm import XLLMProcessor


def _item(kind: Any, reader: Any) -> Any:
    """A grey picture, two of them as a film, a second of noise; `None` for a kind of one's own."""
    grey = Image.new("RGB", (96, 64), "grey")
    if kind in (IMAGE, VIDEO):
        return grey if kind is IMAGE else [np.asarray(grey)] * 2
    rate = getattr(reader, "sampling_rate", None)
    if kind not in (AUDIO, SOUND) or rate is None:
        return None
    noise = np.random.default_rng(0).standard_normal(rate).astype(np.float32)
    return {"array": 0.1 * noise, "sampling_rate": rate}


@torch.no_grad()
def check_encoders(model: XLLMForConditionalGeneration, processor: XLLMProcessor, sources: dict[str, str]) -> None:
    """Raises a `ValueError` that names the first encoder of `sources` (by tower) whose features no interface can take,
    or for which the processor writes another number of placeholders."""
    for name, row in model.config.modalities.items():
        if row.encoder not in sources:
            continue
        tower: Any = model.model.tower(row.encoder)
        where = f"--encoder {row.encoder}={sources[row.encoder]}: a {tower.config.model_type}"
        is_half = tower.dtype == torch.float16  # slow on a CPU
        try:
            _read(model, processor, name, tower.float() if is_half else tower)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{where} does not read what its preprocessor makes: {reason}") from error
        finally:
            if is_half:
                tower.half()


def _read(model: Any, processor: XLLMProcessor, name: str, tower: Any) -> None:
    row, media_row = model.config.modalities[name], processor.rows[name]
    kind = media_row.kind
    reader = processor.reader(kind)
    if (item := _item(kind, reader)) is None:
        return
    inputs = processor._tensors_by_row(kind, kind.read(reader, [kind.load(item, reader)], return_tensors="pt"))
    outputs, mask = model.model.encode(name, inputs[row.input_name], inputs.get(row.mask_name))
    states = outputs.last_hidden_state
    if states.dim() != 3 or states.shape[-1] != row.encoder_hidden_size:
        wanted = f"one sequence of vectors that are {row.encoder_hidden_size} wide"
        raise ValueError(f"it gives features of shape {tuple(states.shape)}, expected {wanted}")
    features = model.get_features(name, inputs[row.input_name], inputs.get(row.mask_name))
    written = media_row.num_placeholders(kind.num_positions(inputs, 0, row.input_name, row.mask_name))
    if kind is not VIDEO and written != int(features.num_placeholders.sum()):
        owned = int(features.num_placeholders.sum())
        raise ValueError(f"the processor writes {written} placeholders for an item that owns {owned}")

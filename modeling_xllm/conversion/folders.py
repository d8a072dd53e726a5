# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Published folders and Hub repositories as a `Conversion`: BLIP-2 without its language model, BERT for a C-Former."""

from xllm.modeling_xllm.composition.towers import (
    compose_tensors,
    encoder_config,
    interface_tensors,
    published_config,
    row_like,
    split_source,
)
from xllm.modeling_xllm.configuration_chatglm import ChatGLMConfig
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig
from xllm.modeling_xllm.conversion.convert import Conversion, ConversionError, check_shapes, reference_shapes


def convert_folder(source: str, base: XLLMConfig | None = None) -> Conversion:
    """What `source`, a folder or Hub id ("repo" or "repo@revision") of a BLIP-2 or a BERT, holds, as `convert` does.

    `base`: the model that the weights are to go into; a BERT, the transformer of a C-Former, needs one. Another
    architecture or shape is a `ConversionError`; what cannot be had or lacks tensors a `StageCheckpointError`.
    """
    published = published_config(source)
    if published.model_type == "blip-2":
        name, revision = split_source(source)
        width = published.text_config.hidden_size
        config = XLLMConfig(
            text_config=ChatGLMConfig(hidden_size=width, num_attention_heads=max(1, width // 128)),
            vision_config=encoder_config(source),
            modalities={"image": row_like(X2LConfig(), "image", source)},
            towers={"vision_tower": {"name_or_path": name, "revision": revision}},
        )
        tensors = compose_tensors(config, {}, {"image": source})
        config.towers = None
    elif published.model_type == "bert" and base is not None:
        row = base.modalities.get("speech")
        if row is None or row.cformer_config is None or row.cformer_config.transformer != "bert":
            raise ConversionError(f"{source}: this model has no speech interface whose transformer can be a BERT")
        config, tensors = base, interface_tensors("speech", row, source)
    else:
        hint = "; name a BERT by xllm init --interface speech=..., or give --model" * (published.model_type == "bert")
        raise ConversionError(f"{source}: a {published.model_type} checkpoint, expected BLIP-2, BERT or ChatGLM{hint}")
    origin = dict.fromkeys(tensors, source)
    check_shapes(tensors, reference_shapes(config if base is None else base), origin)
    return Conversion(config, tensors, origin=origin)

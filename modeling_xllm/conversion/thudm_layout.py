# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Writes a ChatGLM as THUDM published theirs, for the tools that read that layout; `from_pretrained` reads it as it
is.

    config.json                           THUDM's names (`num_layers`, `inner_hidden_size`, ...) and its `auto_map`: to
                                          run THUDM's code, put its .py files beside
    pytorch_model-0000x-of-0000y.bin      fp16, norms in fp32, the rotary frequencies once per layer; with an index
    generation_config.json, ice_text.model, tokenizer_config.json, ...

Source: files of THUDM/chatglm-6b (April-May 2023).
"""

import os
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, WEIGHTS_INDEX_NAME

from xllm.modeling_xllm.configuration_chatglm import ChatGLMConfig
from xllm.modeling_xllm.modeling_chatglm import ChatGLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import write_json


PUBLISHED_FIELDS = (
    "bos_token_id", "eos_token_id", "gmask_token_id", "mask_token_id", "pad_token_id", "hidden_size",
    "inner_hidden_size", "layernorm_epsilon", "max_sequence_length", "num_attention_heads", "num_layers", "use_cache",
    "vocab_size",
)  # fmt: skip
# Fields that THUDM's code has as constants; written where they differ from what it does.
OWN_FIELDS = ("residual_scale", "rope_theta", "rope_half_precision", "legacy_sop_position", "tie_word_embeddings")
AUTO_CLASS = "modeling_chatglm.ChatGLMForConditionalGeneration"


def save_thudm_checkpoint(
    model: PreTrainedModel,
    save_directory: str | os.PathLike,
    tokenizer=None,
    dtype: torch.dtype = torch.float16,
    max_shard_size: int | str = "2GB",
) -> None:
    """Write a ChatGLM, or the ChatGLM inside an X-LLM, in THUDM's layout. One shard at a time is copied.

    Args:
        model: `ChatGLMForConditionalGeneration`, or `XLLMForConditionalGeneration` around one.
        save_directory, tokenizer: folder to write, made if it is not there; what is written beside the weights.
        dtype: of all weights but the norms, which are fp32 as published.
        max_shard_size: bytes, or a size such as "2GB"; one `pytorch_model.bin` if all fits into it.

    Raises:
        ValueError: another language model, a quantised one, or one with adapters that are not merged.
    """
    config = model.config.get_text_config()
    state = _thudm_state_dict(model, config)
    folder = Path(save_directory)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_NAME, _published_config(config, dtype))
    model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)

    def stored_dtype(name: str) -> torch.dtype:
        return torch.float32 if "layernorm" in name else dtype

    split = split_state_dict_into_shards_factory(
        {name: (name, tensor) for name, tensor in state.items()},
        get_storage_size=lambda item: item[1].numel() * stored_dtype(item[0]).itemsize,
        filename_pattern="pytorch_model{suffix}.bin",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        # Copied, because torch.save writes the whole storage that a view belongs to.
        torch.save({name: state[name].to("cpu", stored_dtype(name), copy=True) for name in names}, folder / file)
    if split.is_sharded:
        write_json(folder / WEIGHTS_INDEX_NAME, {"metadata": split.metadata, "weight_map": split.tensor_to_filename})


def _thudm_state_dict(model: PreTrainedModel, config: ChatGLMConfig) -> dict[str, torch.Tensor]:
    """Tensors under THUDM's names, those of the rotary frequencies included."""
    if config.model_type != "chatglm":
        raise ValueError(f"model: got a {config.model_type} language model, expected a ChatGLM")
    if (method := getattr(model.config, "quantization_config", None)) is not None:
        hint = "load it without quantization_config to save it"
        raise ValueError(f"model: its weights are quantised ({method.quant_method}); {hint}")
    decoder = model.get_decoder()
    state = {f"transformer.{name}": tensor for name, tensor in decoder.state_dict().items()}
    state["lm_head.weight"] = model.get_output_embeddings().weight.data
    with torch.device("meta"):
        expected = ChatGLMForConditionalGeneration(config).state_dict().keys()
    if unknown := sorted(state.keys() ^ expected):
        raise ValueError(
            f"model: THUDM's layout has no place for {unknown[0]} (and {len(unknown) - 1} more); "
            "merge adapters into the weights first (merge_and_unload)"
        )
    frequencies = decoder.rotary_emb.inv_freq_bits.view(torch.float32).half()
    for index in range(config.num_hidden_layers):
        state[f"transformer.layers.{index}.attention.rotary_emb.inv_freq"] = frequencies
    return state


def _published_config(config: ChatGLMConfig, dtype: torch.dtype) -> dict:
    """Contents of config.json."""
    fields = {name: getattr(config, name) for name in PUBLISHED_FIELDS}
    assumed = ChatGLMConfig(**fields)
    differing = {name: getattr(config, name) for name in OWN_FIELDS if getattr(config, name) != getattr(assumed, name)}
    auto_models = dict.fromkeys(("AutoModel", "AutoModelForSeq2SeqLM"), AUTO_CLASS)
    return {
        "architectures": ["ChatGLMModel"],
        "auto_map": {"AutoConfig": "configuration_chatglm.ChatGLMConfig", **auto_models},
        "model_type": "chatglm",
        "position_encoding_2d": True,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **fields,
        **differing,
    }

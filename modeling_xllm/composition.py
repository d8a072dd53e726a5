# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A new X-LLM from published towers: `XLLMForConditionalGeneration.from_towers` is built of these functions.

One BLIP-2 repository (e.g. Salesforce/blip2-opt-6.7b) gives the image encoder with its norm, the Q-Former, the query
tokens and, where the widths agree, the I-Adapter; a BERT gives the C-Former's transformer; a causal LM its weights and head.
"""

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig

from .configuration_chatglm import ChatGLMConfig
from .configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from .stage_checkpoints import StageCheckpointError, read_tensors, read_tower


BERT_SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
)
# Field of XLLMConfig for each tower that HF names; others go to `extra_encoders`.
TOWER_FIELDS = {"vision": "vision_config", "audio": "audio_config"}


def split_source(source: str) -> tuple[str, str | None]:
    """ "repo@revision" as repository (or folder) and revision."""
    name, _, revision = source.rpartition("@")
    return (name, revision) if name else (source, None)


def published_config(source: str) -> PreTrainedConfig:
    """Config of the model in folder or repository `source`."""
    name, revision = split_source(source)
    try:
        values = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
        if values.get("model_type") == ChatGLMConfig.model_type:
            return ChatGLMConfig.from_dict(values)
        return AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise StageCheckpointError(f"cannot read the config of {source}: {error}") from error


def encoder_config(source: str) -> PreTrainedConfig:
    """Config of the encoder inside `source`: the tower's own, a BLIP-2's vision part, a CTC model's encoder."""
    config = published_config(source)
    for field in ("vision_config", "encoder_config"):
        if field in config.sub_configs:
            return getattr(config, field)
    return config


def compose_config(
    language_model: str,
    encoders: dict[str, str],
    interfaces: dict[str, str],
    modalities: dict[str, X2LConfig] | None = None,
    **fields,
) -> XLLMConfig:
    """The config of a model composed of published towers; see `from_towers` for the arguments."""
    configs = {TOWER_FIELDS[key]: encoder_config(source) for key, source in encoders.items() if key in TOWER_FIELDS}
    extra = {key: encoder_config(source) for key, source in encoders.items() if key not in TOWER_FIELDS}
    rows = default_modalities() if modalities is None else modalities
    if unknown := set(interfaces) - set(rows):
        raise ValueError(f"interfaces: no modality {', '.join(sorted(unknown))}; the rows are {', '.join(rows)}")
    for key, source in interfaces.items():
        _take_converter_sizes(rows[key], source)
    towers = {
        "language_model": language_model,
        **{
            f"{key}_tower" if key in TOWER_FIELDS else f"extra_towers.{key}": source
            for key, source in encoders.items()
        },
    }
    return XLLMConfig(
        text_config=published_config(language_model),
        modalities=rows,
        extra_encoders=extra,
        towers={part: dict(zip(("name_or_path", "revision"), split_source(at))) for part, at in towers.items()},
        **configs,
        **fields,
    )


def _take_converter_sizes(row: X2LConfig, source: str) -> None:
    """The converter takes the sizes of the published one that will be loaded into it."""
    published = published_config(source)
    if row.converter == "qformer" and published.model_type == "blip-2":
        row.qformer_config = published.qformer_config
        row.num_query_tokens = published.num_query_tokens
    elif row.converter == "cformer" and published.model_type == "bert":
        for name in BERT_SIZES:
            setattr(row.cformer_config, name, getattr(published, name))
    else:
        raise ValueError(f"{source} ({published.model_type}) cannot initialise a {row.converter} interface")


def interface_tensors(modality: str, row: X2LConfig, source: str) -> dict[str, torch.Tensor]:
    """Weights of a published converter under the names of interface `modality` (see the module's first lines)."""
    name, revision = split_source(source)
    prefix = f"model.interfaces.{modality}."
    if row.converter == "cformer":
        bert = AutoModel.from_pretrained(name, revision=revision, add_pooling_layer=False)
        return {
            f"{prefix}converter.bert.{key}": value
            for key, value in bert.state_dict().items()
            if not key.startswith("embeddings.word_embeddings")
        }
    renames = {
        "qformer.": "converter.qformer.",
        "query_tokens": "converter.query_tokens",
        "language_projection.": "adapter.",
    }
    tensors = read_tensors(name, revision, lambda key: key.startswith(tuple(renames)))
    renamed = {}
    for key, value in tensors.items():
        old = next(start for start in renames if key.startswith(start))
        renamed[prefix + renames[old] + key.removeprefix(old)] = value
    if renamed[f"{prefix}adapter.weight"].shape[0] != row.language_hidden_size:
        del renamed[f"{prefix}adapter.weight"], renamed[f"{prefix}adapter.bias"]  # made for another LLM's width
    return renamed


def compose_tensors(config: XLLMConfig, interfaces: dict[str, str]) -> dict[str, torch.Tensor]:
    """All published weights of a composed model; what is not among them is initialised."""
    tensors = {}
    for part, source in config.towers.items():
        tensors.update(read_tower(part, source["name_or_path"], source.get("revision")))
    for modality, source in interfaces.items():
        tensors.update(interface_tensors(modality, config.modalities[modality], source))
    return tensors


__all__ = ["compose_config", "compose_tensors", "encoder_config", "interface_tensors", "split_source"]

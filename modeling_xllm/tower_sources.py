# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The parts of a model, by name, and their weights from where they are published.

A part is a tower ("vision_tower", "audio_tower", "extra_towers.<name>") or "language_model", which brings its head.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.models.clap.modeling_clap import ClapAudioModel

from .language_heads import scaled_logits
from .language_models import LANGUAGE_MODELS, LanguageModel
from .weight_files import StageCheckpointError, check_fit, read_tensors


NAMED_TOWERS = ("vision_tower", "audio_tower")  # the others are in `extra_towers`
# Towers that AutoModel does not know, by their `model_type`.
TOWER_CLASSES: dict[str | None, type[PreTrainedModel]] = {
    "blip_2_vision_model": Blip2VisionModel,
    "clap_audio_model": ClapAudioModel,
}
# Published models that hold a tower beside other things, and under which names.
TOWER_PREFIXES = {
    "blip-2": "vision_model.",
    "clap": "audio_model.",
    "parakeet_ctc": "encoder.",
    "parakeet_rnnt": "encoder.",
    "parakeet_tdt": "encoder.",
    "fun_asr_nano": "model.audio_tower.",
}
# What a published encoder may lack, since nobody here reads it: its pooler, what masks features in its own training.
UNREAD = ("pooler.", "masked_spec_embed")


def part_of(key: str) -> str:
    """Which part of the model a parameter belongs to, e.g. "language_model" for "lm_head.weight"."""
    names = key.removeprefix("model.").split(".")
    if names[0] == "extra_towers":
        return ".".join(names[:2])
    return "language_model" if names[0] == "lm_head" else names[0]


def load_whole(
    auto, name_or_path: str, revision: str | None = None, may_hold: str = ".*", **kwargs
) -> PreTrainedModel:
    """`auto.from_pretrained`, where tensors that would be left random (but those of `UNREAD`), of another shape, or
    that the model has not, are a `StageCheckpointError`. Those whose names match `may_hold` are allowed."""
    kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are told of below
    with quiet_report():
        model, info = auto.from_pretrained(name_or_path, revision=revision, **kwargs)
    unexpected = [name for name in info["unexpected_keys"] if not re.fullmatch(may_hold, name)]
    missing = [name for name in info["missing_keys"] if not name.removeprefix("encoder.").startswith(UNREAD)]
    found, wanted = (dict.fromkeys(names, torch.Size()) for names in (unexpected, missing))
    for name, stored, expected in info["mismatched_keys"]:
        found[name], wanted[name] = stored, expected
    check_fit(found, wanted, name_or_path, type(model).__name__)
    return model


def tower_config(config: PreTrainedConfig, name: str = "vision") -> PreTrainedConfig:
    """Config of the encoder inside a published model: its own, or that of one half (CLIP, BLIP-2, CLAP, Parakeet's
    CTC); where there is one for pictures and one for sound, that of the tower called `name`."""
    halves = ("vision_config", "encoder_config", "audio_config")
    for field in halves if name == "vision" else halves[::-1]:
        if field in config.sub_configs:
            return getattr(config, field)
    return config


def tower_of(encoder: str) -> str:
    """Part of the model that holds the encoder called so: "vision_tower", "extra_towers.status"."""
    return f"{encoder}_tower" if f"{encoder}_tower" in NAMED_TOWERS else f"extra_towers.{encoder}"


def encoder_of(part: str) -> str:
    """The name of the encoder in a part of the model; the inverse of `tower_of`."""
    return part.removeprefix("extra_towers.") if part.startswith("extra_towers.") else part.removesuffix("_tower")


@contextmanager
def quiet_report() -> Iterator[None]:
    """transformers' table of tensors that did not fit is not shown: an error that names them follows."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def read_tower(part: str, name_or_path: str, revision: str | None = None, **hub) -> dict[str, torch.Tensor]:
    """State dict of one part, under the names it has in X-LLM, from a Hub id or folder (with `token`, `cache_dir` and
    the like in `hub`): the tower's own, a model of `TOWER_PREFIXES` or a whole X-LLM. If it cannot be had, a
    `StageCheckpointError` names the part and its source."""
    try:
        # By the file rather than AutoConfig: as remote code, our own classes are not registered.
        model_type = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, **hub)[0].get("model_type")
        if str(model_type).startswith("xllm"):  # whole ones and those of stage 1
            return read_tensors(name_or_path, revision, lambda key: part_of(key) == part, **hub)
        if part == "language_model":
            return _language_tensors(name_or_path, revision, **hub)
        if model_type in TOWER_PREFIXES:
            prefix = TOWER_PREFIXES[model_type]
            tensors = read_tensors(name_or_path, revision, lambda key: key.startswith(prefix), **hub)
            return {f"model.{part}.{key.removeprefix(prefix)}": value for key, value in tensors.items()}
        if model_type in TOWER_CLASSES:
            tower = load_whole(TOWER_CLASSES[model_type], name_or_path, revision, **hub)
        else:
            whole = AutoConfig.from_pretrained(name_or_path, revision=revision, **hub)
            config = tower_config(whole, encoder_of(part))
            tower = load_whole(AutoModel, name_or_path, revision, config=config, **hub)
        tower = tower.get_encoder() if tower.config.is_encoder_decoder else tower
        return {f"model.{part}.{key}": value for key, value in tower.state_dict().items()}
    except (OSError, ValueError, KeyError, ImportError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)  # the rest is advice about URLs
        raise StageCheckpointError(f"{part}: cannot load {name_or_path}{at}: {reason}") from error


def _language_tensors(name_or_path: str, revision: str | None, **hub) -> dict[str, torch.Tensor]:
    """A causal language model with its head; of a model that reads media itself, its language model."""
    config = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, **hub)[0]
    reads_media = "text_config" in config
    if reads_media:
        causal = load_whole(AutoModelForMultimodalLM, name_or_path, revision, **hub)
    else:
        auto = LANGUAGE_MODELS.get(config.get("model_type"), LanguageModel).causal_lm_class
        causal = load_whole(auto, name_or_path, revision, **hub)
    inner = without_head(causal.get_decoder() if reads_media else causal)
    tensors = {f"model.language_model.{key}": value for key, value in inner.state_dict().items()}
    head = causal.get_output_embeddings()
    check_head(causal, inner, name_or_path)
    return {**tensors, **{f"lm_head.{key}": value for key, value in head.state_dict().items()}}


def without_head(causal: PreTrainedModel) -> PreTrainedModel:
    """A causal language model's layers."""
    inner: Any = causal.base_model
    return inner if inner.get_output_embeddings() is None else inner.model  # Llama 4 calls itself its base model


class _Hidden(BaseModelOutputWithPast):
    """Last hidden states alone, whatever else a kind of model asks its layers for (routers, cross-attention)."""

    def __getattr__(self, name: str) -> None:
        return None


@torch.no_grad()
def check_head(causal: PreTrainedModel, inner: PreTrainedModel, source: str) -> None:
    """A `StageCheckpointError` unless `scaled_logits` computes what a published model makes of the last hidden
    states: some scale or cap their logits, or have more than a linear layer behind them."""
    config, head = inner.config, causal.get_output_embeddings()
    read: list[torch.Tensor] = []
    hidden = torch.randn(1, 2, head.weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(head.weight.dtype)

    def layers(*args, **kwargs) -> _Hidden:  # not run: only the head is
        read.append(hidden)
        return _Hidden(last_hidden_state=hidden)

    with head.register_forward_pre_hook(lambda module, args: read.append(args[0])):
        try:
            inner.forward = layers
            theirs = causal(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits
        finally:
            del inner.forward  # what its class says holds again
    ours = scaled_logits(config, head(read[0])) if read else None
    if ours is None or ours.shape != theirs.shape or not torch.allclose(ours.to(theirs), theirs, rtol=1e-2, atol=1e-3):
        raise StageCheckpointError(
            f"{source}: the head of a {config.model_type} does more than a linear layer and the scale or cap that its "
            "config names; name a model of another family"
        )

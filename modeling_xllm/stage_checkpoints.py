# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage checkpoints: only what was trained is stored; frozen parts are named by where they come from.

`config.towers` maps a part of the model ("vision_tower", "audio_tower", an extra tower, "language_model" with its head)
to its source, `{"name_or_path": ..., "revision": ...}`: a Hub repository or folder of that tower, or of a whole X-LLM.
Parts without a source are stored. `from_pretrained` puts the whole model together again, and fails if a tensor is missing.
"""

import copy
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .modeling_chatglm import ChatGLMForConditionalGeneration


# Published models that hold a tower beside other things, and under which names.
TOWER_PREFIXES = {
    "blip-2": "vision_model.",
    "parakeet_ctc": "encoder.",
    "parakeet_tdt": "encoder.",
    "fun_asr_nano": "model.audio_tower.",
}

# What quantisation spares unless its config has a list of its own; the interfaces are trained, and spared always.
FLOAT_MODULES = ("model.vision_tower", "model.audio_tower", "model.extra_towers", "lm_head")


class StageCheckpointError(ValueError):
    """A stage checkpoint, or a tower it names, cannot be read or does not fit."""


def part_of(key: str) -> str:
    """Which part of the model a parameter belongs to, e.g. "language_model" for "lm_head.weight"."""
    names = key.removeprefix("model.").split(".")
    if names[0] == "extra_towers":
        return ".".join(names[:2])
    return "language_model" if names[0] == "lm_head" else names[0]


def _shards(source: str, revision: str | None) -> list[str]:
    """Local paths of the safetensors files of a folder or Hub repository."""
    index = cached_file(
        source, SAFE_WEIGHTS_INDEX_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if index is None:
        return [cached_file(source, SAFE_WEIGHTS_NAME, revision=revision)]
    files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return [cached_file(source, name, revision=revision) for name in sorted(set(files))]


def read_tensors(source: str, revision: str | None, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors checkpoint whose names satisfy `wanted`; nothing else is read."""
    tensors = {}
    for shard in _shards(source, revision):
        with safe_open(shard, framework="pt") as file:
            tensors.update({name: file.get_tensor(name) for name in file.keys() if wanted(name)})  # noqa: SIM118
    return tensors


def load_whole(
    auto, name_or_path: str, revision: str | None = None, may_hold: str = ".*", **kwargs
) -> PreTrainedModel:
    """`auto.from_pretrained`, where a tensor that would be left random is an error (but a pooler: nothing here reads it).

    Args:
        auto: a model or Auto class.
        may_hold (`str`): pattern of names that the checkpoint may hold beside those of the model.

    Raises:
        StageCheckpointError: the checkpoint lacks tensors, or holds others; the message lists them.
    """
    model, info = auto.from_pretrained(name_or_path, revision=revision, output_loading_info=True, **kwargs)
    unexpected = [name for name in info["unexpected_keys"] if not re.fullmatch(may_hold, name)]
    missing = [name for name in info["missing_keys"] if not name.startswith("pooler.")]
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise StageCheckpointError(
                f"{name_or_path}: {len(names)} tensors are {what}: {', '.join(sorted(names)[:3])}"
            )
    return model


def read_tower(part: str, name_or_path: str, revision: str | None = None) -> dict[str, torch.Tensor]:
    """State dict of one part, under the names it has in X-LLM.

    Args:
        part (`str`): "vision_tower", "audio_tower", "extra_towers.<name>" or "language_model" (which brings its head).
        name_or_path (`str`): Hub id or folder: the tower's own, a model of `TOWER_PREFIXES` or a whole X-LLM.

    Raises:
        StageCheckpointError: it cannot be had; the message names the part and its source.
    """
    try:
        # By the file rather than AutoConfig: as remote code, our own classes are not registered.
        model_type = PreTrainedConfig.get_config_dict(name_or_path, revision=revision)[0].get("model_type")
        if model_type in ("xllm", "xllm_qformer_pretraining"):
            return read_tensors(name_or_path, revision, lambda key: part_of(key) == part)
        if part == "language_model":
            auto = ChatGLMForConditionalGeneration if model_type == "chatglm" else AutoModelForCausalLM
            causal = load_whole(auto, name_or_path, revision)
            tensors = {f"model.language_model.{key}": value for key, value in causal.base_model.state_dict().items()}
            return {**tensors, "lm_head.weight": causal.get_output_embeddings().weight.data}
        if model_type in TOWER_PREFIXES:
            prefix = TOWER_PREFIXES[model_type]
            tensors = read_tensors(name_or_path, revision, lambda key: key.startswith(prefix))
            return {f"model.{part}.{key.removeprefix(prefix)}": value for key, value in tensors.items()}
        auto = Blip2VisionModel if model_type == "blip_2_vision_model" else AutoModel
        tower = load_whole(auto, name_or_path, revision)
        tower = tower.get_encoder() if tower.config.is_encoder_decoder else tower
        return {f"model.{part}.{key}": value for key, value in tower.state_dict().items()}
    except (OSError, ValueError, KeyError) as error:
        at = f" at revision {revision}" if revision else ""
        raise StageCheckpointError(f"{part}: cannot load {name_or_path}{at}: {error}") from error


def quantize_language_model_only(quantization_config: Any) -> Any:
    """A copy of a quantisation config that spares the interfaces and, if it lists no exceptions, all but the LLM."""
    if isinstance(quantization_config, dict):
        quantization_config = AutoQuantizationConfig.from_dict(quantization_config)
    quantization_config = copy.deepcopy(quantization_config)
    for name in ("modules_to_not_convert", "llm_int8_skip_modules"):  # the second is bitsandbytes' name
        if hasattr(quantization_config, name):
            spared = getattr(quantization_config, name) or FLOAT_MODULES
            setattr(quantization_config, name, sorted({*spared, "model.interfaces"}))
    return quantization_config


class StageCheckpointMixin:
    """Saves without the parts that `config.towers` names a source for, and puts them back on loading."""

    @property
    def is_quantized(self) -> bool:
        """Trainer refuses to train quantised models; here what is trained never is, so it is told no."""
        return False

    @is_quantized.setter
    def is_quantized(self, value: bool) -> None:
        """Quantisers set it."""

    def save_pretrained(self, save_directory: str | os.PathLike, state_dict: dict | None = None, **kwargs) -> None:
        """`PreTrainedModel.save_pretrained`, less the parts that `config.towers` names a source for.

        A quantised language model that is such a part leaves no trace: its source holds it in full precision.
        """
        if not self.config.towers:
            return super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        state_dict = self.state_dict() if state_dict is None else state_dict
        state_dict = {key: value for key, value in state_dict.items() if part_of(key) not in self.config.towers}
        quantizer, config = getattr(self, "hf_quantizer", None), self.config
        if quantizer is not None and "language_model" in config.towers:
            self.hf_quantizer, self.config = None, copy.copy(config)
            del self.config.quantization_config
        try:
            super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            self.hf_quantizer, self.config = quantizer, config

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, revision=None, **kwargs):
        """`PreTrainedModel.from_pretrained`; a stage checkpoint is put together with its towers.

        A `quantization_config` is applied to the language model (see `quantize_language_model_only`).

        Raises:
            StageCheckpointError: a tower cannot be had, or a tensor of the model is in none of the sources.
        """
        load = super().from_pretrained
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = quantize_language_model_only(kwargs["quantization_config"])
        if config is None and pretrained_model_name_or_path is not None and not args:
            # The config would take the type to load in for its own, and "auto" is none.
            dtype = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config, kwargs = cls.config_class.from_pretrained(
                pretrained_model_name_or_path, revision=revision, return_unused_kwargs=True, **kwargs
            )
            kwargs.update(dtype)
        if getattr(config, "architectures", None) == ["XLLMEncoderModel"] and hasattr(cls, "generate"):
            raise StageCheckpointError(
                f"{pretrained_model_name_or_path} holds encoders and interfaces without a language model: compose one, "
                f"e.g. xllm init DIR --language-model ID --interface image={pretrained_model_name_or_path}"
            )
        towers = getattr(config, "towers", None)
        if not towers or pretrained_model_name_or_path is None or "state_dict" in kwargs:
            return load(pretrained_model_name_or_path, *args, config=config, revision=revision or "main", **kwargs)
        expected = cls._expected_keys(config)
        tensors = read_tensors(str(pretrained_model_name_or_path), revision, expected.__contains__)
        for part, source in towers.items():
            if not any(part_of(key) == part for key in expected):
                continue  # a stage-1 model has no language model
            name_or_path = _resolve(source["name_or_path"], pretrained_model_name_or_path)
            tower = read_tower(part, name_or_path, source.get("revision"))
            tensors.update({key: value for key, value in tower.items() if key in expected})
        cls.check_towers(config, tensors)
        stored = {key for key in expected if part_of(key) == "interfaces"}
        cls._fail_if_missing(stored - set(tensors), str(pretrained_model_name_or_path))
        return load(None, config=config, state_dict=tensors, **kwargs)

    @classmethod
    def _expected_keys(cls, config) -> set[str]:
        with torch.device("meta"):
            return set(cls(config).state_dict())

    @classmethod
    def check_towers(cls, config, tensors: dict[str, torch.Tensor]) -> None:
        """Fail if `tensors` lacks part of a tower that `config.towers` names: it would be left random."""
        expected = {key for key in cls._expected_keys(config) if part_of(key) in config.towers}
        for part, source in config.towers.items():
            cls._fail_if_missing(
                {key for key in expected if part_of(key) == part} - set(tensors), source["name_or_path"]
            )

    @staticmethod
    def _fail_if_missing(missing: set[str], source: str) -> None:
        if missing:
            some = ", ".join(sorted(missing)[:3])
            raise StageCheckpointError(f"{source}: {len(missing)} tensors of this model are not there: {some} ...")


def _resolve(name_or_path: str, checkpoint: str | os.PathLike) -> str:
    """A source may be given relative to the stage checkpoint's own folder ("../base"), so that both can be moved."""
    if name_or_path.startswith("."):
        return str(Path(checkpoint, name_or_path).resolve())
    return name_or_path


__all__ = [
    "StageCheckpointError",
    "StageCheckpointMixin",
    "load_whole",
    "part_of",
    "quantize_language_model_only",
    "read_tensors",
    "read_tower",
]

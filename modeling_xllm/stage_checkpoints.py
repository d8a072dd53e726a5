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
from safetensors import SafetensorError, safe_open
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from .modeling_chatglm import ChatGLMForConditionalGeneration


# Published models that hold a tower beside other things, and under which names.
TOWER_PREFIXES = {
    "blip-2": "vision_model.",
    "parakeet_ctc": "encoder.",
    "parakeet_tdt": "encoder.",
    "fun_asr_nano": "model.audio_tower.",
}
# Arguments of `from_pretrained` that say how the Hub is asked; they hold for towers too.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token")

# What quantisation spares unless its config has a list of its own; the interfaces are trained, and spared always.
FLOAT_MODULES = ("model.vision_tower", "model.audio_tower", "model.extra_towers", "lm_head")
SAMPLES_PER_TENSOR = 64


class StageCheckpointError(ValueError):
    """A stage checkpoint, or a tower it names, cannot be read or does not fit."""


def part_of(key: str) -> str:
    """Which part of the model a parameter belongs to, e.g. "language_model" for "lm_head.weight"."""
    names = key.removeprefix("model.").split(".")
    if names[0] == "extra_towers":
        return ".".join(names[:2])
    return "language_model" if names[0] == "lm_head" else names[0]


def split_source(source: str) -> tuple[str, str | None]:
    """ "repo@revision" as repository (or folder) and revision."""
    name, _, revision = source.rpartition("@")
    return (name, revision) if name else (source, None)


def pinned_revision(source: str, revision: str | None = None, **hub) -> str | None:
    """The commit that `revision` of a Hub repository is now, so that it stays the same; `None` for a folder."""
    if Path(source).is_dir():
        return revision
    return extract_commit_hash(cached_file(source, CONFIG_NAME, revision=revision, **hub), None) or revision


def _shards(source: str, revision: str | None, **hub) -> list[str]:
    """Local paths of the safetensors files of a folder or Hub repository."""
    hub["revision"] = revision
    index = cached_file(source, SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **hub)
    if index is None:
        return [cached_file(source, SAFE_WEIGHTS_NAME, **hub)]
    files = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
    return [cached_file(source, name, **hub) for name in sorted(set(files))]


def read_tensors(source: str, revision: str | None, wanted: Callable[[str], bool], **hub) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors checkpoint whose names satisfy `wanted`; nothing else is read.

    Raises:
        StageCheckpointError: a file is damaged. OSError: a file is not there, or the Hub cannot be asked.
    """
    tensors = {}
    for shard in _shards(source, revision, **hub):
        try:
            with safe_open(shard, framework="pt") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys() if wanted(name)})  # noqa: SIM118
        except SafetensorError as error:
            raise StageCheckpointError(f"{shard}: damaged: {error}; fetch or save it again") from error
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


def read_tower(part: str, name_or_path: str, revision: str | None = None, **hub) -> dict[str, torch.Tensor]:
    """State dict of one part, under the names it has in X-LLM.

    Args:
        part (`str`): "vision_tower", "audio_tower", "extra_towers.<name>" or "language_model" (which brings its head).
        name_or_path (`str`): Hub id or folder: the tower's own, a model of `TOWER_PREFIXES` or a whole X-LLM.
        hub: `token`, `cache_dir` and the like, as in `from_pretrained`.

    Raises:
        StageCheckpointError: it cannot be had; the message names the part and its source.
    """
    try:
        # By the file rather than AutoConfig: as remote code, our own classes are not registered.
        model_type = PreTrainedConfig.get_config_dict(name_or_path, revision=revision, **hub)[0].get("model_type")
        if model_type in ("xllm", "xllm_qformer_pretraining"):
            return read_tensors(name_or_path, revision, lambda key: part_of(key) == part, **hub)
        if part == "language_model":
            auto = ChatGLMForConditionalGeneration if model_type == "chatglm" else AutoModelForCausalLM
            causal = load_whole(auto, name_or_path, revision, **hub)
            tensors = {f"model.language_model.{key}": value for key, value in causal.base_model.state_dict().items()}
            return {**tensors, "lm_head.weight": causal.get_output_embeddings().weight.data}
        if model_type in TOWER_PREFIXES:
            prefix = TOWER_PREFIXES[model_type]
            tensors = read_tensors(name_or_path, revision, lambda key: key.startswith(prefix), **hub)
            return {f"model.{part}.{key.removeprefix(prefix)}": value for key, value in tensors.items()}
        auto = Blip2VisionModel if model_type == "blip_2_vision_model" else AutoModel
        tower = load_whole(auto, name_or_path, revision, **hub)
        tower = tower.get_encoder() if tower.config.is_encoder_decoder else tower
        return {f"model.{part}.{key}": value for key, value in tower.state_dict().items()}
    except (OSError, ValueError, KeyError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = next(iter(str(error).splitlines()), type(error).__name__)  # the rest is advice about URLs
        raise StageCheckpointError(f"{part}: cannot load {name_or_path}{at}: {reason}") from error


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


def sample_towers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A few values of each floating-point tensor of the parts that `config.towers` names: enough to see that one has changed."""
    samples = {}
    towers = getattr(model.config, "towers", None) or {}
    for key, value in model.state_dict().items() if towers else ():
        # A quantised tensor is of a class of its own, one that lies on a disk is "meta".
        plain = type(value) is torch.Tensor and value.is_floating_point() and value.device.type != "meta"
        if part_of(key) in towers and plain:
            flat = value.detach().reshape(-1)
            samples[key] = flat[:: max(1, len(flat) // SAMPLES_PER_TENSOR)].to("cpu", copy=True)
    return samples


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

        Raises:
            StageCheckpointError: such a part has changed since it was loaded (a merged LoRA, say): its source would bring back
                what it was.
        """
        if not self.config.towers:
            return super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        self._fail_if_towers_moved()
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

    def _fail_if_towers_moved(self) -> None:
        now = sample_towers(self)
        for key, before in getattr(self, "_tower_samples", {}).items():
            if key in now and now[key].dtype == before.dtype and not torch.equal(now[key], before):
                part = part_of(key)
                raise StageCheckpointError(
                    f"{key} has changed since it was loaded, but the checkpoint would name {self.config.towers[part]} as its "
                    f"source; to store {part} in the checkpoint, call config.towers.pop({part!r}) before saving"
                )

    def save_interfaces(self, save_directory: str | os.PathLike, base: str | None = None, **kwargs) -> None:
        """`save_pretrained` without any frozen part: what no source of `config.towers` holds is named as part of `base`.

        Args:
            base (`str`, *optional*): folder or Hub id ("repo" or "repo@revision") of a whole X-LLM; default where this
                model was loaded from.

        Raises:
            StageCheckpointError: `base` does not hold these very tensors, so the model could not be put together again.
        """
        towers = dict(self.config.towers or {})
        state = self.state_dict()
        parts = {part_of(key) for key in state} - {"interfaces", *towers}
        if parts:
            base = base or self.name_or_path
            if not base:
                raise StageCheckpointError(f"{', '.join(sorted(parts))}: no source is known; give base, a whole X-LLM")
            name, revision = (base, None) if Path(base).is_dir() else split_source(base)
            held = read_tensors(name, revision, lambda key: part_of(key) in parts)
            tied = set(self.all_tied_weights_keys)
            moved = [
                key
                for key, value in state.items()
                if part_of(key) in parts
                and (key not in held or not torch.equal(held[key], value.cpu()))
                and not (key in tied and key not in held)
            ]
            if moved:
                raise StageCheckpointError(f"{base}: {len(moved)} tensors differ from this model's, e.g. {moved[0]}")
            path = str(Path(base).resolve()) if Path(base).is_dir() else name
            source = {"name_or_path": path, "revision": pinned_revision(name, revision)}
            self.config.towers = {**towers, **dict.fromkeys(sorted(parts), source)}
        try:
            self.save_pretrained(save_directory, **kwargs)
        finally:
            self.config.towers = towers or None

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, config=None, revision=None, modalities=None, **kwargs
    ):
        """`PreTrainedModel.from_pretrained`; a stage checkpoint is put together with its towers.

        A `quantization_config` is applied to the language model (see `quantize_language_model_only`).

        `XLLMEncoderModel.from_pretrained(folder, modalities=["image"])` opens one interface with its encoder: neither the
        language model nor the other encoders are read.

        Args:
            modalities (`list[str]`, *optional*): only these rows of the table, and those whose converter they share.

        Raises:
            StageCheckpointError: a tower cannot be had, or a tensor of the model is in none of the sources.
            ValueError: no such modality.
        """
        load = super().from_pretrained
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = quantize_language_model_only(kwargs["quantization_config"])
        path = pretrained_model_name_or_path
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if config is None and path is not None and not args:
            # The config would take the type to load in for its own, and "auto" is none.
            dtype = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config, kwargs = cls.config_class.from_pretrained(
                path, revision=revision, return_unused_kwargs=True, **kwargs
            )
            kwargs.update(dtype)
        if getattr(config, "architectures", None) == ["XLLMEncoderModel"] and hasattr(cls, "generate"):
            raise StageCheckpointError(
                f"{path} holds encoders and interfaces without a language model: compose one, "
                f"e.g. xllm init DIR --language-model ID --interface image={path}"
            )
        kwargs = {**hub, **kwargs}
        if modalities is not None:
            config = config.with_modalities(modalities)
        if getattr(config, "towers", None) and path is not None and "state_dict" not in kwargs:
            kwargs["state_dict"] = cls._gather(config, str(path), revision, hub)
            path = revision = None
        loaded = load(path, *args, config=config, revision=revision or "main", **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # (model, info) with output_loading_info
        model._tower_samples = sample_towers(model)
        return loaded

    @classmethod
    def _gather(cls, config, path: str, revision: str | None, hub: dict) -> dict[str, torch.Tensor]:
        """State dict of a stage checkpoint and its towers, complete and of the right shapes."""
        shapes = cls._expected_shapes(config)
        # Checkpoints are written by models with a head; the models without one have the same names less "model.".
        prefix = "" if any(key.startswith("model.") for key in shapes) else "model."
        found = read_tensors(path, revision, lambda key: key.removeprefix(prefix) in shapes, **hub)
        for part, source in config.towers.items():
            if any(part_of(key) == part for key in shapes):  # a model without language model needs none
                name_or_path = resolve_source(source["name_or_path"], path)
                found.update(read_tower(part, name_or_path, source.get("revision"), **hub))
        tensors = {key.removeprefix(prefix): value for key, value in found.items()}
        tensors = {key: value for key, value in tensors.items() if key in shapes}
        cls.check_towers(config, tensors)
        stored = {key for key in shapes if part_of(key) not in config.towers}
        # The heads of a stage-1 model are elsewhere, or new.
        stored = {key for key in stored if prefix or key.startswith(("model.", "lm_head."))}
        cls._fail_if_missing(stored - set(tensors), path)
        for key, value in tensors.items():
            if value.shape != shapes[key]:
                raise StageCheckpointError(
                    f"{path}: {key} is {tuple(value.shape)}, config.json says {tuple(shapes[key])}: they do not belong together"
                )
        return tensors

    @classmethod
    def _expected_shapes(cls, config) -> dict[str, torch.Size]:
        """Shapes of the tensors that a checkpoint must hold, tied ones once."""
        with torch.device("meta"):
            model = cls(config)
        tied = set(model.all_tied_weights_keys)
        return {key: value.shape for key, value in model.state_dict().items() if key not in tied}

    @classmethod
    def check_towers(cls, config, tensors: dict[str, torch.Tensor]) -> None:
        """Fail if `tensors` lacks part of a tower that `config.towers` names: it would be left random."""
        expected = {key for key in cls._expected_shapes(config) if part_of(key) in config.towers}
        for part, source in config.towers.items():
            cls._fail_if_missing(
                {key for key in expected if part_of(key) == part} - set(tensors), source["name_or_path"]
            )

    @staticmethod
    def _fail_if_missing(missing: set[str], source: str) -> None:
        if missing:
            some = ", ".join(sorted(missing)[:3])
            raise StageCheckpointError(f"{source}: {len(missing)} tensors of this model are not there: {some} ...")


def resolve_source(name_or_path: str, checkpoint: str | os.PathLike) -> str:
    """A source may be given relative to the stage checkpoint's own folder ("../base"), so that both can be moved."""
    if name_or_path.startswith("."):
        return str(Path(checkpoint, name_or_path).resolve())
    return name_or_path


__all__ = [
    "StageCheckpointError",
    "StageCheckpointMixin",
    "load_whole",
    "part_of",
    "pinned_revision",
    "quantize_language_model_only",
    "read_tensors",
    "read_tower",
    "resolve_source",
    "split_source",
]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Stage checkpoints: only what was trained is stored; frozen parts are named by where they come from.

`config.towers` maps a part of the model ("vision_tower", "audio_tower", an extra tower, "language_model" with its
head) to its source, `{"name_or_path": ..., "revision": ...}`: a Hub repository or folder of that tower, or of a whole
X-LLM. Parts without a source are stored. `from_pretrained` puts the whole together, and fails if a tensor is missing.

An adapter of the language model (LoRA, DoRA) lies in the sub-folder that `config.adapter` names, in PEFT's own format:
the language model beside it stays frozen, has the same names and values as without, and may be named as a tower.
"""

import copy
import importlib
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils import cached_file

from .tower_sources import part_of, quiet_report, read_tower
from .weight_files import (
    HUB_ARGUMENTS,
    StageCheckpointError,
    check_finite,
    check_fit,
    copy_tensors,
    digests,
    pinned_revision,
    read_safetensors,
    read_tensors,
    record_weights,
    resolve_source,
    save_tensors,
    split_source,
    sub_folder,
    unread_tensors,
    verify_weights,
    weight_files,
)


# What quantisation spares unless its config lists exceptions; the interfaces are trained, and always spared.
FLOAT_MODULES = ("model.vision_tower", "model.audio_tower", "model.extra_towers", "lm_head")
SAMPLES_PER_TENSOR = 64
ADAPTER = "adapter"  # sub-folder of a checkpoint, see `config.adapter`
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # PEFT's names
PEFT_PREFIX = "base_model.model."


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


def adapted_layers(model: torch.nn.Module) -> dict[str, Any]:
    """Layers that PEFT has put around others (LoRA, DoRA, ...), by path; what they adapt is their `base_layer`."""
    layers = model.named_modules()
    return {path: one for path, one in layers if hasattr(one, "adapter_layer_names") and hasattr(one, "base_layer")}


def without_adapter(model: torch.nn.Module, state_dict: dict | None = None) -> dict[str, torch.Tensor]:
    """The state dict under the names that the model has without adapters, and without theirs."""
    state_dict = model.state_dict() if state_dict is None else state_dict
    layers = adapted_layers(model)
    own = tuple(f"{path}.{kind}." for path, layer in layers.items() for kind in layer.adapter_layer_names)
    kept = {key: value for key, value in state_dict.items() if not (own and key.startswith(own))}
    return {key.replace(".base_layer.", ".") if layers else key: value for key, value in kept.items()}


def sample_towers(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """A few values of each floating-point tensor of the parts that `config.towers` names, to see changes by."""
    samples = {}
    towers = getattr(model.config, "towers", None) or {}
    for key, value in without_adapter(model).items() if towers else ():
        # Quantised tensors have their own class; those offloaded to disk are "meta".
        plain = type(value) is torch.Tensor and value.is_floating_point() and value.device.type != "meta"
        if part_of(key) in towers and plain:
            flat = value.detach().reshape(-1)
            samples[key] = flat[:: max(1, len(flat) // SAMPLES_PER_TENSOR)].to("cpu", copy=True)
    return samples


class StageCheckpointMixin(PreTrainedModel if TYPE_CHECKING else object):
    """Saves without the parts that `config.towers` names a source for, and puts them back on loading."""

    # Called with the folder of a new checkpoint; the installed package copies the user's modules there.
    after_saving: Callable[[str | os.PathLike], None] | None = None

    # Trainer refuses to train quantised models; here what is trained never is: it is told no, whatever quantisers set.
    is_quantized = property(lambda self: False, lambda self, value: None)

    def save_pretrained(self, save_directory: str | os.PathLike, state_dict: dict | None = None, **kwargs) -> None:
        """`PreTrainedModel.save_pretrained`, less the parts that `config.towers` names a source for; a quantised
        language model among them leaves no trace. One that has changed since it was loaded (by a merged LoRA, say) is
        a `StageCheckpointError`: its source would bring back what it was."""
        quantizer, config, is_adapted = getattr(self, "hf_quantizer", None), self.config, bool(adapted_layers(self))
        config.adapter = {"folder": ADAPTER} if is_adapted else None
        whole = state_dict
        if config.towers or is_adapted:
            self._fail_if_towers_moved()
            state_dict = without_adapter(self, state_dict)
            state_dict = {key: value for key, value in state_dict.items() if part_of(key) not in (config.towers or ())}
        is_writer = kwargs.get("is_main_process", True) and not kwargs.get("distributed_checkpoint")
        if quantizer is not None and "language_model" in (config.towers or ()):
            self.hf_quantizer, self.config = None, copy.copy(config)
            del self.config.quantization_config
        loaded, self._hf_peft_config_loaded = self._hf_peft_config_loaded, False  # or transformers saves that alone
        try:
            if is_adapted and is_writer:
                config.adapter["sha256"] = self._save_adapter(Path(save_directory, ADAPTER), whole)
            with redirect_stdout(sys.stderr):  # accelerate imports DeepSpeed, if it is there, which talks
                super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        except SafetensorError as error:  # no space left, say
            raise OSError(f"{save_directory}: cannot write the weights: {error}") from error
        finally:
            self.hf_quantizer, self.config, self._hf_peft_config_loaded = quantizer, config, loaded
        if is_writer:
            record_weights(save_directory)
            if self.after_saving is not None:
                self.after_saving(save_directory)

    def attach_adapter(self, peft_config) -> None:
        """A new adapter, of this config of PEFT's. What is trained beside it stays so; its weights are float32."""
        wanted = {parameter: parameter.requires_grad for parameter in self.parameters()}
        self.add_adapter(peft_config)
        for parameter, is_trained in wanted.items():
            parameter.requires_grad_(is_trained)
        for layer in adapted_layers(self).values():
            layer.train(layer.base_layer.training)
            for kind in layer.adapter_layer_names:
                getattr(layer, kind).float()

    def _save_adapter(self, folder: Path, state_dict: dict | None) -> str:
        """Write the adapter in PEFT's format; returns the digest of its weights."""
        config, *others = self.peft_config.values()
        if others or config.modules_to_save:
            raise StageCheckpointError(
                "a checkpoint holds one adapter, without modules_to_save: interfaces are trained beside it as they "
                "are. Make it by xllm.add_lora(model)"
            )
        tensors = self._adapter_state_dict(state_dict)
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors({PEFT_PREFIX + key: value for key, value in tensors.items()}, folder / ADAPTER_FILES[1])
        config.save_pretrained(folder)
        return digests([folder / ADAPTER_FILES[1]])[0]

    def _adapter_state_dict(self, state_dict: dict | None = None) -> dict[str, torch.Tensor]:
        peft, name = importlib.import_module("peft"), next(iter(self.peft_config))
        # It must not ask the Hub whether the vocabulary has grown.
        return peft.get_peft_model_state_dict(self, state_dict, name, save_embedding_layers=False)

    def load_adapter_weights(self, source: str, revision: str | None = None, **hub) -> None:
        """Read the adapter of the checkpoint `source` into the one that this model has, or else into a new one, which
        is frozen. One that is missing, damaged, altered or another, or no PEFT, is a `StageCheckpointError`."""
        hub["revision"] = revision
        record = PreTrainedConfig.get_config_dict(source, **hub)[0].get("adapter") or {}
        try:
            peft, folder = importlib.import_module("peft"), record.get("folder", ADAPTER)
            settings, weights = (str(cached_file(source, name, subfolder=folder, **hub)) for name in ADAPTER_FILES)
        except ImportError as error:
            raise StageCheckpointError(f"{source}: its language model has an adapter: pip install peft") from error
        except OSError as error:
            reason = str(error).splitlines()[0]
            raise StageCheckpointError(f"{source}: cannot read the adapter of its language model: {reason}") from error
        if record.get("sha256") not in (None, *digests([weights])):
            raise StageCheckpointError(f"{weights}: altered or damaged since it was saved; fetch or save it again")
        if not adapted_layers(self):
            self.attach_adapter(peft.PeftConfig.from_pretrained(str(Path(settings).parent)))
            for layer in adapted_layers(self).values():
                layer.requires_grad_(False)
        prefix = PEFT_PREFIX + ("" if hasattr(self, "lm_head") else "model.")
        tensors = {key.removeprefix(prefix): value for key, value in read_safetensors(weights).items()}
        check_finite(tensors, weights)
        copy_tensors(tensors, self._adapter_state_dict(), weights)

    def _fail_if_towers_moved(self) -> None:
        now = sample_towers(self)
        for key, before in getattr(self, "_tower_samples", {}).items():
            if key in now and now[key].dtype == before.dtype and not torch.equal(now[key], before):
                part = part_of(key)
                raise StageCheckpointError(
                    f"{key} has changed since it was loaded, but the checkpoint would name {self.config.towers[part]} "
                    f"as its source; to store {part} in the checkpoint, call config.towers.pop({part!r}) before saving"
                )

    def save_interfaces(self, save_directory: str | os.PathLike, base: str | None = None, **kwargs) -> None:
        """`save_pretrained` without any frozen part: what no source of `config.towers` holds is named as part of
        `base`, a folder or Hub id ("repo" or "repo@revision") of a whole X-LLM; default where this model was loaded
        from.

        Raises:
            StageCheckpointError: `base` does not hold these very tensors, so the model could not be put together
                again.
        """
        towers = dict(self.config.towers or {})
        state = without_adapter(self)
        parts = {part_of(key) for key in state} - {"interfaces", *towers}
        if parts:
            base = base or self.name_or_path
            if not base:
                raise StageCheckpointError(f"{', '.join(sorted(parts))}: no source is known; give base, a whole X-LLM")
            name, revision = split_source(base)
            held = read_tensors(name, revision, lambda key: part_of(key) in parts)
            needed = held.keys() | (state.keys() - self.all_tied_weights_keys.keys())
            frozen = [key for key in state if part_of(key) in parts and key in needed]
            moved = [key for key in frozen if key not in held or not torch.equal(held[key], state[key].cpu())]
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
        """`PreTrainedModel.from_pretrained`; a stage checkpoint is put together with its towers. A
        `quantization_config` is applied to the language model (see `quantize_language_model_only`).

        `XLLMEncoderModel.from_pretrained(folder, modalities=["image"])` opens these rows of the table, and those whose
        converter they share: neither the language model nor the other encoders are read.

        Raises:
            StageCheckpointError: a tower cannot be had, or a tensor of the model is in none of the sources.
        """
        load = super().from_pretrained
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = quantize_language_model_only(kwargs["quantization_config"])
        path = pretrained_model_name_or_path
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if path is not None and (inner := kwargs.pop("subfolder", None)):
            path, revision = sub_folder(str(path), inner, revision, **hub), None
        if config is None and path is not None and not args:
            # The config would take the type to load in for its own ("auto" is none).
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
        source, own_revision = path, revision
        is_own = not {"state_dict", "gguf_file", "variant"} & kwargs.keys()
        if path is not None and is_own:
            verify_weights(str(path), revision, **hub)
            with suppress(OSError):  # no safetensors: transformers says so, or has another format
                weight_files(str(path), revision, **hub)
        if getattr(config, "towers", None) and path is not None and "state_dict" not in kwargs:
            with suppress(OSError):  # an old checkpoint has none
                found = GenerationConfig.from_pretrained(str(path), revision=revision, **hub)
                kwargs.setdefault("generation_config", found)
            dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
            dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype  # there is no "auto"
            is_plain = isinstance(dtype, torch.dtype) and "quantization_config" not in kwargs
            kwargs["state_dict"] = cls._gather_weights(
                config, str(path), revision, hub, modalities is not None, dtype=dtype if is_plain else None
            )
            path = revision = None
        loaded = cls._load_strictly(load, path, args, source, modalities is not None, config, revision, kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # (model, info) with output_loading_info
        is_whole = source is not None and is_own and hasattr(model.base_model, "language_model")
        if is_whole and getattr(model.config, "adapter", None):
            model.load_adapter_weights(str(source), own_revision, **hub)
        model._tower_samples = sample_towers(model)
        for part in model.modules():
            if isinstance(part, StageCheckpointMixin):  # the device map is made, see `post_init`
                part._no_split_modules.discard("X2LInterface")
        return loaded

    @classmethod
    def _load_strictly(cls, load, path, args, source, is_subset: bool, config, revision, kwargs):
        """Load, and fail where a tensor of the checkpoint `source` is missing, too many, misshapen, NaN or Inf.
        Whoever asks for `output_loading_info` gets the names instead of an error, as in transformers; NaN stays
        one."""
        asked = kwargs.get("output_loading_info")
        tolerant = kwargs.get("ignore_mismatched_sizes", False)  # the caller's own choice: those start anew
        kwargs = {**kwargs, "ignore_mismatched_sizes": tolerant or not asked, "output_loading_info": True}
        with nullcontext() if tolerant or asked else quiet_report():
            model, info = load(path, *args, config=config, revision=revision or "main", **kwargs)
        # A new model has no checkpoint; the names of an adapter's tensors are its own.
        if not asked and source is not None and not model._hf_peft_config_loaded:
            misshapen = {name: shapes for name, *shapes in info["mismatched_keys"]}
            found = {name: shapes[0] for name, shapes in misshapen.items() if not tolerant}
            wanted = {name: misshapen[name][1] for name in found}
            wanted.update(dict.fromkeys(info["missing_keys"] - misshapen.keys(), ()))
            surplus = [name for name in info["unexpected_keys"] if not model._is_elsewhere(name, is_subset)]
            check_fit({**found, **dict.fromkeys(surplus, ())}, wanted, str(source), "this model")
        check_finite(dict(model.named_parameters()), str(source or "the sources"))
        return (model, info) if asked else model

    @staticmethod
    def _load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys=None):
        is_plain = not (is_deepspeed_zero3_enabled() or load_config.is_quantized or load_config.disable_mmap)
        is_mapped = checkpoint_files and all(str(file).endswith(".safetensors") for file in checkpoint_files)
        if state_dict is None and is_mapped and is_plain and sys.platform == "linux":  # elsewhere nothing is mapped
            state_dict = {}
            for file in checkpoint_files:
                state_dict.update(unread_tensors(file, load_config.dtype))
        return PreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, load_config, expected_keys)

    def _is_elsewhere(self, key: str, is_subset: bool) -> bool:
        """Whether a tensor of a checkpoint belongs to a part that this model does without: head, LLM, other rows."""
        names = key.removeprefix("model.").split(".")
        if names[0] in ("language_model", "lm_head"):
            return not hasattr(self if names[0] == "lm_head" else self.base_model, names[0])
        group = getattr(self.base_model, names[0], None)
        return is_subset and (group is None or (isinstance(group, torch.nn.ModuleDict) and names[1] not in group))

    @classmethod
    def _gather_weights(
        cls, config, path: str, revision: str | None, hub: dict, is_subset: bool, heads: dict | None = None, dtype=None
    ) -> dict[str, torch.Tensor]:
        """State dict of a stage checkpoint, its towers and stage 1's `heads`, complete and of the right shapes; of
        `dtype` where one is given and may be."""
        with torch.device("meta"):
            model = cls(config)
        shapes = model._expected_shapes()
        # Checkpoints are written by models with a head; the models without one have the same names less "model.".
        prefix = "" if any(key.startswith("model.") for key in shapes) else "model."

        def is_wanted(key: str) -> bool:
            return key.removeprefix(prefix) in shapes or not model._is_elsewhere(key, is_subset)

        exact = model._get_dtype_plan(torch.float16)  # what is never stored in half precision, by parts of its name
        tensors: dict[str, torch.Tensor] = {}

        def take(found: dict[str, torch.Tensor], is_taken: Callable[[str], bool] = bool) -> None:
            while found:  # nothing else holds them: what was cast is let go, and so are the pages of its mapped file
                key, value = found.popitem()
                if is_taken(key):
                    is_cast = (
                        dtype is not None and value.is_floating_point() and not any(part in key for part in exact)
                    )
                    tensors[key] = value.to(dtype) if is_cast else value

        take(read_tensors(path, revision, is_wanted, **hub))
        for part, source in (config.towers or {}).items():
            if any(part_of(key) == part for key in shapes):  # a model without language model needs none
                place = resolve_source(source["name_or_path"], path)
                take(
                    read_tower(part, place, source.get("revision"), **hub),
                    lambda key: key.removeprefix(prefix) in shapes,
                )
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()} | (heads or {})
        cls.check_towers(config, tensors)
        check_fit(tensors, shapes, path, "this model")
        return tensors

    def _expected_shapes(self) -> dict[str, torch.Size]:
        """Shapes of the tensors that a checkpoint must hold, tied ones once."""
        tied = set(self.all_tied_weights_keys)
        return {key: value.shape for key, value in self.state_dict().items() if key not in tied}

    @classmethod
    def check_towers(cls, config, tensors: dict[str, torch.Tensor]) -> None:
        """Fail if `tensors` lacks part of a tower that `config.towers` names: it would be left random."""
        with torch.device("meta"):
            expected = cls(config)._expected_shapes()
        for part, source in (config.towers or {}).items():
            wanted = {key: shape for key, shape in expected.items() if part_of(key) == part}
            found = {key: tensors[key] for key in wanted.keys() & tensors.keys()}
            check_fit(found, wanted, f"{part}: {source['name_or_path']}", "this model")

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Opening a checkpoint for a command: model and processor from one folder or Hub id, or one clear error."""

import contextlib
import os
import sys
from pickle import UnpicklingError
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.utils import cached_file

from xllm.assembly.module_copies import native_module
from xllm.assembly.modules import SHIPPED, import_modules
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import split_source
from xllm.processing.processing_xllm import XLLMProcessor


class CheckpointError(ValueError):
    """A folder or Hub id is not an X-LLM checkpoint that can be opened."""


def load_checkpoint(
    name_or_path: str, trust_remote_code: bool = False, device: str | None = None, dtype: str | None = "auto"
):
    """Model in eval mode and its processor, from a folder, a Hub id, or "id@revision" (branch, tag or commit).

    Args:
        trust_remote_code (`bool`): run the user's modules that lie beside the checkpoint; no other code is ever run.
        device (`str`, *optional*): where the model goes, "cuda:1" say; default the CPU.
        dtype (`str`, *optional*): "float32", "bfloat16", ...; "auto" for that of its weights, and `None` for the same
            but float32 on the CPU. Interfaces are float32 in any case.

    Raises:
        CheckpointError: there is no such folder, it holds no X-LLM, or a file of it is missing or damaged.
        ValueError: there is no such device.
    """
    place = _device(device or "cpu")
    kind = dtype or ("float32" if place.type == "cpu" else "auto")
    kind = kind if kind == "auto" else getattr(torch, kind)
    name, revision, config = open_config(name_or_path, trust_remote_code)
    with _checkpoint_errors(name_or_path):
        model = XLLMForConditionalGeneration.from_pretrained(name, config=config, revision=revision, dtype=kind)
        processor = XLLMProcessor.from_pretrained(name, revision=revision)
    return model.eval().to(place) if place.type != "cpu" else model.eval(), processor


def default_device() -> str:
    """Where commands that answer put the model unless they are told: the accelerator, if there is one."""
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


def _device(name: str):
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device is {name!r}, which is no device here: {reason}") from error
    return device


def load_processor(name_or_path: str, trust_remote_code: bool = False):
    """Config, processor and generation config of a checkpoint, whose weights are not read.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    name, revision, config = open_config(name_or_path, trust_remote_code)
    with _checkpoint_errors(name_or_path):
        processor = XLLMProcessor.from_pretrained(name, revision=revision)
    try:
        return config, processor, GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:  # as for a model that has none
        return config, processor, GenerationConfig.from_model_config(config)


def load_skeleton(name_or_path: str, trust_remote_code: bool = False):
    """The model of a checkpoint without any weight, to be looked at: only `config.json` is read.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    config = open_config(name_or_path, trust_remote_code)[2]
    with torch.device("meta"):
        return XLLMForConditionalGeneration(config)


@contextlib.contextmanager
def _checkpoint_errors(name_or_path: str):
    formats = (SafetensorError, UnpicklingError, TemplateError)
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError, KeyError, *formats) as error:
        raise CheckpointError(f"{name_or_path}: cannot open the checkpoint: {error}") from error


def open_config(name_or_path: str, trust_remote_code: bool = False):
    """Folder or Hub id, revision, and the config of an X-LLM."""
    name, revision = split_source(name_or_path)
    # A name that looks like a path is never asked of the Hub.
    looks_local = name.startswith((".", "/", "~")) or os.sep not in name or os.path.exists(name)
    if looks_local and not os.path.isfile(os.path.join(name, "config.json")):
        what = "has no config.json" if os.path.isdir(name) else "is not a folder"
        raise CheckpointError(f"{name_or_path}: not a checkpoint: it {what}")
    with _checkpoint_errors(name_or_path):
        values = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
        if values.get("model_type") != "xllm":
            kind = values.get("model_type", "nameless")
            raise CheckpointError(f"{name_or_path}: a {kind} checkpoint, not an X-LLM; see `xllm init`")
        _import_user_modules(name_or_path, name, revision, values.get("modules") or (), trust_remote_code)
        # The classes are those of this package: what auto_map names is not run.
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    return name, revision, config


def _import_user_modules(shown: str, name: str, revision: str | None, modules: Any, trusted: bool) -> None:
    """Import the modules that a checkpoint names, unless they have been: with `--module`, or from beside it."""
    if not isinstance(modules, (list, tuple)) or not all(
        isinstance(one, str) and one.isidentifier() for one in modules
    ):
        raise CheckpointError(f"{shown}: config.json: modules is {modules!r}, expected a list of names")
    for module in modules:
        if module in sys.stdlib_module_names or hasattr(sys.modules.get(module), "__path__"):
            raise CheckpointError(f"{shown}: config.json: modules: {module} is a library, not a module of one file")
        if module in sys.modules:
            continue
        if module in SHIPPED:
            import_modules(SHIPPED[module][:1])
            continue
        if not trusted:
            raise CheckpointError(
                f"{shown}: uses the module {module}: give it with --module {module}.py, or run the copy beside the "
                "checkpoint with --trust-remote-code"
            )
        import_modules([str(native_module(str(cached_file(name, f"{module}.py", revision=revision))))])

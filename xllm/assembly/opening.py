# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Opening a checkpoint for a command: model and processor from one folder or Hub id, or one clear error."""

import contextlib
import os


class CheckpointError(ValueError):
    """A folder or Hub id is not an X-LLM checkpoint that can be opened."""


def load_checkpoint(name_or_path: str):
    """Model in eval mode and its processor, from a folder, a Hub id, or "id@revision" (branch, tag or commit).

    Raises:
        CheckpointError: there is no such folder, it holds no X-LLM, or a file of it is missing or damaged.
    """
    from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
    from xllm.processing.processing_xllm import XLLMProcessor

    name, revision, config = open_config(name_or_path)
    with _checkpoint_errors(name_or_path):
        model = XLLMForConditionalGeneration.from_pretrained(name, config=config, revision=revision)
        processor = XLLMProcessor.from_pretrained(name, revision=revision)
    return model.eval(), processor


def load_skeleton(name_or_path: str):
    """The model of a checkpoint without any weight, to be looked at: only `config.json` is read.

    Raises:
        CheckpointError: as `load_checkpoint`.
    """
    import torch

    from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration

    config = open_config(name_or_path)[2]
    with torch.device("meta"):
        return XLLMForConditionalGeneration(config)


@contextlib.contextmanager
def _checkpoint_errors(name_or_path: str):
    from safetensors import SafetensorError

    try:
        yield
    except CheckpointError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{name_or_path}: cannot open the checkpoint: {error}") from error


def open_config(name_or_path: str):
    """Folder or Hub id, revision, and the config of an X-LLM."""
    from transformers import AutoConfig

    from xllm.modeling_xllm.weight_files import split_source

    name, revision = name_or_path, None
    if not os.path.exists(name_or_path):
        name, revision = split_source(name_or_path)
    # A name that looks like a path is never asked of the Hub.
    looks_local = name.startswith((".", "/", "~")) or os.sep not in name or os.path.exists(name)
    if looks_local and not os.path.isfile(os.path.join(name, "config.json")):
        what = "has no config.json" if os.path.isdir(name) else "is not a folder"
        raise CheckpointError(f"{name_or_path}: not a checkpoint: it {what}")
    with _checkpoint_errors(name_or_path):
        config = AutoConfig.from_pretrained(name, revision=revision)
        if config.model_type != "xllm":
            raise CheckpointError(f"{name_or_path}: a {config.model_type} checkpoint, not an X-LLM; see `xllm init`")
    return name, revision, config

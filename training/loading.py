# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Opening a checkpoint for a command: model and processor from one folder or Hub id, or one clear error."""

import os


class CheckpointError(ValueError):
    """A folder or Hub id is not an X-LLM checkpoint that can be opened."""


def open_config(name_or_path: str):
    """The config of an X-LLM, nothing else being read.

    Raises:
        CheckpointError: there is no such folder, or it holds no X-LLM.
    """
    from transformers import AutoConfig

    # A name that looks like a path is never asked of the Hub.
    looks_local = (
        name_or_path.startswith((".", "/", "~")) or os.sep not in name_or_path or os.path.exists(name_or_path)
    )
    if looks_local and not os.path.isfile(os.path.join(name_or_path, "config.json")):
        what = "has no config.json" if os.path.isdir(name_or_path) else "is not a folder"
        raise CheckpointError(f"{name_or_path}: not a checkpoint: it {what}")
    try:
        config = AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{name_or_path}: cannot open the checkpoint: {error}") from error
    if config.model_type != "xllm":
        raise CheckpointError(f"{name_or_path}: a {config.model_type} checkpoint, not an X-LLM; see `xllm init`")
    return config


def load_checkpoint(name_or_path: str):
    """Model in eval mode and its processor.

    Raises:
        CheckpointError: there is no such folder, it holds no X-LLM, or a file of it is missing or damaged.
    """
    from safetensors import SafetensorError

    from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
    from xllm.processing.processing_xllm import XLLMProcessor

    config = open_config(name_or_path)
    try:
        model = XLLMForConditionalGeneration.from_pretrained(name_or_path, config=config)
        processor = XLLMProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{name_or_path}: cannot open the checkpoint: {error}") from error
    return model.eval(), processor

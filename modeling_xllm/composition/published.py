# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a published folder or repository says of itself, and whether its language model can stand in an X-LLM."""

import os
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL_MODELS
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES as MULTIMODAL_MODELS
from transformers.utils import CONFIG_NAME

from xllm.modeling_xllm.configuration_chatglm import ChatGLMConfig
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.language_models import language_model_of
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig
from xllm.modeling_xllm.weight_files import StageCheckpointError, split_source


def published_config(source: str) -> PreTrainedConfig:
    """Config of the model in folder or repository `source`."""
    name, revision = split_source(source)
    if os.path.isdir(name) and not os.path.isfile(os.path.join(name, CONFIG_NAME)):
        inside = sorted(str(path.parent) for path in Path(name).glob(f"*/{CONFIG_NAME}"))
        hint = f"; name one of the folders in it: {', '.join(inside)}" if inside else ""
        raise StageCheckpointError(f"{source}: has no {CONFIG_NAME}{hint}")
    try:
        values = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
        # By class: as remote code, ours are not registered.
        for own in (ChatGLMConfig, XLLMConfig, QFormerPreTrainingConfig, SpeechRecognitionConfig):
            if values.get("model_type") == own.model_type:
                return own.from_dict(values)
        model_type = values.get("model_type")
        if "auto_map" in values and model_type not in CONFIG_MAPPING:
            raise ValueError(f"only the code beside it knows the model_type {model_type!r}; it is not run")
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise StageCheckpointError(f"cannot read the config of {source}: {error}") from error


def text_config(at: str) -> Any:
    """Config of the language model in folder or repository `at`, alone, of an X-LLM or of another model that reads
    media itself; what has no causal language model that can stand in an X-LLM is a `ValueError`."""
    config = published_config(at)
    if isinstance(config, XLLMConfig):
        return config.text_config
    known = {name for names in CAUSAL_MODELS.values() for name in ([names] if isinstance(names, str) else names)}
    if config.model_type in MULTIMODAL_MODELS and "text_config" in config.sub_configs:
        config = config.get_text_config(decoder=True)
    elif others := [name for name in config.architectures or () if name not in {*known, "ChatGLMModel"}]:
        raise ValueError(f"{at}: {others[0]} is not a causal language model; name one that writes text (a Llama)")
    if problem := language_model_of(config).problem():
        raise ValueError(f"{at}: {problem}; name another language model")
    return config

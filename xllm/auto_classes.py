# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The Auto classes' own entries for X-LLM and ChatGLM, made when the first of our classes is needed.

Deviation from transformers' habit: `AutoModel` gives the class that can generate, as the repositories of ChatGLM,
InternVL and MiniCPM do, because `AutoModel.from_pretrained` is what this model's users type.
"""

import os

import xllm


_is_registered = False


def __getattr__(name: str):
    if name not in xllm.public_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(xllm, name)


def register() -> None:
    """Registers every class, once. `modeling_xllm` and `processing` call it when any module of theirs is imported."""
    global _is_registered
    if _is_registered:
        return
    _is_registered = True  # before the imports: they come here again
    import transformers as hf
    from transformers.models.auto import modeling_auto, tokenization_auto

    from xllm.modeling_xllm.configuration_chatglm import ChatGLMConfig
    from xllm.modeling_xllm.configuration_xllm import XLLMConfig
    from xllm.modeling_xllm.modeling_chatglm import ChatGLMForConditionalGeneration
    from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
    from xllm.modeling_xllm.stage_checkpoints import StageCheckpointMixin
    from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
    from xllm.processing.processing_xllm import XLLMProcessor
    from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
    from xllm.processing.video_processing_xllm import XLLMVideoProcessor

    hf.AutoConfig.register("chatglm", ChatGLMConfig, exist_ok=True)
    hf.AutoConfig.register("xllm", XLLMConfig, exist_ok=True)
    hf.AutoFeatureExtractor.register(XLLMConfig, XLLMFeatureExtractor, exist_ok=True)
    hf.AutoVideoProcessor.register(XLLMConfig, XLLMVideoProcessor, exist_ok=True)
    hf.AutoProcessor.register(XLLMConfig, XLLMProcessor, exist_ok=True)
    for text_class in (hf.AutoModel, hf.AutoModelForCausalLM):
        text_class.register(ChatGLMConfig, ChatGLMForConditionalGeneration, exist_ok=True)
    for auto_class in (hf.AutoModel, hf.AutoModelForMultimodalLM, hf.AutoModelForImageTextToText):
        auto_class.register(XLLMConfig, XLLMForConditionalGeneration, exist_ok=True)
    # By name rather than by config: with a config, transformers would prefer the code in THUDM's repositories.
    tokenization_auto.REGISTERED_TOKENIZER_CLASSES["ChatGLMTokenizer"] = ChatGLMTokenizer
    # Pipelines, `transformers serve` and the Trainer's loss look classes up by name in these tables.
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["xllm"] = "XLLMForConditionalGeneration"
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["xllm"] = "XLLMForConditionalGeneration"
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["chatglm"] = "ChatGLMForConditionalGeneration"
    for saved_class in (StageCheckpointMixin, XLLMProcessor):
        saved_class.after_saving = staticmethod(_copy_user_modules)


def _copy_user_modules(folder: str | os.PathLike) -> None:
    from xllm.assembly.module_copies import copy_user_modules

    copy_user_modules(folder)

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""X-LLM for transformers: teach a frozen language model to see, hear and watch (arXiv 2305.04160).

`import xllm` makes every class known to transformers' Auto classes; classes are imported when first used.
"""

import importlib
import os


__version__ = "0.2.0"

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if os.path.isfile(os.path.join(_ROOT, "setup.py")) and os.path.isdir(os.path.join(_ROOT, "modeling_xllm")):
    __path__.append(_ROOT)  # run from a checkout: modeling_xllm/ and its neighbours lie beside this folder

_PUBLIC = {
    "AnswerMetrics": "training.evaluation.trainer_metrics",
    "ChatGLMConfig": "modeling_xllm.configuration_chatglm",
    "ChatGLMForConditionalGeneration": "modeling_xllm.modeling_chatglm",
    "ChatGLMModel": "modeling_xllm.modeling_chatglm",
    "ChatGLMTokenizer": "processing.tokenization_chatglm",
    "ContinuousIntegrateAndFire": "modeling_xllm.cformer",
    "MediaError": "processing.media_sources",
    "StreamTranscriber": "training.evaluation.streaming",
    "Windowing": "training.data.sound_windows",
    "X2LConfig": "modeling_xllm.configuration_xllm",
    "XLLMCIFFeatureExtractor": "processing.feature_extraction_xllm",
    "XLLMConfig": "modeling_xllm.configuration_xllm",
    "XLLMDataCollator": "training.batches.collator",
    "XLLMEncoderModel": "modeling_xllm.modeling_encoders",
    "XLLMFeatureExtractor": "processing.feature_extraction_xllm",
    "XLLMForConditionalGeneration": "modeling_xllm.modeling_xllm",
    "XLLMForQFormerPreTraining": "modeling_xllm.stage1.modeling_qformer_pretraining",
    "XLLMForSpeechRecognition": "modeling_xllm.stage1.modeling_speech_recognition",
    "XLLMModel": "modeling_xllm.modeling_xllm",
    "XLLMProcessor": "processing.processing_xllm",
    "XLLMVideoProcessor": "processing.video_processing_xllm",
    "add_lora": "training.adapters",
    "freeze_for_stage": "training.stages",
    "integrate_and_fire": "modeling_xllm.cif",
    "likeliest_tokens": "training.evaluation.trainer_metrics",
    "join_segments": "training.evaluation.transcription",
    "merge_lora": "training.adapters",
    "publish": "hub_cards.publish",
    "stream_transcribe": "training.evaluation.streaming",
    "transcribe": "training.evaluation.transcription",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'xllm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"xllm.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def public_names() -> dict[str, str]:
    """The public names, and the module of each: "processing.processing_xllm"."""
    return dict(_PUBLIC)


importlib.import_module("xllm.auto")

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The stage-1 model of an interface, built around the composite's own modules (paper section 3.2, stage 1).

Tower and interface are the composite's, not copies: what stage 1 trains is at once in the model that is saved; only the
heads are new.
"""

from copy import deepcopy

from xllm.modeling_xllm.converters import converter_class
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.stage1.modeling_speech_recognition import XLLMForSpeechRecognition
from xllm.training.collator import text_ids
from xllm.training.stages import StageError
from xllm.training.strict import nearest


# Objective of the converter's class -> (collator's task, model, config).
STAGE_ONE = {
    "contrast": ("contrast", XLLMForQFormerPreTraining, QFormerPreTrainingConfig),
    "recognition": ("transcribe", XLLMForSpeechRecognition, SpeechRecognitionConfig),
}
# Fields of the stage-1 configs that a recipe's `objective` may set.
OBJECTIVE = {
    "contrast": ("max_text_length", "projection_size", "initial_temperature", "label_smoothing", "match_equal_texts"),
    "recognition": ("label_smoothing", "quantity_weight", "ctc_weight"),
}


def stage_one_task(config, modalities: list[str], objective: dict | None = None) -> str:
    """The collator's task of stage 1.

    Raises:
        StageError: more than one modality (stage 1 trains each interface alone), a converter without a stage 1, a field
            that `objective` may not set.
    """
    if len(modalities) != 1:
        raise StageError(
            f"stage 1 trains one interface alone, got {', '.join(modalities) or 'none'}; set `modalities`"
        )
    converter = config.modalities[modalities[0]].converter
    aim = converter_class(converter).stage_one
    if aim not in STAGE_ONE:
        raise StageError(f"stage 1 has no objective for {modalities[0]}, a {converter} interface; start with stage 2")
    for key in objective or {}:
        if key not in OBJECTIVE[aim]:
            raise StageError(f"objective: unknown key {key!r}{nearest(key, OBJECTIVE[aim])}")
    return STAGE_ONE[aim][0]


def build_stage_one(model, processor, modality: str, objective: dict | None = None):
    """The stage-1 model that shares tower and interface with `model`.

    Args:
        model (`XLLMForConditionalGeneration`), processor (`XLLMProcessor`), modality (`str`).
        objective (`dict`, *optional*): fields of the stage-1 config, e.g. `{"ctc_weight": 0.5}`.

    Raises:
        StageError: see `stage_one_task`.
    """
    stage_one_task(model.config, [modality], objective)
    row = model.config.modalities[modality]
    objective = dict(objective or {})
    task, model_class, config_class = STAGE_ONE[converter_class(row.converter).stage_one]
    if task == "contrast":
        special = text_ids(processor.tokenizer)
        objective.update(
            text_vocab_size=special.vocab_size,
            text_pad_token_id=special.pad,
            text_bos_token_id=special.dec,
            text_eos_token_id=special.sep,
        )
    else:
        objective["vocab_size"] = len(processor.tokenizer)
    kept = {modality, row.shares_converter_with or modality}
    config = config_class(
        text_config=deepcopy(model.config.text_config),
        vision_config=deepcopy(model.config.vision_config),
        audio_config=deepcopy(model.config.audio_config),
        extra_encoders=deepcopy(model.config.extra_encoders),
        modalities={name: deepcopy(other) for name, other in model.config.modalities.items() if name in kept},
        initializer_range=model.config.initializer_range,
        modality=modality,
        **objective,
    )
    learner = model_class(config).to(device=model.device, dtype=model.dtype)
    _share_modules(learner.model, model.model)
    return learner


def _share_modules(encoder_model, composite) -> None:
    for name in ("vision_tower", "audio_tower"):
        if getattr(encoder_model, name) is not None:
            setattr(encoder_model, name, getattr(composite, name))
    for group in ("extra_towers", "interfaces"):
        modules = getattr(encoder_model, group)
        for name in modules:
            modules[name] = getattr(composite, group)[name]


__all__ = ["OBJECTIVE", "STAGE_ONE", "build_stage_one", "stage_one_task"]

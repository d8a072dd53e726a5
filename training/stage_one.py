# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The stage-1 model of an interface, built around the composite's own modules (paper section 3.2, stage 1).

Tower and interface are the composite's, not copies: what stage 1 trains is at once in the model that is saved. The
heads are those of an earlier stage 1 of this interface, or new; the text side of a Q-Former may start from a BERT
(`text_side`).
"""

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from xllm.modeling_xllm.conversion.convert import is_pth
from xllm.modeling_xllm.converters import converter_class
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig
from xllm.modeling_xllm.stage1.heads import stage_one_config
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.stage1.modeling_speech_recognition import XLLMForSpeechRecognition
from xllm.modeling_xllm.stage1.text_sides import read_text_side
from xllm.modeling_xllm.weight_files import copy_tensors, split_source
from xllm.training.batches.collator import text_ids
from xllm.training.recipes.strict import nearest
from xllm.training.stages import StageError


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
TEXT_SIDE = "text_side"  # folder of the tokenizer, beside the heads
LAVIS_TOKENIZER = "bert-base-uncased"  # of its .pth files, which bring none


def stage_one_task(config, modalities: list[str], objective: dict | None = None, text_side: str | None = None) -> str:
    """The collator's task of stage 1.

    Raises:
        StageError: more than one modality (stage 1 trains each interface alone), a converter without a stage 1, a
            field that `objective` may not set, a `text_side` where no text is read.
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
    if text_side and aim != "contrast":
        raise StageError(f"text_side: stage 1 of {modalities[0]} reads no text; leave it out")
    return STAGE_ONE[aim][0]


def build_stage_one(
    model,
    processor,
    modality: str,
    objective: dict | None = None,
    heads: str | Path | None = None,
    text_side: str | None = None,
    text_tokenizer: str | None = None,
    check_only: bool = False,
):
    """The stage-1 model that shares tower and interface with `model`; `start` says where its heads come from.

    Args:
        model (`XLLMForConditionalGeneration`), processor (`XLLMProcessor`), modality (`str`).
        objective (`dict`, *optional*): fields of the stage-1 config, e.g. `{"ctc_weight": 0.5}`.
        heads (*optional*): folder or Hub id of a checkpoint; the heads there, if it has any of this row, are
            continued.
        text_side (`str`, *optional*): see `read_text_side`; instead of the heads there.
        text_tokenizer (`str`, *optional*): of the text side; default that of its source, or else the language model's.
        check_only (`bool`): only see whether all of it fits; the model returned has no memory and shares nothing.

    Returns:
        the stage-1 model, with attributes `tokenizer` (what its texts are read with) and `start` (one line).

    Raises:
        StageError: see `stage_one_task`. StageCheckpointError: heads or text side do not fit.
    """
    task = stage_one_task(model.config, [modality], objective, text_side)
    _, model_class, config_class = STAGE_ONE[converter_class(model.config.modalities[modality].converter).stage_one]
    fields, tensors = {}, None
    if heads is not None and text_side is None:
        name, revision = split_source(str(heads))
        found = model_class.read_heads(name, revision)
        if found is not None and found[0]["modality"] == modality:
            fields, tensors = found
    tokenizer, begin = processor.tokenizer, None
    if task == "contrast":
        if text_side is not None:
            fields, begin = read_text_side(text_side)
        tokenizer = stage_one_tokenizer(processor, heads if tensors else None, text_side, text_tokenizer)
        special = text_ids(tokenizer)
        own = {"text_pad_token_id": special.pad, "text_bos_token_id": special.dec, "text_eos_token_id": special.sep}
        own["text_vocab_size"] = special.vocab_size
    else:
        own = {"vocab_size": len(tokenizer)}
    for name in own.keys() & fields.keys():
        if name.endswith("vocab_size") and fields[name] != own[name]:
            raise StageError(
                f"stage 1 of {modality}: {text_side or heads} has {fields[name]} words, the tokenizer {own[name]}; "
                "name the tokenizer it was trained with (text_tokenizer)"
            )
    fields = {**fields, **own, **(objective or {})}
    fields.pop("modality", None)
    with torch.device("meta") if check_only else nullcontext():
        learner = model_class(stage_one_config(model.config, config_class, modality, **fields))
    learner = learner.to(device=None if check_only else model.device, dtype=model.dtype)
    learner.tokenizer, learner.start = tokenizer, f"new heads over the language model's {len(tokenizer)} words"
    if tensors is not None:
        copy_tensors(tensors, learner.heads_state_dict(), str(heads))
        learner.start = f"continues the heads of {heads}"
    elif begin is not None:
        with warnings.catch_warnings(action="ignore" if check_only else "default"):  # "a no-op" on the meta device
            begin(learner)
        learner.start = f"the text side starts from {text_side}"
    if not check_only:
        _share_modules(learner.model, model.model)
    return learner


def open_stage_one(model, processor, modality: str | None, name: str):
    """The stage-1 model whose heads lie beside the checkpoint `name`, which `model` was opened from, in eval mode.

    Raises:
        StageError: there are none, or those of another row than `modality`.
    """
    folder, revision = split_source(name)
    kinds: list[Any] = [kind for _, kind, _ in STAGE_ONE.values()]
    heads = {found[0]["modality"] for kind in kinds if (found := kind.read_heads(folder, revision)) is not None}
    if (heads if modality is None else heads & {modality}) == set():
        has = (
            f"only those of {', '.join(sorted(heads))}" if heads else f"no {' or '.join(k.heads_name for k in kinds)}"
        )
        raise StageError(f"{name}: the heads of stage 1 do not lie beside the checkpoint: it has {has}")
    if modality is None and len(heads) > 1:
        raise StageError(f"{name}: has heads of stage 1 of {', '.join(sorted(heads))}; choose one by --modality")
    return build_stage_one(model, processor, modality or heads.pop(), heads=name).eval()


def stage_one_tokenizer(processor, heads, text_side: str | None, text_tokenizer: str | None):
    """The tokenizer of a text side: the one that is named, that of its source, the language model's.

    Raises:
        StageError: there is none under the name.
    """
    if text_tokenizer is None and text_side is not None:
        text_tokenizer = LAVIS_TOKENIZER if is_pth(text_side) else text_side
    if text_tokenizer is None and heads is not None and Path(heads, TEXT_SIDE).is_dir():
        text_tokenizer = str(Path(heads, TEXT_SIDE))
    if text_tokenizer is None:
        return processor.tokenizer
    name, revision = split_source(text_tokenizer)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise StageError(f"text_tokenizer: cannot open the tokenizer of {text_tokenizer}: {reason}") from error


def save_stage_one(learner, processor, folder: Path) -> None:
    """Heads beside the checkpoint in `folder`, and the tokenizer of the text side if it is one of its own."""
    if learner.tokenizer is not processor.tokenizer:
        learner.tokenizer.save_pretrained(folder / TEXT_SIDE)
    learner.save_heads(folder)


def _share_modules(encoder_model, composite) -> None:
    for name in ("vision_tower", "audio_tower"):
        if getattr(encoder_model, name) is not None:
            setattr(encoder_model, name, getattr(composite, name))
    for group in ("extra_towers", "interfaces"):
        modules = getattr(encoder_model, group)
        for name in modules:
            modules[name] = getattr(composite, group)[name]


__all__ = [
    "OBJECTIVE",
    "STAGE_ONE",
    "build_stage_one",
    "open_stage_one",
    "save_stage_one",
    "stage_one_task",
    "stage_one_tokenizer",
]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Answers to conversations: by the language model, greedily, or by the recogniser of stage 1."""

from xllm.processing.feature_extraction_xllm import XLLMCIFFeatureExtractor
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.evaluation.row_windows import Answer, questions
from xllm.training.evaluation.transcription import generated


def answerer(model, processor, max_new_tokens: int, stage_one=None) -> Answer:
    """From conversations to what is said: greedy answers, or what `stage_one` (`XLLMForSpeechRecognition`) hears in
    them. A last turn of the assistant is left out of the question."""

    def answer(rows: list[list[dict]]) -> list[dict]:
        if stage_one is None:
            return generated(model, processor, questions(rows), max_new_tokens)
        return _transcribe(stage_one, processor, rows)

    return answer


def answer_rows(model, processor, rows: list[list[dict]], max_new_tokens: int, stage_one=None) -> list[str]:
    """The texts of `answerer`."""
    return [said["text"] for said in answerer(model, processor, max_new_tokens, stage_one)(rows)]


def _transcribe(stage_one, processor, rows: list[list[dict]]) -> list[dict]:
    modality = stage_one.config.modality
    row = stage_one.config.modalities[modality]
    batch = XLLMDataCollator(processor, task="transcribe", modality=modality)([{"messages": row} for row in rows])
    inputs = [batch[name].to(stage_one.device) for name in (row.input_name, row.mask_name) if name is not None]
    if isinstance(processor.feature_extractor, XLLMCIFFeatureExtractor):  # without time
        texts = processor.batch_decode(stage_one.transcribe(*inputs), skip_special_tokens=True)
        return [{"text": text.strip()} for text in texts]
    ids, frames = stage_one.transcribe(*inputs, return_fire_frames=True)
    texts, stamps = processor.batch_decode(ids, fire_frames=frames, skip_special_tokens=True)
    return [{"text": text.strip(), "tokens": tokens} for text, tokens in zip(texts, stamps)]


__all__ = ["answer_rows", "answerer"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Evaluation by generation: answers to the samples of a data source, and one figure (paper section 4; greedy).

| task    | metric                                                                                   |
|---------|------------------------------------------------------------------------------------------|
| asr     | cer: character error rate over the corpus, with its substitutions, deletions, insertions |
| caption | cer of the answer against the reference (a crude figure; read `samples.jsonl`)            |
| qa      | accuracy: answers equal to the reference, white space at the ends aside                   |

Deviation from the authors' evaluation: nothing is cut to 20 characters, batches are of any size, and an answer that
went wrong counts.
"""

import json
import sys
from pathlib import Path

import torch

from xllm.modeling_xllm.converters import converter_class
from xllm.training.collator import XLLMDataCollator, text_of
from xllm.training.data import ChatDataset
from xllm.training.media_rows import MediaRows, media_rows
from xllm.training.metrics import METRICS
from xllm.training.recipe import EvaluationSpec, RecipeError
from xllm.training.sources import load_source
from xllm.training.tasks import TASKS


def check_evaluation(spec: EvaluationSpec, media: MediaRows | None = None) -> None:
    """Find out what is wrong with an evaluation before anything is trained.

    Args:
        media (`MediaRows`, *optional*): what the model reads.

    Raises:
        RecipeError: an unknown task. DataError: its data cannot be read.
    """
    if spec.task not in TASKS:
        raise RecipeError(f"evaluate: task is {spec.task!r}; choose one of {', '.join(TASKS)}")
    if not spec.data:
        raise RecipeError(f"evaluate: {spec.name} has no data")
    for source in spec.data:
        load_source(source, media)


def row_of_task(task: str, modalities: dict) -> str | None:
    """The one row of a model's `modalities` whose stage 1 learns `task`; None if no row, or more than one, does."""
    wanted = TASKS[task].stage_one
    objectives = {name: converter_class(row.converter).stage_one for name, row in modalities.items()}
    found = [name for name, objective in objectives.items() if wanted is not None and objective == wanted]
    return found[0] if len(found) == 1 else None


@torch.no_grad()
def run_evaluation(
    model,
    processor,
    spec: EvaluationSpec,
    modalities=(),
    folder: Path | None = None,
    stage_one=None,
    progress: bool = False,
) -> dict:
    """Answer every sample and compare.

    Args:
        model (`XLLMForConditionalGeneration`), processor (`XLLMProcessor`), spec (`EvaluationSpec`).
        modalities: rows in question, for plain tables whose modality is not given.
        folder (`Path`, *optional*): gets `samples-<name>.jsonl` with question, reference and answer of each sample.
        stage_one (`XLLMForSpeechRecognition`, *optional*): transcribes with the heads of stage 1 instead of the LLM.
        progress (`bool`): show how far it is on standard error, if that is a terminal.

    Returns:
        `{"task", "metric", "value", "n"}`, for cer also `substitutions`, `deletions`, `insertions`, `reference`,
        `accuracy` (answers without any error).
    """
    check_evaluation(spec, media_rows(processor, modalities))
    if stage_one is not None and TASKS[spec.task].stage_one is None:
        able = ", ".join(name for name, task in TASKS.items() if task.stage_one is not None)
        raise RecipeError(
            f"evaluate: after stage 1 only {able} can be evaluated, not {spec.task}: there is no text without the LLM"
        )
    data = ChatDataset.from_specs(spec.data, processor, modalities)
    questions, references, answers = [], [], []
    for start in range(0, len(data), spec.batch_size):
        rows = [data[index]["messages"] for index in range(start, min(start + spec.batch_size, len(data)))]
        questions += [text_of(row[-2]) if len(row) > 1 else "" for row in rows]
        references += [text_of(row[-1]) for row in rows]
        if stage_one is None:
            answers += generate_answers(model, processor, rows, spec.max_new_tokens)
        else:
            answers += _transcribe(stage_one, processor, rows)
        if progress and sys.stderr.isatty():
            sys.stderr.write(
                f"\r{spec.name}: {len(answers)}/{len(data)}\033[K" + ("\n" if len(answers) == len(data) else "")
            )
    if folder is not None:
        _write_samples(Path(folder) / f"samples-{spec.name}.jsonl", data, questions, references, answers)
    return {"task": spec.task, **score(spec.task, references, answers)}


def score(task: str, references: list[str], answers: list[str]) -> dict:
    """The figure of a task: `{"metric", "value", "n", ...}`."""
    metric, bare = TASKS[task].metric, [[text.strip() for text in texts] for texts in (references, answers)]
    if metric == "accuracy":
        return {"metric": metric, **METRICS[metric](*bare), "n": len(references)}
    same = METRICS["accuracy"](*bare)["value"]
    return {"metric": metric, **METRICS[metric](references, answers), "accuracy": same, "n": len(references)}


def generate_answers(model, processor, rows: list[list[dict]], max_new_tokens: int) -> list[str]:
    """Greedy answers to conversations; a last turn of the assistant is left out of the question."""
    questions = [row[:-1] if row[-1]["role"] == "assistant" else row for row in rows]
    batch = processor.encode_conversations(questions, add_generation_prompt=True).to(model.device)
    output = model.generate(**batch, max_new_tokens=max_new_tokens, do_sample=False)
    new = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def _transcribe(stage_one, processor, rows: list[list[dict]]) -> list[str]:
    modality = stage_one.config.modality
    row = stage_one.config.modalities[modality]
    batch = XLLMDataCollator(processor, task="transcribe", modality=modality)([{"messages": row} for row in rows])
    inputs = [batch[name].to(stage_one.device) for name in (row.input_name, row.mask_name) if name is not None]
    ids = stage_one.transcribe(*inputs)
    return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def _write_samples(path: Path, data: ChatDataset, *texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for sample, question, reference, answer in zip(data.samples, *texts):
            entry = {"where": sample.where, "question": question, "reference": reference, "answer": answer}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


__all__ = ["TASKS", "check_evaluation", "generate_answers", "row_of_task", "run_evaluation", "score"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Evaluation by generation: answers to the samples of a data source, and one figure (paper section 4; greedy).

`tasks` says which task has which metric: cer, the character error rate over the corpus (of captions a crude
figure; read the samples), or accuracy, the share of answers equal to the reference, white space at the ends aside.

Deviation from the authors' evaluation: nothing is cut to 20 characters, batches are of any size, and an answer that
went wrong counts.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from xllm.modeling_xllm.converters import converter_class
from xllm.training.batches.collator import XLLMDataCollator, text_of
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.media_rows import MediaRows, media_rows
from xllm.training.data.sources import Sample, load_source
from xllm.training.evaluation.metrics import METRICS
from xllm.training.evaluation.row_windows import Answer, SoundsInFiles, by_windows, named, questions
from xllm.training.evaluation.tasks import TASKS
from xllm.training.evaluation.transcription import check_lengths, generated
from xllm.training.recipes.recipe import EvaluationSpec, RecipeError


def check_evaluation(spec: EvaluationSpec, media: MediaRows) -> list[list[Sample]]:
    """The samples of an evaluation, by source, before anything is trained; `media` is what the model reads.

    Raises:
        RecipeError: an unknown task. DataError: its data cannot be read.
    """
    if spec.task not in TASKS:
        raise RecipeError(f"evaluate: task is {spec.task!r}; choose one of {', '.join(TASKS)}")
    if not spec.data:
        raise RecipeError(f"evaluate: {spec.name} has no data")
    return [load_source(source, media) for source in spec.data]


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
    modalities: Iterable[str] = (),
    folder: Path | None = None,
    stage_one=None,
    progress: bool = False,
    sources: list[list[Sample]] | None = None,
) -> dict:
    """Answer every sample and compare.

    Args:
        modalities: rows in question, for plain tables whose modality is not given.
        folder (`Path`, *optional*): gets `samples-<name>.jsonl` with question, reference and answer of each sample.
        stage_one (`XLLMForSpeechRecognition`, *optional*): transcribes with the heads of stage 1 instead of the LLM.
        progress (`bool`): show how far it is on standard error, if that is a terminal.
        sources (*optional*): what `check_evaluation` returned; without it the data files are read here.

    Returns:
        `{"task", "metric", "value", "n"}`, for cer also `substitutions`, `deletions`, `insertions`, `reference`,
        `accuracy` (answers without any error).
    """
    if sources is None:
        sources = check_evaluation(spec, media_rows(processor, modalities))
    if stage_one is not None and TASKS[spec.task].stage_one is None:
        able = ", ".join(name for name, task in TASKS.items() if task.stage_one is not None)
        raise RecipeError(
            f"evaluate: after stage 1 only {able} can be evaluated, not {spec.task}: there is no text without the LLM"
        )
    data_class = ChatDataset if spec.window is None else SoundsInFiles
    data = data_class(sources, processor, weights=[source.weight for source in spec.data])
    samples: list[dict] = []

    def answer(rows: list[list[dict]]) -> list[dict]:
        if stage_one is None:
            return generated(model, processor, questions(rows), spec.max_new_tokens)
        return [{"text": text} for text in _transcribe(stage_one, processor, rows)]

    for place, row, said in _by_batches(data, answer, spec) if spec.window is None else by_windows(data, answer, spec):
        question = text_of(row[-2]) if len(row) > 1 else ""
        samples.append({"where": place, "question": question, "reference": text_of(row[-1]), **said})
        if progress and sys.stderr.isatty():
            end = "\n" if len(samples) == len(data) else ""
            sys.stderr.write(f"\r{spec.name}: {len(samples)}/{len(data)}\033[K{end}")
    if folder is not None:
        path = Path(folder, f"samples-{spec.name}.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
        path.write_text("".join(lines), encoding="utf-8")
    references, answers = ([sample[key] for sample in samples] for key in ("reference", "answer"))
    return {"task": spec.task, **_score(TASKS[spec.task].metric, references, answers)}


def _by_batches(data: ChatDataset, answer: Answer, spec: EvaluationSpec) -> Iterator[tuple[str, list[dict], dict]]:
    """Place, messages and answer of each row."""
    advice = "give --window SECONDS (in a recipe: window) to hear it window by window"
    for start in range(0, len(data), spec.batch_size):
        batch = []
        for index in range(start, min(start + spec.batch_size, len(data))):
            batch.append(data[index])
            with named(batch[-1]["where"]):
                check_lengths((part for turn in batch[-1]["messages"] for part in turn["content"]), advice)
        rows = [sample["messages"] for sample in batch]
        yield from ((s["where"], row, {"answer": said["text"]}) for s, row, said in zip(batch, rows, answer(rows)))


def _score(metric: str, references: list[str], answers: list[str]) -> dict:
    same = METRICS["accuracy"]([text.strip() for text in references], [text.strip() for text in answers])
    found = same if metric == "accuracy" else {**METRICS[metric](references, answers), "accuracy": same["value"]}
    return {"metric": metric, **found, "n": len(references)}


def answer_rows(model, processor, rows: list[list[dict]], max_new_tokens: int, stage_one=None) -> list[str]:
    """Greedy answers to conversations, or with `stage_one` (`XLLMForSpeechRecognition`) what it hears in them."""
    if stage_one is None:
        return generate_answers(model, processor, rows, max_new_tokens)
    return _transcribe(stage_one, processor, rows)


def generate_answers(model, processor, rows: list[list[dict]], max_new_tokens: int) -> list[str]:
    """Greedy answers to conversations; a last turn of the assistant is left out of the question."""
    return [found["text"] for found in generated(model, processor, questions(rows), max_new_tokens)]


def _transcribe(stage_one, processor, rows: list[list[dict]]) -> list[str]:
    modality = stage_one.config.modality
    row = stage_one.config.modalities[modality]
    batch = XLLMDataCollator(processor, task="transcribe", modality=modality)([{"messages": row} for row in rows])
    inputs = [batch[name].to(stage_one.device) for name in (row.input_name, row.mask_name) if name is not None]
    ids = stage_one.transcribe(*inputs)
    return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]


__all__ = ["answer_rows", "check_evaluation", "generate_answers", "row_of_task", "run_evaluation"]

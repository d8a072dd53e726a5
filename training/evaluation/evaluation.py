# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Evaluation by generation: answers to the samples of a data source, and one figure (paper section 4; greedy).

`tasks` says which task has which metric: cer, the character error rate over the corpus (of captions a crude
figure; read the samples), or accuracy, the share of answers equal to the reference, white space at the ends aside.

Deviation from the authors' evaluation: nothing is cut to 20 characters, batches are of any size, and an answer that
went wrong counts.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from xllm.modeling_xllm.converters import converter_class
from xllm.processing.conversations import part_source
from xllm.processing.media_sources import MediaError, describe_source
from xllm.training.batches.batching import seconds_of, token_lengths
from xllm.training.batches.collator import text_of
from xllm.training.data.dataset import ChatDataset, SampleError, describe
from xllm.training.data.media_rows import DataError, MediaRows, media_rows
from xllm.training.data.sources import Sample, load_source
from xllm.training.data.text_normalizers import normalizer
from xllm.training.evaluation.answer_log import AnswerLog
from xllm.training.evaluation.answers import answerer
from xllm.training.evaluation.caption_metrics import CAPTION_METRICS
from xllm.training.evaluation.endpoint import EndpointError
from xllm.training.evaluation.intervals import bootstrap_interval, interval, ratio
from xllm.training.evaluation.metrics import METRICS, accuracy
from xllm.training.evaluation.other_media import MEDIA_CHOICES, BlankMedia, media_digest, with_media
from xllm.training.evaluation.row_windows import Answer, SoundsInFiles, by_batch, by_windows, is_sound
from xllm.training.evaluation.tasks import TASKS
from xllm.training.progress import ProgressLine
from xllm.training.recipes.recipe import EvaluationSpec, RecipeError


logger = logging.get_logger(__name__)


@dataclass
class EvaluationData:
    """Samples by source, the rows that are none: `{"where", "skipped": why}`, and the kinds of media that are others
    than a row's own, by default all."""

    sources: list[list[Sample]]
    unread: list[dict]
    kinds: frozenset[str] | None = None


def check_evaluation(spec: EvaluationSpec, media: MediaRows) -> EvaluationData:
    """The samples of an evaluation, before anything is trained; `media` is what the model reads.

    Raises:
        RecipeError: an unknown task. DataError: its data cannot be read.
    """
    if spec.task not in TASKS:
        raise RecipeError(f"evaluate: task is {spec.task!r}; choose one of {', '.join(TASKS)}")
    if spec.metric not in (None, *METRICS, *CAPTION_METRICS):
        known = ", ".join((*METRICS, *CAPTION_METRICS))
        raise RecipeError(f"evaluate: metric is {spec.metric!r}; choose one of {known}")
    if not spec.data:
        raise RecipeError(f"evaluate: {spec.name} has no data")
    if spec.on_error not in ("raise", "skip"):
        raise RecipeError(f"evaluate: on_error is {spec.on_error!r}; choose raise or skip")
    if spec.media not in MEDIA_CHOICES:
        raise RecipeError(f"evaluate: media is {spec.media!r}; choose one of {', '.join(MEDIA_CHOICES)}")
    if spec.media == "blank" and spec.window is not None:
        raise RecipeError("evaluate: media: blank are whole, and window hears recordings in parts; leave one out")
    _normalizer(spec)
    unread: list[dict] = []

    def skip(where: str, error: DataError) -> None:
        logger.warning(f"skipped {error}")
        unread.append({"where": where, "skipped": describe(error).removeprefix(f"{where}: ")})

    on_bad = skip if spec.on_error == "skip" else None
    samples = [load_source(source, media, on_bad) for source in spec.data]
    kinds = kinds_of(spec, media)
    return EvaluationData(with_media(samples, spec.media, kinds), unread, kinds)


def kinds_of(spec: EvaluationSpec, media: MediaRows) -> frozenset[str] | None:
    """The kinds of media that `media_of` names, by rows or kinds; `None`: all.

    Raises:
        RecipeError: the media are the rows' own. DataError: no row of the model reads one.
    """
    if not spec.media_of:
        return None
    if spec.media == "real":
        raise RecipeError("evaluate: media_of says which media are others than a row's own: choose media with it")
    return frozenset(media.part("evaluate: media_of", name) for name in spec.media_of)


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
    sources: EvaluationData | None = None,
    settings: dict | None = None,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], Any] = lambda: None,
    answer: Answer | None = None,
    asked: list[int] | None = None,
) -> dict:
    """Answer every sample and compare.

    Args:
        modalities: rows in question, for plain tables whose modality is not given.
        folder (`Path`, *optional*): gets `samples_<name>.jsonl` with question, media, reference, answer, their
            normalised forms and the errors of each sample.
        stage_one (`XLLMForSpeechRecognition`, *optional*): transcribes with the heads of stage 1 instead of the LLM.
        progress (`bool`): show how far it is on standard error.
        sources (*optional*): what `check_evaluation` returned; without it the data files are read here.
        settings (*optional*): what the answers depend on, the model above all: answers that were given under the same
            settings and lie in `folder` are not asked for again.
        answer (*optional*): of another model (`other_models`), instead of `model`'s.
        asked (*optional*): gets the numbers of the rows that are answered now, by this process.
        share, wait: number of this process and of all, each of which answers its share; `wait` waits for all of them.

    Returns:
        `{"task", "metric", "value", "interval", "n", "skipped"}`, for error rates also `substitutions`,
        `deletions`, `insertions`, `reference`, `accuracy` (answers without any error); where there are any, the places
        of the `empty_references`, whose answers' insertions count.

    Raises:
        SampleError: a sample that cannot be used; with `on_error: skip` it is left out, counted and listed.
    """
    if sources is None:
        sources = check_evaluation(spec, media_rows(processor, modalities))
    if stage_one is not None and TASKS[spec.task].stage_one is None:
        able = ", ".join(name for name, task in TASKS.items() if task.stage_one is not None)
        raise RecipeError(
            f"evaluate: after stage 1 only {able} can be evaluated, not {spec.task}: there is no text without the LLM"
        )
    data_class = SoundsInFiles if spec.window is not None else BlankMedia if spec.media == "blank" else ChatDataset
    data = data_class(sources.sources, processor, weights=[source.weight for source in spec.data])
    if isinstance(data, BlankMedia):
        data.blanked = sources.kinds
    answer = answer or answerer(model, processor, spec.max_new_tokens, stage_one)
    log = AnswerLog(folder, spec.name, settings) if folder is not None else None
    answers = {} if log is None else log.answers
    if log is not None and settings is not None:
        log.forget(_changed(data, answers))
    found = len(answers)
    wait()  # else a process that comes late finds what the others have just answered
    left = [number for number in _by_length(data, processor)[share[0] :: share[1]] if number not in answers]
    if asked is not None:
        asked += left
    line = ProgressLine(spec.name, "sample", len(left)) if progress else None
    for start in range(0, len(left), spec.batch_size):
        some: list[dict] = []
        try:
            for sample in _answered(data, left[start : start + spec.batch_size], answer, spec):
                is_kept = settings is not None and "skipped" not in sample
                some.append(sample | (media_digest(data.samples[data.order[sample["n"]]]) if is_kept else {}))
        finally:  # what was answered before one that ends the evaluation is not asked again
            log.add(some) if log is not None else answers.update({sample["n"]: sample for sample in some})
        if line is not None:
            done = start + len(some)
            line.update(done, is_last=done == len(left))
    wait()
    samples = [answers[number] for number in sorted(answers)] if log is None else log.join()
    samples += [{"n": len(data) + place, **row} for place, row in enumerate(sources.unread)]
    result = {"task": spec.task, **score_samples(spec, samples)}
    if found:
        result["found"] = found
    if log is not None and share[0] == 0:
        log.finish(samples)
    return result


def _changed(data: ChatDataset, answers: dict[int, dict]) -> list[int]:
    """The rows whose media are no longer what they were when they were answered; they are asked about again."""
    known = {number: line for number, line in answers.items() if "media_sha256" in line and number < len(data)}
    changed = [
        number for number, line in known.items()
        if media_digest(data.samples[data.order[number]]).get("media_sha256") != line["media_sha256"]
    ]  # fmt: skip
    if changed:
        named = ", ".join(data.samples[data.order[number]].where for number in changed[:5])
        logger.warning(f"{len(changed)} rows are asked about again, for their media have changed: {named}")
    return changed


def _by_length(data: ChatDataset, processor) -> list[int]:
    """The samples, those of about one length together; the longest first, so that too little memory shows at once."""
    samples = [data.samples[place] for place in data.order]
    if processor.tokenizer is None:  # of another model: the server, or its own code, makes batches
        return list(range(len(samples)))
    try:
        lengths = token_lengths(samples, processor)
    except DataError:  # cannot be told without reading everything
        lengths = [0] * len(samples)
    return sorted(range(len(samples)), key=lambda number: -lengths[number])


def _answered(data: ChatDataset, numbers: list[int], answer: Answer, spec: EvaluationSpec) -> Iterator[dict]:
    """The lines of some samples: answered, or why one was skipped."""
    try:
        found = list((by_batch if spec.window is None else by_windows)(data, numbers, answer, spec))
    except EndpointError:  # of no row
        raise
    except (ValueError, OSError) as error:
        if spec.on_error != "skip":
            raise
        if len(numbers) > 1:  # which one it is
            for number in numbers:
                yield from _answered(data, [number], answer, spec)
            return
        where = data.samples[data.order[numbers[0]]].where
        reason = describe(error).removeprefix(f"{where}: ")
        logger.warning(f"skipped {where}: {reason}")
        yield {"n": numbers[0], "where": where, "skipped": reason}
        return
    unanswered = []
    for number, (where, row, said) in zip(numbers, found):
        if "skipped" not in said:
            yield {"n": number, "where": where, **_texts(data.samples[data.order[number]], row), **said}
            continue
        unanswered.append(f"{where}: {said['skipped']}")
        if spec.on_error == "skip":
            logger.warning(f"skipped {unanswered[-1]}")
            yield {"n": number, "where": where, **said}
    if unanswered and spec.on_error != "skip":
        raise SampleError(f"{unanswered[0]}; what was answered is kept, and the same command goes on")


def _texts(sample: Sample, row: list[dict]) -> dict:
    media = [describe_source(part_source(part)) for part in sample.parts() if part["type"] != "text"]
    question = text_of(row[-2]) if len(row) > 1 else ""
    texts: dict[str, Any] = {"question": question, "media": media, "reference": text_of(row[-1])}
    return texts | ({"references": sample.answers} if len(sample.answers) > 1 else {})


def _normalizer(spec: EvaluationSpec) -> Callable[[str], str] | None:
    return None if spec.normalizer in (None, "none") else normalizer(spec.normalizer)


def score_samples(spec: EvaluationSpec, samples: list[dict]) -> dict:
    """The figures; each sample gets its normalised texts, if there is a normaliser, and its errors or score.

    Raises:
        DataError: no sample can be used.
    """
    metric, scored = spec.metric or TASKS[spec.task].metric, [sample for sample in samples if "skipped" not in sample]
    if not scored:
        raise DataError(f"evaluate: {spec.name} has no sample that can be used: all {len(samples)} were skipped")
    own = _normalizer(spec)
    normalize = own or (str.strip if metric == "accuracy" else str)
    references, answers = ([normalize(sample[key]) for sample in scored] for key in ("reference", "answer"))
    if metric in CAPTION_METRICS:
        several = [list(map(normalize, sample.get("references", [sample["reference"]]))) for sample in scored]
        found = CAPTION_METRICS[metric](several, answers)
    else:
        found = METRICS[metric](references, answers)
    rows = found.pop("rows", None)
    if empty := [sample["where"] for sample, text in zip(scored, references) if not text.strip()]:
        found["empty_references"] = empty
    for number, sample in enumerate(scored):
        if own is not None:
            sample |= {"normalized_reference": references[number], "normalized_answer": answers[number]}
        if rows is not None:
            sample[metric] = list(rows[number])
    if rows is not None:
        found["interval"] = interval(rows)
    if metric != "accuracy":
        found["accuracy"] = accuracy(*([text.strip() for text in side] for side in (references, answers)))
    return {"metric": metric, **found, "n": len(scored), "skipped": len(samples) - len(scored)}


def sound_seconds(samples: Iterable[Sample]) -> float | None:
    """How long the sounds of some samples are, by what their headers say; `None` where one does not."""
    parts = [part for sample in samples for part in sample.parts() if is_sound(part)]
    try:
        return sum(map(seconds_of, parts))
    except (MediaError, OSError):
        return None


def compare(metric: str, samples: list[dict], real: list[dict]) -> dict:
    """How much higher a figure is than with the rows' own media, over the rows that both have: `{"value", "interval",
    "n"}`, paired."""
    own = {sample["n"]: sample[metric] for sample in real if metric in sample}
    both = [(sample[metric], own[sample["n"]]) for sample in samples if metric in sample and sample["n"] in own]
    (first, second) = ([pair[side] for pair in both] for side in (0, 1))
    value = ratio(first) - ratio(second)
    return {"value": value, "interval": list(bootstrap_interval(first, second)), "n": len(both)}


__all__ = [
    "EvaluationData",
    "check_evaluation",
    "compare",
    "row_of_task",
    "run_evaluation",
    "score_samples",
    "sound_seconds",
]

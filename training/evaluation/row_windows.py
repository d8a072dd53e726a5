# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Rows of data whose sounds are heard window by window: the answers are joined to the answer of the row."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import groupby
from operator import itemgetter
from typing import Any, cast

import numpy as np

from xllm.processing.conversations import part_source
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.processing.media_sources import MediaError
from xllm.training.data.dataset import ChatDataset, SampleError, read_stored
from xllm.training.data.samples import Stored
from xllm.training.data.sound_windows import Window, Windowing
from xllm.training.evaluation.transcription import hear, join_segments, windows_of
from xllm.training.recipes.recipe import EvaluationSpec


Answer = Callable[
    [list[list[dict]]], list[dict]
]  # conversations to what is said: `text`, and more; or why not: `skipped`


def questions(rows: list[list[dict]]) -> list[list[dict]]:
    """Conversations without a last turn of the assistant."""
    return [row[:-1] if row[-1]["role"] == "assistant" else row for row in rows]


@contextmanager
def named(place: str) -> Iterator[None]:
    """A medium that cannot be used is a `SampleError` with the place of its row."""
    try:
        yield
    except MediaError as error:
        raise SampleError(f"{place}: {error}") from error


def is_sound(part: dict) -> bool:
    """Whether a content part is one whose medium is a waveform."""
    return part["type"] in MEDIA_KINDS and "waveform" in MEDIA_KINDS[part["type"]].augmented_as


class SoundsInFiles(ChatDataset):
    """Sounds stay where they are, to be read window by window; a span of a recording is cut from it as ever."""

    def decode_part(self, part: dict, rng: np.random.Generator) -> dict:
        if not is_sound(part) or "offset" in part or "duration" in part:
            return super().decode_part(part, rng)
        kind, source = part["type"], part_source(part)
        return {"type": kind, kind: read_stored(source) if isinstance(source, Stored) else source}


def _windows(processor: Any, sample: dict, windowing: Windowing) -> Iterator[tuple[Window, list[dict] | None]]:
    """The windows of a row's one sound with the conversation about each; a row with no sound, or several, is whole."""
    messages = sample["messages"]
    sounds = [part for turn in messages for part in turn["content"] if is_sound(part)]
    if len(sounds) != 1:
        yield Window(0, 0, 1), messages
        return
    kind = MEDIA_KINDS[sounds[0]["type"]]
    for window, wave in windows_of(processor, kind, part_source(sounds[0]), windowing):
        heard = {"type": kind.type, kind.type: wave}
        turns = ([heard if part is sounds[0] else part for part in turn["content"]] for turn in messages)
        asked = [{**turn, "content": content} for turn, content in zip(messages, turns)]
        yield window, None if wave is None else asked


Answered = Iterator[tuple[str, list[dict], dict]]


def by_batch(data: ChatDataset, numbers: Iterable[int], answer: Answer, spec: EvaluationSpec) -> Answered:
    """Place, messages and answer of rows that share a batch."""
    batch = []
    for number in numbers:
        batch.append(data[number])
        with named(batch[-1]["where"]):
            for part in (part for turn in batch[-1]["messages"] for part in turn["content"] if is_sound(part)):
                data.processor.check_length(part["type"], part_source(part))
    answers = answer([sample["messages"] for sample in batch])
    for one, said in zip(batch, answers):
        kept = {name: said[name] for name in ("skipped", "tokens") if name in said}
        yield one["where"], one["messages"], kept if "skipped" in said else {"answer": said["text"], **kept}


def by_windows(data: ChatDataset, numbers: Iterable[int], answer: Answer, spec: EvaluationSpec) -> Answered:
    """Place, messages and answer of each row, with its `segments` where there are several. Windows of several rows
    share a batch."""
    windowing, owners = Windowing(cast(float, spec.window)), deque[tuple[int, dict]]()

    def windows() -> Iterator[tuple[Window, list[dict] | None]]:
        for index in numbers:
            sample = data[index]
            with named(sample["where"]):
                for found in _windows(data.processor, sample, windowing):
                    owners.append((index, sample))
                    yield found

    heard = ((*owners.popleft(), segment) for segment in hear(windows(), answer, spec.batch_size))
    for _, group in groupby(heard, key=itemgetter(0)):
        found = list(group)
        sample, segments = found[0][1], [segment for _, _, segment in found]
        said: dict[str, Any] = {"answer": join_segments(segments)}
        if len(segments) > 1:
            said["segments"] = [asdict(segment) for segment in segments]
        elif segments and segments[0].tokens is not None:
            said["tokens"] = segments[0].tokens
        yield sample["where"], sample["messages"], said


__all__ = ["Answer", "SoundsInFiles", "by_batch", "by_windows", "is_sound", "questions"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Other models' answers to the same rows, asked and scored as an X-LLM's: baselines for one table.

A model is behind a server of chat completions, or one that a pipeline of transformers opens (LLaVA, Qwen-VL, another
checkpoint of ours). Media are decoded as for an X-LLM, so that blank and shuffled ones are those too. What is sent:

| medium  | to a server                                  | to a pipeline                          |
|---------|----------------------------------------------|----------------------------------------|
| picture | `image_url`, a PNG as a data URI             | a PIL image                            |
| film    | its frames, each as a picture                | its frames, PIL images                 |
| sound   | `input_audio`, a WAV file                    | samples, at the rate of its processor  |
"""

import base64
import io
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

from PIL import Image

from xllm.processing.audio_decoding import Waveform
from xllm.processing.media_kinds import MEDIA_KINDS, MediaKind, media_kind
from xllm.processing.video_decoding import Frames
from xllm.training.batches.collator import text_of
from xllm.training.data.media_rows import DataError
from xllm.training.evaluation.endpoint import Endpoint, EndpointError, Reply, ask_all
from xllm.training.evaluation.row_windows import Answer, questions
from xllm.training.instructions.speech_synthesis import wav_bytes


RATE, FRAMES = 16_000, 8  # of sounds, samples per second; of films


class PlainProcessor:
    """What decodes media for a model that makes its own tensors of them."""

    feature_extractor = tokenizer = None

    def __init__(self, rate: int = RATE, num_frames: int = FRAMES):
        self._reader = SimpleNamespace(sampling_rate=rate, num_frames=num_frames, fps=None, max_frames=None)
        self.rows: dict[str, Any] = {}

    def reader(self, kind: MediaKind | str) -> Any:
        """The rates that media are decoded at."""
        return self._reader

    def load(self, kind: MediaKind | str, source: Any, **kwargs: Any) -> Any:
        """A decoded medium."""
        return media_kind(kind).load(source, self._reader, **kwargs)

    def check_length(self, kind: MediaKind | str, item: Any, instead: str | None = None) -> None:
        """How much the other model hears at once is its own business: it says so where it is asked."""


def endpoint_answers(endpoint: Endpoint, concurrency: int) -> Answer:
    """What a server says; of a conversation that it does not answer, why it is `skipped`."""
    closed: list[EndpointError] = []

    def answer(rows: list[list[dict]]) -> list[dict]:
        if closed:
            raise closed[0]
        asked = [_written(row, _for_server) for row in questions(rows)]
        found: dict[int, Reply | EndpointError] = {}
        try:
            found.update(ask_all(range(len(asked)), lambda number: endpoint(asked[number]), concurrency))
        except EndpointError as error:  # what was answered before is given first
            closed.append(error)
        return [_said(found[number] if number in found else closed[0]) for number in range(len(asked))]

    return answer


def _said(reply: Reply | EndpointError) -> dict:
    return {"skipped": str(reply)} if isinstance(reply, EndpointError) else {"text": reply.text.strip()}


def pipeline_answers(
    name_or_path: str, task: str, max_new_tokens: int, **options: Any
) -> tuple[Answer, PlainProcessor]:
    """What a pipeline says, greedily, and what decodes media for it.

    Args:
        task: "image-text-to-text", "any-to-any", ...: one that takes messages; where the model has no chat template,
            the last question and all pictures are given. options: of `pipeline`.
    """
    from transformers import pipeline

    pipe = cast(Any, pipeline)(task, model=name_or_path, **options)
    if (processor := getattr(pipe, "processor", None)) is None:
        raise ValueError(f"{name_or_path}: a pipeline of {task} has no processor, which takes messages or pictures")
    heard_at = getattr(getattr(processor, "feature_extractor", None), "sampling_rate", RATE)
    how = {"generate_kwargs": {"max_new_tokens": max_new_tokens, "do_sample": False}, "return_full_text": False}

    def answer(rows: list[list[dict]]) -> list[dict]:
        texts = []
        for row in questions(rows):
            if getattr(processor, "chat_template", None) is not None:
                said = pipe(text=_written(row, _for_pipeline), **how)
            else:  # as BLIP-2: it knows no conversation
                parts = [part for turn in row for part in turn["content"]]
                shown = [part for part in parts if part["type"] != "text"]
                pictures = [picture for part in shown for picture in _pictures(part["type"], part[part["type"]])]
                said = pipe(images=pictures, text=text_of(row[-1]), **how)
            texts.append({"text": said[0]["generated_text"].strip()})
        return texts

    return answer, PlainProcessor(heard_at)


def _written(row: list[dict], write: Callable[[str, Any], Iterator[dict]]) -> list[dict]:
    """A conversation whose decoded media are written for another program."""
    written = []
    for turn in row:
        content: list[dict] = []
        for part in turn["content"]:
            content.extend([part] if part["type"] == "text" else write(part["type"], part[part["type"]]))
        if all(part["type"] == "text" for part in content):
            written.append({**turn, "content": "".join(part["text"] for part in content)})
        else:
            written.append({**turn, "content": content})
    return written


def _for_server(kind: str, medium: Any) -> Iterator[dict]:
    if isinstance(medium, Waveform):
        sound = base64.b64encode(wav_bytes(medium.samples, medium.sampling_rate)).decode()
        yield {"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}}
        return
    for picture in _pictures(kind, medium):
        file = io.BytesIO()
        picture.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        yield {"type": "image_url", "image_url": {"url": url}}


def _for_pipeline(kind: str, medium: Any) -> Iterator[dict]:
    if isinstance(medium, Waveform):
        yield {"type": kind, kind: medium.samples}
    elif MEDIA_KINDS[kind].series:
        yield {"type": kind, kind: list(_pictures(kind, medium))}
    else:
        yield {"type": kind, kind: next(_pictures(kind, medium))}


def _pictures(kind: str, medium: Any) -> Iterator[Image.Image]:
    if isinstance(medium, Frames):
        yield from map(Image.fromarray, medium.frames)
    elif isinstance(medium, Image.Image):
        yield medium.convert("RGB")
    else:
        raise DataError(f"{kind} parts cannot be sent to another program: only pictures, films and sounds are")


__all__ = ["PlainProcessor", "endpoint_answers", "pipeline_answers"]

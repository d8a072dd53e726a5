# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""POST /v1/audio/transcriptions: a recording of any length, window by window, with the times of what was said."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from xllm.processing.media_kinds import AUDIO
from xllm.serving.limits import RequestError
from xllm.serving.requests import RequestBody
from xllm.serving.sampling import Sampling
from xllm.serving.service import Service
from xllm.training.data.sound_windows import Window, Windowing
from xllm.training.evaluation.transcription import Segment, batches_of, join_segments, segments_of, windows_of


FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
AT_A_TIME = 8  # windows of one recording, so that it does not keep others from their turn


class TranscriptionForm(RequestBody):
    """The fields of the form beside the file."""

    model: str
    prompt: str | None = None
    response_format: str = "json"
    temperature: float = Field(0.0, ge=0, le=1)
    window: float = Field(20.0, ge=1, le=60)  # of ours: most seconds that are heard at a time
    timestamp_granularities: list[str] = Field(default_factory=list)

    def check(self) -> None:
        """`RequestError` for a format or times that there are not."""
        if self.response_format not in FORMATS:
            raise RequestError(f"response_format: expected one of {', '.join(FORMATS)}", param="response_format")
        if set(self.timestamp_granularities) - {"segment"}:
            raise RequestError("timestamp_granularities: only 'segment' is known", param="timestamp_granularities")


async def transcribe(service: Service, recording: bytes, form: TranscriptionForm) -> list[Segment]:
    """What is said in a recording; silent windows are not asked about."""
    if getattr(service.processor, AUDIO.token_name, None) is None:
        raise RequestError("the model hears no speech")
    windowing = Windowing(form.window, most=service.limits.recording_seconds)
    windows = windows_of(service.processor, AUDIO, recording, windowing)
    text = {"type": "text", "text": AUDIO.prompts[0] if form.prompt is None else form.prompt}

    def asked() -> Iterator[tuple[Window, dict | None]]:
        """The windows, and what the model reads of those that are not silent."""
        for window, wave in windows:
            part = {"type": AUDIO.type, AUDIO.type: wave}
            messages = [{"role": "user", "content": [part, text]}]
            yield window, None if wave is None else service.encode(messages)

    batches, segments = batches_of(asked(), AT_A_TIME), list[Segment]()
    while batch := await service.in_worker(next, batches, None):
        rows = [inputs for _, inputs in batch if inputs is not None]
        segments += segments_of(batch, await _answers(service, rows, form.temperature) if rows else [])
    return segments


async def _answers(service: Service, rows: list[dict], temperature: float) -> list[dict]:
    """`text` and `is_cut` of what is said in windows."""
    longest, most = max(inputs["input_ids"].shape[1] for inputs in rows), service.limits.new_tokens
    room = most if service.context is None else service.context - longest
    if room < 1:
        raise RequestError("a window is longer than the model's context: ask for a shorter one", param="window")
    asking = service.begin(rows, Sampling(max_tokens=min(most, room), temperature=temperature))
    texts, is_cut = [""] * len(rows), [False] * len(rows)
    try:
        async for place, delta in asking:
            texts[place] += delta.text
            is_cut[place] |= delta.finish_reason == "length"
    finally:
        asking.cancel()
    return [{"text": text.strip(), "is_cut": cut} for text, cut in zip(texts, is_cut)]


def reply(segments: list[Segment], form: TranscriptionForm) -> dict[str, Any] | str:
    """A transcript in the format asked for: JSON, or a text."""
    spoken = [segment for segment in segments if segment.text]
    if form.response_format == "srt":
        lines = [f"{n}\n{_times(one, ',')}\n{one.text}\n" for n, one in enumerate(spoken, 1)]
        return "\n".join(lines)
    if form.response_format == "vtt":
        return "\n".join(["WEBVTT\n", *(f"{_times(one, '.')}\n{one.text}\n" for one in spoken)])
    text = join_segments(segments)
    if form.response_format == "text":
        return text + "\n"
    if form.response_format == "json":
        return {"text": text}
    return {
        "task": "transcribe",
        "duration": segments[-1].end if segments else 0.0,
        "text": text,
        "segments": [
            {"id": n, "start": one.start, "end": one.end, "text": one.text, "is_cut": one.is_cut}
            for n, one in enumerate(spoken)
        ],
    }


def _times(segment: Segment, point: str) -> str:
    return " --> ".join(_clock(seconds, point) for seconds in (segment.start, segment.end))


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(round(1000 * seconds), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}{point}{thousandths:03d}"

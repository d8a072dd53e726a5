# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What is said in a recording of any length, window by window, in bounded memory (docs/long_media.md).

Each window is asked about in a conversation of its own, several in a batch; nothing of one reaches another. What is
silent is not asked about: its text is empty.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from xllm.processing.audio_decoding import Waveform
from xllm.processing.media_kinds import AUDIO, MediaKind, media_kind
from xllm.processing.media_sources import MediaError, describe_source
from xllm.training.data.sound_windows import Window, Windowing, sound_windows


# Between these characters and others no space is written: ideographs, kana, full-width forms and punctuation.
_UNSPACED = ((0x3000, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF), (0xFF00, 0xFF65), (0x20000, 0x3FFFF))


@dataclass(frozen=True)
class Segment:
    """What was heard from `start` to `end` (seconds from the beginning of the recording).

    Args:
        text: empty where it is silent.
        silent: no sound was there, and nothing was asked.
        divides: its end is a cut through sound, for want of a pause: a word may be divided there.
        is_cut: the answer has as many tokens as it was allowed, and may lack its end.
        tokens: of a recogniser, when each token was said: `{"token", "start", "end"}`, in seconds of the recording.
    """

    start: float
    end: float
    text: str = ""
    silent: bool = False
    divides: bool = False
    is_cut: bool = False
    tokens: list[dict] | None = None

    def __str__(self) -> str:
        """`[0:01:02.3 - 0:01:19.0] what was said`"""
        said = "(silence)" if self.silent else self.text
        return f"[{_clock(self.start)} - {_clock(self.end)}] {said}".rstrip()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(10 * seconds), 600)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest / 10:04.1f}"


def windows_of(
    processor: Any, kind: MediaKind, source: Any, windowing: Windowing
) -> Iterator[tuple[Window, Waveform | None]]:
    """The windows of a sound, with what the processor's reader takes (`None` for silence).

    Raises:
        MediaError: it cannot be read, or is of a kind, or for a reader, that has no time to cut.
    """
    reader = processor.reader(kind)
    if "waveform" not in kind.augmented_as or hasattr(reader, "load"):
        raise MediaError(describe_source(source), f"only sounds are cut into windows, and here {kind.type} is none")
    for window, samples in sound_windows(source, reader.sampling_rate, windowing):
        yield window, None if window.silent else Waveform(samples, reader.sampling_rate)


WindowsT = list[tuple[Window, Any]]  # with what is asked of each, or `None` where it is silent


def batches_of(windows: Iterable[tuple[Window, Any]], batch_size: int) -> Iterator[WindowsT]:
    """Windows in order, as many at a time as hold `batch_size` that are not silent."""
    batch: WindowsT = []
    for window, item in windows:
        batch.append((window, item))
        if sum(item is not None for _, item in batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch


def segments_of(batch: WindowsT, answers: Iterable[dict]) -> Iterator[Segment]:
    """The segments of a batch, of which `answers` has the fields of those that are not silent."""
    found = iter(answers)
    for window, item in batch:
        start, end = window.seconds
        fields: dict[str, Any] = {"silent": True} if item is None else next(found)
        if (tokens := fields.pop("tokens", None)) is not None:
            fields["tokens"] = [{**t, "start": start + t["start"], "end": start + t["end"]} for t in tokens]
        yield Segment(start, end, divides=window.divides, **fields)


def hear(
    windows: Iterable[tuple[Window, Any]], answer: Callable[[list], list[dict]], batch_size: int
) -> Iterator[Segment]:
    """Segments in the order of the windows, each of which has what is asked of it, or `None` where it is silent.

    `answer` gives the fields of the segments of `batch_size` of them at a time.
    """
    for batch in batches_of(windows, batch_size):
        asked = [item for _, item in batch if item is not None]
        yield from segments_of(batch, answer(asked) if asked else [])


def generated(
    model: Any, processor: Any, rows: list[list[dict]], max_new_tokens: int, typed: bool = False, **options: Any
) -> list[dict]:
    """Greedy answers to conversations that end with the user: their `text`, and `is_cut` as in `Segment`; of `typed`
    ones, what looks like a placeholder is text."""
    batch = processor.encode_conversations(rows, add_generation_prompt=True, sanitize_control_tokens=typed)
    batch = batch.to(model.device)
    output = model.generate(**batch, max_new_tokens=max_new_tokens, **{"do_sample": False, **options})
    return said_in(model, processor, output[:, batch["input_ids"].shape[1] :], max_new_tokens)


def stop_ids(model: Any, processor: Any) -> set[int]:
    """Tokens that end an answer, or stand behind its end."""
    ends = [
        model.generation_config.eos_token_id,
        model.generation_config.pad_token_id,
        processor.tokenizer.pad_token_id,
    ]
    return {id for end in ends if end is not None for id in (end if isinstance(end, list) else [end])}


def said_in(model: Any, processor: Any, new: torch.Tensor, max_new_tokens: int) -> list[dict]:
    """`text` and `is_cut` of rows of generated tokens."""
    stops, is_full = stop_ids(model, processor), new.shape[1] >= max_new_tokens
    texts = processor.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [{"text": t.strip(), "is_cut": is_full and int(row[-1]) not in stops} for t, row in zip(texts, new)]


def recognised(recogniser: Any, processor: Any, waves: list[Waveform], kind: MediaKind, **options: Any) -> list[dict]:
    """What an `XLLMForSpeechRecognition` hears: `text`, and the time stamps of its `tokens`."""
    row = recogniser.config.modalities[recogniser.config.modality]
    batch = processor(**{kind.inputs: waves}, return_tensors="pt")
    inputs = [batch[name].to(recogniser.device) for name in (row.input_name, row.mask_name) if name is not None]
    ids, frames = recogniser.transcribe(*inputs, return_fire_frames=True, **options)
    texts, stamps = processor.batch_decode(ids, fire_frames=frames, skip_special_tokens=True)
    return [{"text": text.strip(), "tokens": tokens} for text, tokens in zip(texts, stamps)]


@torch.no_grad()
def transcribe(
    model: Any,
    processor: Any,
    source: Any,
    *,
    prompt: str | None = None,
    kind: MediaKind | str = AUDIO,
    window: float | Windowing = 20.0,
    batch_size: int = 4,
    max_new_tokens: int = 256,
    **options: Any,
) -> Iterator[Segment]:
    """Transcribe a recording of any length, or ask the same about each window of it, as it goes.

    ```python
    >>> segments = list(xllm.transcribe(model, processor, "hour.wav"))
    >>> xllm.join_segments(segments)
    ```

    Args:
        model: an `XLLMForConditionalGeneration`, or the `XLLMForSpeechRecognition` of stage 1, which also tells when
            each token was said.
        source: file, URL, bytes, array or `Waveform`. A file is decoded twice, and never held as a whole.
        prompt: what to ask about each window; default what the table of media asks of files of this `kind`.
        window: most seconds of a window, or all about how it is cut.
        batch_size: windows that are heard at a time.
        max_new_tokens: of the text of one window; longer ones are marked `is_cut`.
        options: for `model.generate`, or the recogniser's `transcribe`.

    Yields:
        [`Segment`]: they follow each other without a gap, from 0 to the end of the recording.

    Raises:
        MediaError: it cannot be read.
    """
    kind = media_kind(kind)
    windowing = window if isinstance(window, Windowing) else Windowing(window)
    text = {"type": "text", "text": kind.prompts[0] if prompt is None else prompt}

    def answer(waves: list[Waveform]) -> list[dict]:
        if hasattr(model, "transcribe"):
            return recognised(model, processor, waves, kind, **options)
        rows = [[{"role": "user", "content": [{"type": kind.type, kind.type: wave}, text]}] for wave in waves]
        return generated(model, processor, rows, max_new_tokens, typed=True, **options)

    yield from hear(windows_of(processor, kind, source, windowing), answer, batch_size)


def join_segments(segments: Iterable[Segment]) -> str:
    """One text: segments with a space between them, but for scripts that are written without."""
    joined = ""
    for text in (segment.text for segment in segments if segment.text):
        together = joined and (_is_unspaced(joined[-1]) or _is_unspaced(text[0]))
        joined += text if together or not joined else f" {text}"
    return joined


def _is_unspaced(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _UNSPACED)


__all__ = ["Segment", "join_segments", "transcribe"]

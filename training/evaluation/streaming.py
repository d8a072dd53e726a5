# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What is said in a sound that is still coming: partial texts as tokens fire, a final one at each pause.

    chunks --pauses--> windows --encoder anew, CIF carried on--> fired tokens --language model--> texts

What two partial texts of a window, one after the other, agree on stays in those that follow: the language model reads
the last one at once, and goes on where it would have written something else. Final texts are free of that, and are
what greedy generation gives for the tokens that have fired (docs/streaming.md).
"""

import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache, DynamicLayer

from xllm.modeling_xllm.x2l_interfaces import X2LOutput
from xllm.processing.audio_decoding import MAX_RATE, MIN_RATE, StreamResampler, Waveform, load_audio
from xllm.processing.media_kinds import AUDIO, MediaKind, media_kind
from xllm.processing.media_sources import MediaError
from xllm.training.data.sound_windows import STEPS_PER_SECOND, Window, Windowing
from xllm.training.data.stream_windows import StreamWindows
from xllm.training.evaluation.fired_stream import FiringWindow, Listener
from xllm.training.evaluation.transcription import Segment, generated, recognised, said_in, stop_ids


NUMBERS = ("f2", "f4", "f8", "i2", "i4", "u1")
PAUSE = 0.8  # seconds; the two of a recording are long to wait for
# Settings of generation that do not change a greedy answer.
_HARMLESS = {
    "bos_token_id", "eos_token_id", "pad_token_id", "do_sample", "temperature", "top_p", "top_k", "max_length",
    "max_new_tokens", "use_cache", "output_attentions", "output_hidden_states", "transformers_version",
    "_from_model_config",
}  # fmt: skip


@dataclass(frozen=True)
class StreamSegment(Segment):
    """A [`Segment`] of a stream. Times are seconds from the beginning of the stream.

    Args:
        is_final: nothing of it will change. A partial one ends where it has been heard up to.
        stable: as many characters of the text stood there before.
        fired: when each token of this window ended that the CIF has fired; empty where there is no CIF.
        new: how many of them have fired since the last text.
        received, compute: how much of the stream was there, and the seconds of computing since its last chunk.
    """

    is_final: bool = True
    stable: int = 0
    fired: list[float] = field(default_factory=list)
    new: int = 0
    received: float = 0.0
    compute: float = 0.0

    @property
    def delays(self) -> list[float]:
        """Seconds from the end of each new token to this text, computing included."""
        return [self.received + self.compute - end for end in self.fired[len(self.fired) - self.new :]]


def write_on(model: Any, text: Any, features: dict, draft: torch.Tensor, kept: int, max_new_tokens: int) -> tuple:
    """The greedy answer `(1, L)` that begins with the first `kept` tokens of `draft (D,)`, and how many it shares with
    the draft, which is read in one step. Where nothing is kept it is what `generate` gives."""
    ids, mask, shared = text["input_ids"], text["attention_mask"], 0
    P, given = ids.shape[1], dict[str, Any](modality_features=features)
    if len(draft := draft[: max_new_tokens - 1]):
        ids, mask = torch.cat([ids, draft[None]], 1), F.pad(mask, (0, len(draft)), value=1)
        output = model(input_ids=ids, attention_mask=mask, logits_to_keep=len(draft) + 1, use_cache=True, **given)
        logits, cache = output.logits[0, :-1], output.past_key_values
        logits[:, [place for place in model.model.placeholder_ids() if place < logits.shape[-1]]] = -torch.inf
        same = (logits.argmax(-1) == draft).long().cumprod(0)
        shared = max(min(kept, len(draft)), int(same.sum()))
        ids, mask = ids[:, : P + shared], mask[:, : P + shared]
        if isinstance(cache, DynamicCache) and all(type(layer) is DynamicLayer for layer in cache.layers):
            cache.crop(shared - len(draft) - 1)  # the last token that stays is read again: the next follows from it
            given["past_key_values"] = cache
    how = {"do_sample": False, "max_new_tokens": max_new_tokens - shared}
    return model.generate(input_ids=ids, attention_mask=mask, **given, **how)[:, P:], shared


class StreamTranscriber:
    """Transcribes a stream: `feed` it chunks, then `finish`; both give the texts that are new.

    ```python
    >>> stream = xllm.StreamTranscriber(model, processor)
    >>> for segment in stream.feed(samples):  # (n,), 16 kHz, floats or int16
    ...     print(segment.text, segment.is_final)
    ```

    Args:
        model: an `XLLMForConditionalGeneration`, or the `XLLMForSpeechRecognition` of stage 1.
        prompt, kind, max_new_tokens: as in `transcribe`. Answers are greedy.
        window: most seconds of a window, or all about how the stream is cut; by default 0.8 s of silence end one.
        chunk: seconds of sound that are heard together, at least.
        left, lookahead: seconds before and behind what is new that the encoder hears, at most and at least.
        second_pass: hear each window as a whole at its end, for its final text. So it is always where no CIF fires
            (partial texts then come from all of the window so far), and where a cut stands before what has fired.
        sampling_rate: of the chunks in Hz; by default the model's.

    Raises:
        ValueError: a number out of range, or (as `MediaError`) a model that reads no sound.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        prompt: str | None = None,
        kind: MediaKind | str = AUDIO,
        window: float | Windowing = 20.0,
        chunk: float = 0.32,
        left: float = 10.0,
        lookahead: float = 0.64,
        second_pass: bool = False,
        max_new_tokens: int = 256,
        sampling_rate: int | None = None,
    ):
        kind = media_kind(kind)
        reader = processor.reader(kind)
        if "waveform" not in kind.augmented_as or hasattr(reader, "load"):
            what = f"this model's {type(reader).__name__} reads no samples, so nothing can be streamed"
            raise MediaError(kind.type, f"{what}; give it files")
        if not (0 < chunk < math.inf and 0 <= left < math.inf and 0 <= lookahead < math.inf):
            raise ValueError(f"chunk={chunk}, left={left}, lookahead={lookahead}: expected seconds, a chunk above 0")
        self.model, self.processor, self.kind = model, processor, kind
        self.prompt = kind.prompts[0] if prompt is None else prompt
        self.chunk, self.second_pass, self.max_new_tokens = chunk, second_pass, max_new_tokens
        self.rate, self.given_rate = reader.sampling_rate, sampling_rate or reader.sampling_rate
        if not MIN_RATE <= self.given_rate <= MAX_RATE:
            raise ValueError(f"sampling_rate={self.given_rate}: expected {MIN_RATE} to {MAX_RATE} Hz")
        self.received = self.compute = 0.0  # seconds of sound, and of computing
        self._resampler = StreamResampler(self.given_rate, self.rate, self.given_rate // STEPS_PER_SECOND)
        windowing = window if isinstance(window, Windowing) else Windowing(window, pause=PAUSE)
        self._windows = StreamWindows(self.rate, windowing)
        self._listener = Listener(model, processor, kind, left, lookahead)
        self._is_recogniser = hasattr(model, "transcribe")
        config = {} if self._is_recogniser else model.generation_config.to_diff_dict()
        self._is_greedy = set(config) <= _HARMLESS
        self._sound, self._first = np.empty(0, np.float32), 0  # what is held, from the sample `_first` on
        self._waiting: list[np.ndarray] = []
        self._is_over, self._chunks = False, 0
        self._begin()

    def _begin(self) -> None:
        """Nothing has been heard of the window."""
        self._window, self._text, self._kept, self._settled = FiringWindow(self._listener), "", 0, 0.0
        self._draft = torch.empty(0, dtype=torch.long, device=self.model.device)

    @property
    def latency(self) -> float | None:
        """Seconds of sound that come, at most, behind the end of a token before it fires, while somebody speaks: a
        chunk, what is looked ahead, and the frames that the CIF waits for. `None` without a CIF."""
        hears = self._listener
        return self.chunk + hears.lookahead + (hears.reach + 1) * hears.frame + 0.02 if hears.fires else None

    @torch.no_grad()
    def feed(self, samples: Any) -> list[StreamSegment]:
        """The next samples `(n,)`, any number: floats in [-1, 1], or integers of 8 (unsigned), 16 or 32 bits.

        Raises:
            MediaError: other samples, another rate, or numbers that are not finite; they are not part of the stream.
            ValueError: the stream is over.
        """
        if self._is_over:
            raise ValueError("this stream is over: another sound takes another StreamTranscriber")
        self._chunks += 1
        self._resampler.push(self._checked(samples))
        self._waiting += self._resampler.take()
        size, step = sum(map(len, self._waiting)), self._windows.step
        if size < max(round(self.chunk * self.rate), step):
            return []
        sound = np.concatenate(self._waiting)
        self._waiting = [sound[size // step * step :]]
        return self._heard(sound[: size // step * step])

    @torch.no_grad()
    def finish(self) -> list[StreamSegment]:
        """What is left when the stream is over. A stream without a sample is a `MediaError`."""
        if self._is_over:
            return []
        self._is_over = True
        if not self._resampler.pushed:
            raise MediaError("the stream", "holds no sound: 0 samples")
        return self._heard(np.concatenate([*self._waiting, self._resampler.finish()]), is_last=True)

    def _checked(self, samples: Any) -> np.ndarray:
        name = f"chunk {self._chunks} of the stream"
        if isinstance(samples, Waveform):
            if samples.sampling_rate != self.given_rate:
                raise MediaError(name, f"has {samples.sampling_rate} Hz, expected {self.given_rate} Hz as all others")
            samples = samples.samples
        if isinstance(samples, torch.Tensor):
            samples = (samples.float() if samples.dtype == torch.bfloat16 else samples).detach().cpu().numpy()
        values = np.asarray(samples)
        if values.ndim != 1 or (len(values) and values.dtype.str[1:] not in NUMBERS):
            got = f"{values.dtype} of shape {values.shape}"
            raise MediaError(name, f"expected samples (n,) as floats, int16, int32 or uint8, got {got}")
        if not np.isfinite(values).all():
            raise MediaError(name, "holds samples that are not finite numbers")
        return load_audio(values, self.rate) if len(values) else np.empty(0, np.float32)

    # ---- what is heard ----------------------------------------------------------------------------------------------

    def _heard(self, samples: np.ndarray, is_last: bool = False) -> list[StreamSegment]:
        begun = time.perf_counter()
        self._sound = np.concatenate([self._sound, samples])
        self.received += len(samples) / self.rate
        found = [self._final(window) for window in self._windows.push(samples, is_last)]
        if self._windows.open is not None:
            found += self._partial(self._windows.open)
        behind = self._windows.needed - self._first
        self._sound, self._first = self._sound[behind:], self._first + behind
        self.compute += (compute := time.perf_counter() - begun)
        return [replace(segment, received=self.received, compute=compute) for segment in found]

    def _partial(self, start: int) -> list[StreamSegment]:
        """The text of the open window, if more has been said."""
        wave, hears = Waveform(self._sound[start - self._first :], self.rate), self._listener
        settled, new = (self._windows.settled - start) / self.rate, 0
        if not hears.fires:
            if settled <= self._settled:
                return []
            said, heard, self._settled = self._whole(wave), settled, settled
        else:
            wave = self._window.prepare(wave)
            heard = min(settled, len(wave.samples) / self.rate - hears.lookahead)
            if (count := int(heard / hears.frame + 1e-6) - self._window.frames) > 0:
                new = self._window.hear(batch := self._batch(wave), len(wave.samples), count)
            if not new:
                return []
            said, heard = self._written(batch, self._kept), self._window.frames * hears.frame
        segment = self._segment(said, start / self.rate, start / self.rate + heard, new)
        self._text = segment.text
        return [replace(segment, is_final=False)]

    def _final(self, window: Window) -> StreamSegment:
        start, end = window.seconds
        if window.silent:
            return StreamSegment(start, end, silent=True)
        begin, hears, new = window.start - self._first, self._listener, 0
        wave = Waveform(self._sound[begin : window.stop - self._first], self.rate)
        is_cut_before = self._window.frames * hears.frame > end - start + 1e-6
        if not hears.fires or self.second_pass or is_cut_before:
            said = self._whole(wave)
        else:
            batch = self._batch(self._window.prepare(wave))
            new = self._window.hear(batch, len(wave.samples), None)
            said = self._written(batch, kept=0)
        segment = self._segment(said, start, end, new)
        self._begin()
        return replace(segment, divides=window.divides)

    def _segment(self, said: dict, start: float, end: float, new: int) -> StreamSegment:
        if (tokens := said.get("tokens")) is not None:
            said["tokens"] = [{**t, "start": start + t["start"], "end": start + t["end"]} for t in tokens]
        stable = len(os.path.commonprefix([self._text, said["text"]]))
        frame = self._listener.frame
        fired = [start + frame * moment for moment in self._window.ends]
        fired = [moment for moment in fired if moment < end + frame]  # what stands behind a cut fires again
        return StreamSegment(start, end, stable=stable, fired=fired, new=new, **said)

    # ---- what is said -----------------------------------------------------------------------------------------------

    def _turns(self, wave: Waveform) -> list[dict]:
        text = {"type": "text", "text": self.prompt}
        return [{"role": "user", "content": [{"type": self.kind.type, self.kind.type: wave}, text]}]

    def _whole(self, wave: Waveform) -> dict:
        if self._is_recogniser:
            return recognised(self.model, self.processor, [wave], self.kind)[0]
        return generated(self.model, self.processor, [self._turns(wave)], self.max_new_tokens, typed=True)[0]

    def _batch(self, wave: Waveform) -> Any:
        if self._is_recogniser:
            return self.processor(**{self.kind.inputs: [wave]}, return_tensors="pt").to(self.model.device)
        batch = self.processor.encode_conversations([self._turns(wave)], sanitize_control_tokens=True)
        return batch.to(self.model.device)

    def _written(self, batch: Any, kept: int) -> dict:
        """The text of the tokens that have fired, of a recogniser with their times."""
        hears, ends = self._listener, self._window.ends
        embeddings = hears.embed(self._window.tokens, with_adapter=not self._is_recogniser)
        if self._is_recogniser:
            ids = self.model.token_head(embeddings).argmax(-1).tolist()
            texts, stamps = self.processor.batch_decode(ids, fire_frames=[ends], skip_special_tokens=True)
            return {"text": texts[0].strip(), "tokens": stamps[0]}
        mask = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        places = (batch["input_ids"] == hears.row.token_id).sum()[None]
        features = {hears.name: X2LOutput(embeddings=embeddings, mask=mask, num_placeholders=places)}
        draft = self._draft if self._is_greedy else self._draft[:0]
        new, self._kept = write_on(self.model, batch, features, draft, kept, self.max_new_tokens)
        stops = torch.tensor(sorted(stop_ids(self.model, self.processor)), device=new.device)
        self._draft = new[0, : int((~torch.isin(new[0], stops)).long().cumprod(0).sum())]
        return said_in(self.model, self.processor, new, self.max_new_tokens)[0]


def stream_transcribe(model: Any, processor: Any, chunks: Iterable[Any], **how: Any) -> Iterator[StreamSegment]:
    """Transcribe a sound as it comes. `how`, and what may go wrong: [`StreamTranscriber`].

    ```python
    >>> for segment in xllm.stream_transcribe(model, processor, chunks):
    ...     print(segment if segment.is_final else f"{segment.text} ...")
    ```

    Args:
        chunks: an iterable of samples `(n,)`, of any lengths.

    Yields:
        [`StreamSegment`]: partial ones, and final ones, which follow each other without a gap from 0 to the end.
    """
    stream = StreamTranscriber(model, processor, **how)

    def heard() -> Iterator[StreamSegment]:
        for chunk in chunks:
            yield from stream.feed(chunk)
        yield from stream.finish()

    return heard()


__all__ = ["StreamSegment", "StreamTranscriber", "stream_transcribe"]

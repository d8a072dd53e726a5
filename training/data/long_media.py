# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Sounds that are too long: refused, cut into pieces, or a window of them.

A sound takes tokens and memory by its length (7,550 tokens for ten minutes); a picture takes a fixed number, and a
video is sampled to a fixed number of frames, whatever its length.
"""

from dataclasses import dataclass, replace
from math import ceil

import numpy as np

from xllm.processing.audio_decoding import Waveform
from xllm.processing.conversations import part_source
from xllm.processing.media_sources import MediaError


ACTIONS = ("raise", "chunk", "window")


@dataclass(frozen=True)
class LongMedia:
    """What happens to decoded sounds of more than `seconds`; without a number, nothing.

    Args:
        seconds (`float`, *optional*).
        action (`str`): "raise" a `MediaError` (which `on_error: skip` counts and leaves out); "chunk": equal pieces of
            at most that length, one behind the other, in the place of the sound; "window": that many seconds from a
            place that is drawn anew each epoch, for data whose answer holds for any part (not for transcripts).
    """

    seconds: float | None = None
    action: str = "raise"

    def apply(self, part: dict, rng: np.random.Generator) -> list[dict]:
        """The content parts that stand for one whose medium is decoded."""
        medium = None if part["type"] == "text" else part_source(part)
        if self.seconds is None or not isinstance(medium, Waveform):
            return [part]
        most, size = int(self.seconds * medium.sampling_rate), len(medium.samples)
        if size <= most:
            return [part]
        if self.action == "window":
            begin = int(rng.integers(size - most + 1))
            pieces = [medium.samples[begin : begin + most]]
        elif self.action == "chunk":
            pieces = np.array_split(medium.samples, ceil(size / most))
        else:
            raise MediaError(
                f"a sound of {size / medium.sampling_rate:.1f} s, and data.max_seconds is {self.seconds:g}; raise the "
                "limit, cut the data, or set data.long_audio to chunk or window"
            )
        return [{**part, part["type"]: replace(medium, samples=piece)} for piece in pieces]


__all__ = ["ACTIONS", "LongMedia"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A sound of any length as windows that a model can hear, cut in pauses, in bounded memory.

The sound is decoded twice: first its level is taken every 20 ms, which says where it is silent and where a cut harms
least; then the windows are read one after the other. Neither pass holds more than a window and a block of samples.
Silence is what stays `silence_db` below the loudest half second of the whole recording, or below -70 dB of full scale:
a measure of level, which does not tell a voice from a noise as loud as one.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from xllm.processing.audio_decoding import Waveform, decode_blocks, load_audio
from xllm.processing.media_sources import MediaError, describe_source, open_media


STEPS_PER_SECOND = 50
SILENCE_FLOOR_DB = -70.0  # of full scale: quieter is silent, whatever else the recording holds
LOUDEST_STEPS = STEPS_PER_SECOND // 2  # steps: a click counts for little in half a second
_SMOOTH = 5  # steps: a cut stands in the middle of a quiet tenth of a second


@dataclass(frozen=True)
class Windowing:
    """How a sound is cut.

    Args:
        seconds: most of a window; at least 1. A longer stretch is cut where it is quietest, in the last third of that.
        pause: silence of at least so many seconds is a window of its own, which nobody needs to hear.
        margin: seconds of it on either side that stay with what is heard.
        silence_db: how far below the loudest half second silence is.
        most: recordings of more seconds than this are refused.

    Raises:
        ValueError: a number out of range.
    """

    seconds: float = 20.0
    pause: float = 2.0
    margin: float = 0.2
    silence_db: float = 40.0
    most: float = math.inf

    def __post_init__(self):
        wanted = {
            "seconds": ("a window of at least 1 s", 1 <= self.seconds < math.inf),
            "pause": ("seconds, more than two margins", 2 * self.margin < self.pause < math.inf),
            "margin": ("seconds, 0 or more", 0 <= self.margin < math.inf),
            "silence_db": ("a level above 0 dB", 0 < self.silence_db < math.inf),
            "most": ("seconds above 0", self.most > 0),
        }
        for name, (what, is_right) in wanted.items():
            if not is_right:
                raise ValueError(f"{name}={getattr(self, name)}: expected {what}")

    @property
    def steps(self) -> tuple[int, int, int]:
        """Most, pause and margin in steps of 20 ms."""
        most, pause, margin = (round(span * STEPS_PER_SECOND) for span in (self.seconds, self.pause, self.margin))
        return most, pause, margin

    def silence(self, loudest: float) -> float:
        """The power up to which a step is silent, beside the mean power of the loudest half second."""
        return max(10 ** (SILENCE_FLOOR_DB / 10), loudest * 10 ** (-self.silence_db / 10))


@dataclass(frozen=True)
class Window:
    """The samples `start` to `stop` of a sound of `rate` Hz; `silent`: nothing is in it; `divides`: it ends at a level
    that is not silence, so that a word may be divided there."""

    start: int
    stop: int
    rate: int
    silent: bool = False
    divides: bool = False

    @property
    def seconds(self) -> tuple[float, float]:
        """Where it begins and ends."""
        return self.start / self.rate, self.stop / self.rate


@contextmanager
def open_sound(source: Any, rate: int) -> Iterator[Callable[[], Iterable[np.ndarray]]]:
    """A sound as a function that reads it from its start, in float32 blocks `(n,)` of `rate` Hz.

    `source` is anything that `load_audio` takes; what is in memory already comes as one block. `MediaError`: it cannot
    be read, or holds samples that are not finite.
    """
    held = source["array"] if isinstance(source, dict) and source.get("array") is not None else source
    if isinstance(held, (Waveform, np.ndarray, torch.Tensor, list, tuple)):
        samples = load_audio(source, rate)
        yield lambda: [samples]
        return
    with open_media(source) as (file, name):

        def read() -> Iterator[np.ndarray]:
            file.seek(0)
            for block in decode_blocks(file, name, rate):
                if not np.isfinite(block).all():
                    raise MediaError(name, "holds samples that are not finite numbers")
                yield block

        yield read


def powers(blocks: Iterable[np.ndarray], rate: int, most: float = math.inf) -> tuple[np.ndarray, int]:
    """Mean square of each 20 ms, without their mean (`(steps,)`, the last one may be shorter), and how many samples
    there are; a `MediaError` once there are more than `most` seconds of them."""
    size, found, held, total = rate // STEPS_PER_SECOND, [], np.empty(0, np.float32), 0
    for block in blocks:
        total += len(block)
        if total > most * rate:
            raise MediaError("the sound", f"longer than {most:g} s")
        held = np.concatenate([held, block])
        whole = len(held) // size * size
        found.append(held[:whole].reshape(-1, size).var(axis=1))
        held = held[whole:]
    if len(held):
        found.append(held[None].var(axis=1))
    return np.concatenate([np.empty(0, np.float32), *found]), total


def means(values: np.ndarray, size: int) -> np.ndarray:
    """Means of `size` neighbours, or of all where there are fewer."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    size = min(size, len(values))
    return (sums[size:] - sums[:-size]) / size


def find_stretches(loud: np.ndarray, pause: int, margin: int) -> list[tuple[int, int]]:
    """What is to be heard: loud steps with shorter pauses between them, and margins; steps from and to."""
    places = np.flatnonzero(loud)
    if not len(places):
        return []
    breaks = np.flatnonzero(np.diff(places) > pause)
    starts = [int(places[0]) if places[0] >= pause else 0, *places[breaks + 1].tolist()]
    stops = [*(places[breaks] + 1).tolist(), int(places[-1]) + 1 if len(loud) - places[-1] > pause else len(loud)]
    return [(max(0, start - margin), min(len(loud), stop + margin)) for start, stop in zip(starts, stops)]


def cut_stretch(power: np.ndarray, start: int, stop: int, most: int) -> list[int]:
    """Steps at which a stretch is cut into windows of at most `most`; no window is shorter than a third of that."""
    cuts = []
    while stop - start > most:
        last = min(start + most, stop - most // 3)
        first = last - most // 3
        quiet = means(power[first : last + 1], _SMOOTH)
        start = first + int(quiet.argmin()) + min(_SMOOTH, last + 1 - first) // 2
        cuts.append(start)
    return cuts


def plan_windows(power: np.ndarray, size: int, rate: int, windowing: Windowing) -> list[Window]:
    """Windows that cover a sound of `size` samples without a gap or an overlap, from its `powers`."""
    loud = power > windowing.silence(float(means(power, LOUDEST_STEPS).max(initial=0.0)))
    most, pause, margin = windowing.steps
    step, windows, end = rate // STEPS_PER_SECOND, [], 0

    def add(stop: int, **what: bool) -> None:
        nonlocal end
        if stop > end:
            windows.append(Window(end * step, min(stop * step, size), rate, **what))
            end = stop

    for start, stop in find_stretches(loud, pause, margin):
        add(start, silent=True)
        for cut in cut_stretch(power, start, stop, most):
            add(cut, divides=bool(loud[cut - 1 : cut + 1].any()))
        add(stop)
    add(len(power), silent=True)
    return windows


def read_windows(blocks: Iterable[np.ndarray], windows: Iterable[Window]) -> Iterator[tuple[Window, np.ndarray]]:
    """Each window with its samples, which are those of a copy; none of a silent one."""
    left_over, held = filter(len, blocks), np.empty(0, np.float32)
    for window in windows:
        parts, left = [np.empty(0, np.float32)], window.stop - window.start
        while left > 0:
            held = held if len(held) else next(left_over, held)
            if not len(held):
                raise MediaError("the sound", "was changed while it was read")
            parts += [] if window.silent else [held[:left]]
            held, left = held[left:], left - len(held)
        yield window, np.concatenate(parts)


def sound_windows(source: Any, rate: int, windowing: Windowing) -> Iterator[tuple[Window, np.ndarray]]:
    """The windows of a sound in order, each with its samples `(n,)`, float32, of `rate` Hz (none of a silent one).

    Raises:
        MediaError: `source`, anything that `load_audio` takes, cannot be read; before the first window.
    """
    with open_sound(source, rate) as read:
        power, size = powers(read(), rate, windowing.most)
        if not size:
            raise MediaError(describe_source(source), "holds no sound: 0 samples")
        yield from read_windows(read(), plan_windows(power, size, rate, windowing))


__all__ = ["Window", "Windowing", "sound_windows"]

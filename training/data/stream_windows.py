# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The windows of a sound that is still coming, by the rules of `plan_windows`, and whatever the chunks.

Only what is silent is told by the loudest half second so far, and not by that of the whole. A stretch without a pause
is cut once it is longer than a window by a third: then the rule says where, and nothing that follows changes it.
"""

import numpy as np

from xllm.training.data.sound_windows import (
    LOUDEST_STEPS,
    STEPS_PER_SECOND,
    Window,
    Windowing,
    cut_stretch,
    find_stretches,
    means,
    powers,
)


class StreamWindows:
    """Cuts a stream: `push` its samples in order, in whole steps of 20 ms but for the last ones."""

    def __init__(self, rate: int, windowing: Windowing):
        self.rate, self.step, self._how = rate, rate // STEPS_PER_SECOND, windowing
        self.open: int | None = None  # sample at which what is being said began
        self.settled = 0  # sample up to which all belongs to the open window, whatever follows
        self._first = self._size = self._end = 0  # held from this step on; received, in samples; given out, in steps
        self._power, self._loud = np.empty(0), np.empty(0, bool)
        self._loudest, self._recent = 0.0, np.empty(0)

    @property
    def needed(self) -> int:
        """The first sample that a window to come may hold."""
        return self._first * self.step

    def push(self, samples: np.ndarray, is_last: bool = False) -> list[Window]:
        """The windows that end with what these samples `(n,)` tell; with the last ones, all is covered."""
        most, pause, margin = self._how.steps
        self._receive(samples)
        found: list[Window] = []
        begin, length, self.open = self._first, len(self._loud), None

        def add(stop: int, **what: bool) -> None:
            if stop > self._end:
                last = min(stop * self.step, self._size)
                found.append(Window(self._end * self.step, last, self.rate, **what))
                self._end = stop

        def cut(place: int) -> int:
            add(begin + place, divides=bool(self._loud[place - 1 : place + 1].any()))
            return place

        kept = max(0, length - pause)  # of silence: what comes next is then known to follow a pause
        for start, stop in find_stretches(self._loud, pause, margin):
            add(begin + start, silent=True)
            if stop < length or is_last:
                for place in cut_stretch(self._power, start, stop, most):
                    cut(place)
                add(begin + stop)
                continue
            heard = int(np.flatnonzero(self._loud)[-1]) + 1
            while heard - start >= most + most // 3:
                start = cut(cut_stretch(self._power, start, heard, most)[0])
            kept, self.open = start, (begin + start) * self.step
            self.settled = min((begin + heard + margin) * self.step, self._size)
        if is_last:
            add(begin + length, silent=True)
        self._first, self._power, self._loud = begin + kept, self._power[kept:], self._loud[kept:]
        return found

    def _receive(self, samples: np.ndarray) -> None:
        power, size = powers([samples], self.rate)
        recent = np.concatenate([self._recent, power])
        if len(recent) >= LOUDEST_STEPS:
            self._loudest = max(self._loudest, means(recent, LOUDEST_STEPS).max())
        loudest = self._loudest if len(recent) >= LOUDEST_STEPS or not len(recent) else recent.mean()
        self._power = np.concatenate([self._power, power])
        self._loud = np.concatenate([self._loud, power > self._how.silence(loudest)])
        self._recent, self._size = recent[-(LOUDEST_STEPS - 1) :], self._size + size


__all__ = ["StreamWindows"]

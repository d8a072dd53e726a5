# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Another sampling rate: torchaudio's windowed sinc with a long Kaiser window, for a waveform or as it streams in."""

import functools
import math
from fractions import Fraction

import numpy as np
import torch
from torchaudio.functional.functional import _apply_sinc_resample_kernel, _get_sinc_resample_kernel


# Flat to 0.95 of half the lower rate, and over 90 dB down from 1.01 of it: for 16 kHz, 7.6 and 8.1 kHz.
_WIDTH, _ROLLOFF, _BETA = 128, 0.98, 14.769656459379492
_LEAST_PHASES = 16  # fewer make a convolution of so few channels that it is slower
_BLOCK = 1 << 16  # samples


@functools.lru_cache(maxsize=16)
def _filter(ratio: Fraction) -> tuple[int, int, torch.Tensor, int]:
    """Of output samples per input sample: samples in and out per step, kernel `(out, 1, taps)`, taps on each side."""
    repeat = -(-_LEAST_PHASES // ratio.numerator)
    down, up = ratio.denominator * repeat, ratio.numerator * repeat
    kernel, width = _get_sinc_resample_kernel(
        down, up, 1, _WIDTH, _ROLLOFF, "sinc_interp_kaiser", _BETA, dtype=torch.float64
    )
    return down, up, kernel.float(), width


def _ratio(source_rate: float, target_rate: float) -> Fraction:
    # The filter has a phase for each unit of the numerator.
    return Fraction(target_rate / source_rate).limit_denominator(1000)


def _convert(samples: np.ndarray, ratio: Fraction) -> np.ndarray:
    down, up, kernel, width = _filter(ratio)
    return _apply_sinc_resample_kernel(torch.from_numpy(samples)[None], down, up, 1, kernel, width)[0].numpy()


def resample(samples: np.ndarray, source_rate: float, target_rate: float) -> np.ndarray:
    """A whole waveform at another rate.

    Args:
        samples (`np.ndarray` of shape `(samples,)`): at `source_rate`.
        source_rate, target_rate (`float`): in Hz, or their ratio to 1; it is met to within 1e-6.

    Returns:
        `np.ndarray` of shape `(samples * target_rate / source_rate,)`, rounded, at least one: float32.
    """
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    ratio = _ratio(source_rate, target_rate)
    if ratio == 1:
        return samples
    length = max(1, round(len(samples) * target_rate / source_rate))
    moved = _convert(samples, ratio)[:length]
    return np.pad(moved, (0, length - len(moved)))


class StreamResampler:
    """Chunks of a waveform to another rate, in bounded memory: `push` them in order, then `finish`.

    Args:
        source_rate, target_rate (`int`): in Hz.
    """

    def __init__(self, source_rate: int, target_rate: int):
        self.source_rate = source_rate
        self.target_rate = target_rate
        self.pushed = 0
        self._done: list[np.ndarray] = []
        self._ratio = _ratio(source_rate, target_rate)
        if self._ratio == 1:
            return
        down, up, _, width = _filter(self._ratio)
        steps, margin = max(1, _BLOCK // down), -(-width // down)
        self._block, self._margin = steps * down, margin * down
        self._out = slice(margin * up, (margin + steps) * up)  # of a block with its margins
        self._waiting, self._size = [np.zeros(self._margin, np.float32)], self._margin

    def push(self, samples: np.ndarray) -> None:
        """The next samples `(n,)`, float32."""
        self.pushed += len(samples)
        if self._ratio == 1:
            self._done.append(samples)
            return
        self._waiting.append(samples)
        self._size += len(samples)
        if self._size < self._block + 2 * self._margin:
            return
        waiting = np.concatenate(self._waiting)
        while len(waiting) >= self._block + 2 * self._margin:
            self._done.append(_convert(waiting[: self._block + 2 * self._margin], self._ratio)[self._out])
            waiting = waiting[self._block :]
        self._waiting, self._size = [waiting], len(waiting)

    def finish(self) -> np.ndarray:
        """The whole result, float32: `ceil(samples * target_rate / source_rate)` of them."""
        length = math.ceil(self.pushed * self.target_rate / self.source_rate)
        if self._ratio != 1:
            rest = np.concatenate([*self._waiting, np.zeros(self._margin, np.float32)])
            self._done.append(_convert(rest, self._ratio)[self._out.start :])
        result = np.concatenate(self._done)[:length]
        return np.pad(result, (0, length - len(result)))


__all__ = ["StreamResampler", "resample"]

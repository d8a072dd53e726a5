# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Sound from anywhere to a float32 mono waveform, with PyAV.

Channels are averaged (FFmpeg's own down-mix of float samples would make two equal channels 1.41 times louder), and the
rate is converted while the file streams through. A file that holds clearly less than its header promises is an error,
not a shorter sound. Deviation from the authors' code: theirs posts the file to a feature service, without resampling
or a mono check.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, TypeVar

import av
import numpy as np
import torch
from torchaudio.functional.functional import _apply_sinc_resample_kernel, _get_sinc_resample_kernel

from .media_lengths import LastEnd, check_end, check_file, check_promise, promised_seconds
from .media_sources import (
    MediaError,
    check_memory,
    describe_source,
    in_time,
    media_errors,
    open_media,
    warn_of,
)


MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; outside it is a damaged header
# What PyAV raises on damaged files: its own errors, and text in the metadata that is not UTF-8.
PYAV_ERRORS = (av.FFmpegError, UnicodeDecodeError, OSError, ValueError, MemoryError)
StreamT = TypeVar("StreamT", bound=av.stream.Stream)
# Since 19 PyAV escapes text in the metadata that is not UTF-8; before, it has to be told not to raise.
_METADATA: dict[str, Any] = {} if int(av.__version__.split(".")[0]) >= 19 else {"metadata_errors": "ignore"}

SILENCE = 10 ** (-70 / 20)  # of full scale: what stays below is silent, whatever else there is
_MOST_CHANNELS = 64
_GAP = Fraction(1, 1000)  # seconds


@dataclass(frozen=True, eq=False)
class Waveform:
    """Decoded sound: `samples` `(samples,)`, float32, mono, of `sampling_rate` Hz; `features` is what an
    extractor has made of it, by its settings."""

    samples: np.ndarray
    sampling_rate: int
    features: dict[str, np.ndarray] = field(default_factory=dict, init=False, repr=False)


def open_container(file: BinaryIO, name: str) -> av.container.InputContainer:
    """Opens a byte stream with FFmpeg. Playlists cannot reach other files or the network: no protocol is allowed."""
    with media_errors(name, "not an audio or video file, or damaged", PYAV_ERRORS):
        return av.open(file, "r", options={"protocol_whitelist": "none"}, **_METADATA)


def best_stream(
    container: av.container.InputContainer, kind: Any, stream_class: type[StreamT], what: str, name: str
) -> StreamT:
    """The stream of FFmpeg's `kind` to decode; a `MediaError` that says why there is none."""
    stream = container.streams.best(kind)
    if isinstance(stream, stream_class) and stream.codec_context is not None:
        return stream
    kinds = sorted({stream.type for stream in container.streams})
    if kind in kinds:
        raise MediaError(name, f"its {kind} stream has no decoder or a damaged header")
    raise MediaError(name, f"no {what} in it (streams: {', '.join(kinds) or 'none'})")


def _to_float(values: np.ndarray) -> np.ndarray:
    """Integer PCM to [-1, 1); floats stay."""
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float32) / float(1 << (8 * values.dtype.itemsize - 1))
    return values.astype(np.float32)


def _refuse_features(file: BinaryIO, name: str) -> None:
    head = file.read(6)
    file.seek(0)
    if head == b"\x93NUMPY":
        raise MediaError(
            name, "a NumPy file, no sound: pre-extracted features need a model with a token_level speech row"
        )


def _resampler(source_rate: int, sampling_rate: int, name: str) -> "StreamResampler":
    if not MIN_RATE <= source_rate <= MAX_RATE:
        raise MediaError(name, f"sampling rate {source_rate} Hz, expected {MIN_RATE} to {MAX_RATE}")
    return StreamResampler(source_rate, sampling_rate)


def _decode_stream(
    container: av.container.InputContainer, stream: av.AudioStream, name: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (rate, mono samples) frame by frame."""
    packets, end = 0, LastEnd(container)
    is_timed = "flac" in container.format.name  # it counts samples without a gap
    next_start: Fraction | None = None
    stream.codec_context.options = {"err_detect": "crccheck+explode"}
    to_mono = _Mono(name)
    with media_errors(name, "damaged sound", PYAV_ERRORS):
        for packet in container.demux():
            end.add(packet, packet.stream.index)
            if packet.stream.index != stream.index:
                continue
            packets += packet.size > 0
            for frame in stream.decode(packet):
                start = None if frame.pts is None else frame.pts * Fraction(frame.time_base or 0)
                if is_timed and start is not None:
                    if next_start is not None and start - next_start > _GAP:
                        gap = f"{float(start - next_start):.2f} s at {float(next_start):.2f} s"
                        raise MediaError(name, f"damaged: {gap} cannot be decoded")
                    next_start = start + Fraction(frame.samples, frame.sample_rate)
                yield frame.sample_rate, to_mono(frame)
    if stream.frames:
        check_promise(name, packets, stream.frames, "packets of sound", slack=1)
    check_end(container, end.seconds(), name)


class _Mono:
    """Frames of sound to `(samples,)`, float32: the mean of the channels."""

    def __init__(self, name: str):
        self.name = name
        self._packer: av.AudioResampler | None = None

    def __call__(self, frame: av.AudioFrame) -> np.ndarray:
        channels = frame.layout.nb_channels
        if channels > _MOST_CHANNELS:
            raise MediaError(self.name, f"{channels} channels, expected at most {_MOST_CHANNELS}")
        packed = [frame]
        if frame.format.is_planar and channels > 7:  # PyAV looks for an eighth plane's end behind it, and crashes
            self._packer = self._packer or av.AudioResampler(format=frame.format.packed)
            packed = self._packer.resample(frame)
        values = [_to_float(one.to_ndarray()) for one in packed]
        planes = [one if many.format.is_planar else one.reshape(-1, channels).T for one, many in zip(values, packed)]
        return np.concatenate([one.mean(axis=0) for one in planes])


def decode_blocks(file: BinaryIO, name: str, sampling_rate: int) -> Iterator[np.ndarray]:
    """A file of sound of any length from its start, in bounded memory: mono float32 blocks `(n,)` at `sampling_rate`
    Hz, of which `load_audio` is the whole. What is wrong with the file is a `MediaError`, at the latest at its end."""
    _refuse_features(file, name)
    check_file(file, name)
    with open_container(file, name) as container:
        stream = best_stream(container, "audio", av.AudioStream, "sound", name)
        promised = promised_seconds(container, stream, file)
        resampler: StreamResampler | None = None
        for rate, samples in _decode_stream(container, stream, name):
            resampler = resampler or _resampler(rate, sampling_rate, name)
            if rate != resampler.source_rate:
                raise MediaError(
                    name, f"the sampling rate changes from {resampler.source_rate} to {rate} Hz in the middle"
                )
            resampler.push(samples)
            yield from resampler.take()
        if resampler is None or resampler.pushed == 0:
            raise MediaError(name, "holds no sound: 0 samples")
        seconds = resampler.pushed / resampler.source_rate
        if promised is not None:
            check_promise(name, seconds, promised, "s", slack=0.1)
            if seconds > promised + 0.1:
                warn_of(name, f"{seconds:.6g} s are there, more than the promised {promised:.6g} s")
        yield resampler.finish()


def _decode_audio(file: BinaryIO, name: str, sampling_rate: int) -> np.ndarray:
    blocks, size = [], 0
    loudest = 0.0
    for block in in_time(decode_blocks(file, name, sampling_rate), name):
        blocks.append(block)
        size += len(block)
        loudest = max(loudest, float(np.abs(block).max(initial=0)))
        check_memory(name, 8 * size, f"the first {size / sampling_rate:.0f} s of a sound, which are not all,")
    if loudest < SILENCE:
        warn_of(name, f"silence: nothing in it is louder than {20 * math.log10(SILENCE):.0f} dB of full scale")
    return np.concatenate(blocks)


def _array_to_mono(values: Any, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = (values.float() if values.dtype == torch.bfloat16 else values).detach().cpu().numpy()
    with media_errors(name, "a ragged list is no waveform", (ValueError,)):
        values = np.asarray(values)
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
        raise MediaError(
            name, "a waveform is an array of numbers of shape (samples,), (channels, samples) or (samples, channels)"
        )
    values = _to_float(values)
    return values.mean(axis=0 if values.shape[0] <= values.shape[1] else 1) if values.ndim == 2 else values


def _convert_array(values: Any, name: str, source_rate: int, sampling_rate: int) -> np.ndarray:
    values = _array_to_mono(values, name)
    if len(values) == 0:
        raise MediaError(name, "holds no sound: 0 samples")
    resampler = _resampler(source_rate, sampling_rate, name)
    resampler.push(values)
    return resampler.finish()


def load_audio(source: Any, sampling_rate: int = 16_000, source_rate: int | None = None) -> np.ndarray:
    """Reads one sound as `(samples,)`, float32, mono, in [-1, 1] for integer PCM.

    Args:
        source: anything that `open_media` takes, a waveform (array, tensor or list of numbers; float in [-1, 1] or
            integer PCM; `(samples,)`, `(channels, samples)` or `(samples, channels)`), a dict with `array` and
            `sampling_rate`, or a `Waveform`.
        sampling_rate, source_rate: of the result and of a waveform given as an array, in Hz; the same by default.

    Raises:
        MediaError: no such file, no sound in it, damaged or cut off, not finite, absurd rate or length.
    """
    if isinstance(source, Waveform) and source.sampling_rate == sampling_rate:
        return source.samples
    name = describe_source(source)
    if isinstance(source, Waveform):
        source, source_rate = source.samples, source.sampling_rate
    if isinstance(source, dict) and source.get("array") is not None:
        source, source_rate = source["array"], source.get("sampling_rate") or source_rate
    if isinstance(source, (np.ndarray, torch.Tensor, list, tuple)):
        samples = _convert_array(source, name, int(source_rate or sampling_rate), sampling_rate)
    else:
        with open_media(source) as (file, name):
            samples = _decode_audio(file, name, sampling_rate)
    if not np.isfinite(samples).all():
        raise MediaError(name, "holds samples that are not finite numbers")
    return np.ascontiguousarray(samples, dtype=np.float32)


# ---- another sampling rate: torchaudio's windowed sinc with a long Kaiser window ------------------------------------

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
    """A whole waveform `(samples,)` at another rate: `(samples * target_rate / source_rate,)`, float32, at least one.

    Rates are in Hz, or a ratio to 1, which is met to within 1e-6.
    """
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    ratio = _ratio(source_rate, target_rate)
    if ratio == 1:
        return samples
    length = max(1, round(len(samples) * target_rate / source_rate))
    moved = _convert(samples, ratio)[:length]
    return np.pad(moved, (0, length - len(moved)))


class StreamResampler:
    """Chunks of a waveform to another rate (Hz), in bounded memory: `push` them in order, then `finish`. What is
    pushed waits for a block of so many samples."""

    def __init__(self, source_rate: int, target_rate: int, block: int = _BLOCK):
        self.source_rate = source_rate
        self.target_rate = target_rate
        self.pushed = self._taken = 0
        self._done: list[np.ndarray] = []
        self._ratio = _ratio(source_rate, target_rate)
        if self._ratio == 1:
            return
        down, up, _, width = _filter(self._ratio)
        steps, margin = max(1, block // down), -(-width // down)
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

    def take(self) -> list[np.ndarray]:
        """What is finished and has not been taken."""
        done, self._done = self._done, []
        self._taken += sum(map(len, done))
        return done

    def finish(self) -> np.ndarray:
        """The rest, float32; with what was taken `ceil(samples * target_rate / source_rate)` of them."""
        length = math.ceil(self.pushed * self.target_rate / self.source_rate) - self._taken
        if self._ratio != 1:
            rest = np.concatenate([*self._waiting, np.zeros(self._margin, np.float32)])
            self._done.append(_convert(rest, self._ratio)[self._out.start :])
        result = np.concatenate([np.empty(0, np.float32), *self._done])[:length]
        return np.pad(result, (0, length - len(result)))

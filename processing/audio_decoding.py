# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Sound from anywhere to a float32 mono waveform, with PyAV.

Channels are averaged (FFmpeg's own down-mix of float samples would make two equal channels 1.41 times louder), and the
rate is converted while the file streams through. A file that holds clearly less than its header promises is an error,
not a shorter sound. Deviation from the authors' code: theirs posts the file to a feature service, without resampling
or a mono check.
"""

import functools
import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, BinaryIO, TypeVar

import av
import numpy as np
import torch
from torchaudio.functional.functional import _apply_sinc_resample_kernel, _get_sinc_resample_kernel

from .media_sources import MediaError, check_memory, describe_source, media_errors, open_media


MIN_RATE, MAX_RATE = 1_000, 768_000  # Hz; outside it is a damaged header
# What PyAV raises on damaged files: its own errors, and text in the metadata that is not UTF-8.
PYAV_ERRORS = (av.FFmpegError, UnicodeDecodeError, OSError, ValueError, MemoryError)
StreamT = TypeVar("StreamT", bound=av.stream.Stream)

_LEAST_PART = 0.98  # a file with less of the promised samples or packets than this counts as cut off
_LEAST_LENGTH = 0.9  # packets do not always state how long they last, so this rule is looser
# Written in WAV headers by programs that do not know the length yet.
_STREAMED_SIZES = (0, 0x7FFFFFFF, 0x7FFFF000, 0xFFFFFFFF)


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
        return av.open(file, "r", metadata_errors="ignore", options={"protocol_whitelist": "none"})


def best_stream(
    container: av.container.InputContainer, kind: Any, stream_class: type[StreamT], what: str, name: str
) -> StreamT:
    """The stream of FFmpeg's `kind` to decode; a `MediaError` that says why there is none."""
    stream = container.streams.best(kind)
    if isinstance(stream, stream_class):
        return stream
    kinds = sorted({stream.type for stream in container.streams})
    if kind in kinds:
        raise MediaError(name, f"its {kind} stream has no decoder or a damaged header")
    raise MediaError(name, f"no {what} in it (streams: {', '.join(kinds) or 'none'})")


def packet_end(packet: av.Packet) -> float:
    """Where a packet ends, in seconds; 0 if that is not known."""
    stamp = packet.pts if packet.pts is not None else packet.dts
    return 0.0 if stamp is None else float((stamp + (packet.duration or 0)) * packet.time_base)


def check_end(container: av.container.InputContainer, end: float, name: str) -> None:
    """`MediaError` where a tenth or more of the length in the header is missing (Matroska and WebM state it)."""
    start = max(container.start_time or 0, 0) / av.time_base
    promised = (container.duration or 0) / av.time_base
    if "matroska" in container.format.name and end - start < _LEAST_LENGTH * promised - 0.1:
        raise MediaError(name, f"cut off: it ends after {end - start:.2f} of {promised:.2f} s")


def _to_float(values: np.ndarray) -> np.ndarray:
    """Integer PCM to [-1, 1); floats stay."""
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128.0) / 128.0
    if values.dtype.kind == "i":
        return values.astype(np.float32) / float(1 << (8 * values.dtype.itemsize - 1))
    return values.astype(np.float32)


def _check_head(file: BinaryIO, name: str) -> None:
    """Refuses NumPy files, and RIFF files that lack some of what their header announces (FFmpeg says nothing)."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head.startswith(b"\x93NUMPY"):
        raise MediaError(
            name, "a NumPy file, no sound: pre-extracted features need a model with a token_level speech row"
        )
    if head[:4] + head[8:] == b"RIFFWAVE":
        while len(chunk := file.read(8)) == 8:
            tag, length = struct.unpack("<4sI", chunk)
            if tag == b"data":
                there = size - file.tell()
                if length not in _STREAMED_SIZES and there < _LEAST_PART * length:
                    raise MediaError(name, f"cut off: the header announces {length} bytes of sound, {there} are there")
                break
            file.seek(length + length % 2, os.SEEK_CUR)
    file.seek(0)


def _resampler(source_rate: int, sampling_rate: int, name: str) -> "StreamResampler":
    if not MIN_RATE <= source_rate <= MAX_RATE:
        raise MediaError(name, f"sampling rate {source_rate} Hz, expected {MIN_RATE} to {MAX_RATE}")
    return StreamResampler(source_rate, sampling_rate)


def _promised_seconds(container: av.container.InputContainer, stream: av.AudioStream, file: BinaryIO) -> float | None:
    """The length that the header states, where it states one rather than guesses it from the bit rate."""
    kinds = container.format.name.split(",")
    states_length = "flac" in kinds
    if "mp3" in kinds:
        here = file.tell()
        file.seek(0)
        head = file.read(1 << 16)
        file.seek(here)
        states_length = b"Xing" in head or b"Info" in head
    if states_length and stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return None


def _decode_stream(
    container: av.container.InputContainer, stream: av.AudioStream, name: str
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (rate, mono samples) frame by frame."""
    packets, end = 0, 0.0
    with media_errors(name, "damaged sound", PYAV_ERRORS):
        for packet in container.demux():
            end = max(end, packet_end(packet))
            if packet.stream.index != stream.index:
                continue
            packets += packet.size > 0
            for frame in stream.decode(packet):
                values = _to_float(frame.to_ndarray())
                values = values if frame.format.is_planar else values.reshape(frame.samples, -1).T
                yield frame.sample_rate, values.mean(axis=0)
    if stream.frames and packets < _LEAST_PART * stream.frames - 1:
        raise MediaError(name, f"cut off: {packets} of {stream.frames} packets of sound are there")
    check_end(container, end, name)


def decode_blocks(file: BinaryIO, name: str, sampling_rate: int) -> Iterator[np.ndarray]:
    """A file of sound of any length from its start, in bounded memory: mono float32 blocks `(n,)` at `sampling_rate`
    Hz, of which `load_audio` is the whole. What is wrong with the file is a `MediaError`, at the latest at its end."""
    _check_head(file, name)
    with open_container(file, name) as container:
        stream = best_stream(container, "audio", av.AudioStream, "sound", name)
        promised = _promised_seconds(container, stream, file)
        resampler: StreamResampler | None = None
        for rate, samples in _decode_stream(container, stream, name):
            resampler = resampler or _resampler(rate, sampling_rate, name)
            if rate != resampler.source_rate:
                raise MediaError(
                    name, f"the sampling rate changes from {resampler.source_rate} to {rate} Hz in the middle"
                )
            if stream.codec_context.channels > 64:
                raise MediaError(name, f"{stream.codec_context.channels} channels, expected at most 64")
            resampler.push(samples)
            yield from resampler.take()
        if resampler is None or resampler.pushed == 0:
            raise MediaError(name, "holds no sound: 0 samples")
        seconds = resampler.pushed / resampler.source_rate
        if promised is not None and seconds < _LEAST_PART * promised - 0.1:
            raise MediaError(
                name, f"damaged or cut off: {seconds:.2f} of the promised {promised:.2f} s can be decoded"
            )
        yield resampler.finish()


def _decode_audio(file: BinaryIO, name: str, sampling_rate: int) -> np.ndarray:
    blocks, size = [], 0
    for block in decode_blocks(file, name, sampling_rate):
        blocks.append(block)
        size += len(block)
        check_memory(name, 8 * size, f"the first {size / sampling_rate:.0f} s of a sound, which are not all,")
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

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Small media files that the tests make themselves: waves, pictures and films whose right answer is known."""

import struct
import wave
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from xllm.processing import audio_decoding, media_sources, video_decoding


def count_readings(monkeypatch) -> Counter:
    """Counts from now on how often files are opened, and pictures, sounds and films decoded."""
    counts: Counter = Counter()

    def watch(module, name: str, what: str) -> None:
        read = getattr(module, name)

        def counted(*args, **kwargs):
            counts[what] += 1
            return read(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    watch(media_sources, "_open_path", "opened")
    watch(Image, "open", "pictures")
    for name in ("_decode_audio", "_convert_array"):
        watch(audio_decoding, name, "sounds")
    watch(video_decoding, "_decode_video", "films")
    return counts


def sine(seconds: float = 0.5, rate: int = 16_000, frequency: float = 440.0) -> np.ndarray:
    """A tone of half the full scale, float32 `(samples,)`."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write_wav(path: Path, channels: list[np.ndarray], rate: int = 16_000) -> Path:
    """Writes 16-bit PCM from one float array per channel."""
    samples = np.rint(np.stack(channels, axis=1) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(len(channels))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return path


def write_sound(path: Path, samples: np.ndarray, codec: str, rate: int = 16_000) -> Path:
    """Encodes a mono sound with FFmpeg; the container follows from the file name."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            np.rint(samples[None] * 32767).astype(np.int16), format="s16", layout="mono"
        )
        frame.sample_rate = rate
        resampler = av.AudioResampler(
            format=stream.codec_context.format,
            layout="mono",
            rate=rate,
            frame_size=stream.codec_context.frame_size or None,
        )
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


def grey_frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """A film whose frame i is a plain grey of level `10 + 8 * i`, uint8 `(count, H, W, 3)`."""
    levels = (10 + 8 * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `grey_frames` these are, read off the pixels."""
    return [int(round((float(frame.mean()) - 10) / 8)) for frame in frames]


def write_video(
    target: Any,
    frames: np.ndarray,
    fps: int = 10,
    codec: str = "libx264",
    stamps: list[int] | None = None,
    keyframe_every: int | None = None,
    bit_rate: int | None = None,
    **kwargs: Any,
) -> Any:
    """Encodes frames `(T, H, W, 3)`; `stamps` are their times in units of 1/1000 s, otherwise they follow at `fps`."""
    with av.open(target if hasattr(target, "write") else str(target), "w", **kwargs) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        if keyframe_every is not None:
            stream.codec_context.gop_size = keyframe_every
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target


def turn_mp4(path: Path, matrix: tuple[int, int, int, int] = (0, 1, -1, 0)) -> Path:
    """Sets the display matrix of an MP4 file, by default "turn 90 degrees clockwise" (the pixels stay as they are)."""
    data = bytearray(path.read_bytes())
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    a, b, c, d = (value << 16 for value in matrix)
    turned = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    place = data.index(upright, data.index(b"tkhd"))
    data[place : place + len(turned)] = turned
    path.write_bytes(bytes(data))
    return path

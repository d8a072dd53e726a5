# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Sound in chunks: from a file, from a pipe, from a microphone."""

import importlib
import queue
import time
import wave
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from transformers.utils import logging

from xllm.processing.media_sources import MediaError
from xllm.training.data.sound_windows import open_sound


logger = logging.get_logger(__name__)

MOST_WAITING = 30.0  # seconds from a microphone that may wait to be heard
NO_SOUND = 5.0  # seconds after which a microphone that gives nothing is lost
_WIDTHS = {1: "u1", 2: "<i2", 4: "<i4"}


def file_chunks(source: Any, rate: int, seconds: float) -> Iterator[np.ndarray]:
    """What `load_audio` takes, decoded as it goes: chunks `(n,)` of so many seconds, float32, of `rate` Hz."""
    size, held = max(1, round(seconds * rate)), np.empty(0, np.float32)
    with open_sound(source, rate) as read:
        for block in read():
            held = np.concatenate([held, block])
            while len(held) >= size:
                yield held[:size]
                held = held[size:]
    if len(held):
        yield held


class _Behind:
    """What a pipe holds, though its first bytes have been read."""

    def __init__(self, head: bytes, file: BinaryIO):
        self._head, self._file = head, file

    def read(self, size: int) -> bytes:
        head, self._head = self._head[:size], self._head[size:]
        return head + self._file.read(size - len(head))


def piped_chunks(file: BinaryIO, rate: int, seconds: float, name: str) -> tuple[int, Iterator[np.ndarray]]:
    """A pipe's sampling rate and its chunks `(n,)`, integers: a WAV file of 8, 16 or 32 bits and any rate, or bare
    16-bit samples (little-endian, one channel) of `rate` Hz. It ends where the pipe does."""
    behind: Any = _Behind(head := file.read(4), file)
    sound: Any = None
    channels, dtype = 1, "<i2"
    if head == b"RIFF":
        try:
            sound = wave.Wave_read(behind)
        except (wave.Error, EOFError) as error:
            raise MediaError(name, f"no WAV file of integers ({error}): pipe PCM of 16 bits") from error
        rate, channels = sound.getframerate(), sound.getnchannels()
        if (dtype := _WIDTHS.get(sound.getsampwidth(), "")) == "":
            raise MediaError(name, f"samples of {8 * sound.getsampwidth()} bits, expected 8, 16 or 32")
    frame = channels * np.dtype(dtype).itemsize

    def chunks() -> Iterator[np.ndarray]:
        size = max(1, round(seconds * rate))
        while data := behind.read(size * frame) if sound is None else sound.readframes(size):
            if len(data) % frame:
                raise MediaError(name, "ends in the midst of a sample")
            values = np.frombuffer(data, dtype).reshape(-1, channels)
            yield values[:, 0] if channels == 1 else values.mean(axis=1).astype(dtype)

    return rate, chunks()


def paced(chunks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Chunks as they would be spoken: each when its last sample would be there."""
    begun, heard = time.monotonic(), 0.0
    for chunk in chunks:
        heard += len(chunk) / rate
        time.sleep(max(0.0, begun + heard - time.monotonic()))
        yield chunk


def microphone(rate: int, seconds: float) -> Iterator[np.ndarray]:
    """Sound of the default input device, float32 `(n,)`, at least so many seconds at a time: all that has come, until
    a KeyboardInterrupt. Needs the extra `microphone`.

    Raises:
        ImportError: sounddevice is not installed.
        OSError: no PortAudio, no device, or one that falls silent.
        ValueError: what was heard is taken too slowly.
    """
    try:
        sounddevice = importlib.import_module("sounddevice")
    except OSError as error:
        raise OSError(
            f"a microphone needs PortAudio ({error}): on Debian and Ubuntu, apt install libportaudio2"
        ) from error
    blocks: queue.SimpleQueue = queue.SimpleQueue()
    how: dict[str, Any] = {
        "samplerate": rate,
        "channels": 1,
        "dtype": "float32",
        "blocksize": max(1, round(seconds * rate)),
    }

    def keep(block: np.ndarray, size: int, moment: Any, status: Any) -> None:
        blocks.put((block[:, 0].copy(), str(status) if status else ""))

    try:
        device = sounddevice.InputStream(callback=keep, **how)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise OSError(f"no microphone that gives {rate} Hz: {error}") from error
    is_over, heard = False, list[tuple[np.ndarray, str]]()
    with device:
        while not is_over:
            try:
                heard = [blocks.get(timeout=NO_SOUND + seconds)]
            except queue.Empty:
                raise OSError(f"the microphone has given nothing for {NO_SOUND + seconds:g} s") from None
            except KeyboardInterrupt:  # what was said before it is heard
                is_over, heard = True, [(np.empty(0, np.float32), "")]
            heard += [blocks.get() for _ in range(blocks.qsize())]
            for trouble in filter(None, (status for _, status in heard)):
                logger.warning(f"microphone: {trouble}")
            samples = np.concatenate([block for block, _ in heard])
            if len(samples) > MOST_WAITING * rate + how["blocksize"]:
                waiting = f"{len(samples) / rate:.0f} s of sound wait to be heard"
                raise ValueError(f"{waiting}: this model is too slow here; take a longer chunk, or a smaller model")
            yield samples


__all__ = ["file_chunks", "microphone", "paced", "piped_chunks"]

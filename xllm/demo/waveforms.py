# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Waveform augmentation: what rooms, microphones, telephones and other throats do to a recording.

Every function takes and gives mono `float32` samples of shape `(A,)` in [-1, 1], 16 kHz, and draws only from the
generator it is given. All filters work on the whole clip in the frequency domain.
"""

import wave
from pathlib import Path

import numpy as np

from xllm.processing.audio_decoding import resample


SAMPLING_RATE = 16_000  # Hz


def _transform_length(length: int) -> int:
    """A length for which the Fourier transform is fast: a power of two, or three quarters of one."""
    power = 1 << max(4, (length - 1).bit_length())
    return 3 * power // 4 if length <= 3 * power // 4 else power


def filter_band(
    samples: np.ndarray, low_hz: float = 0.0, high_hz: float = SAMPLING_RATE / 2, tilt_db: float = 0.0
) -> np.ndarray:
    """Keep a band (soft edges) and tilt the spectrum by `tilt_db` per octave around 1 kHz.

    `filter_band(x, 250, 3600)` is what a telephone, or a file sampled at 8 kHz, leaves of a recording.
    """
    size = _transform_length(len(samples))
    spectrum = np.fft.rfft(samples, size)
    hertz = np.fft.rfftfreq(size, 1.0 / SAMPLING_RATE)
    gain = 1.0 / (1.0 + np.exp(np.clip((hertz - high_hz) / 60.0, -60.0, 60.0)))
    if low_hz > 0:
        gain = gain / (1.0 + np.exp(np.clip((low_hz - hertz) / 30.0, -60.0, 60.0)))
    if tilt_db:
        gain = gain * 10.0 ** (tilt_db * np.log2(np.maximum(hertz, 60.0) / 1000.0) / 20.0)
    return np.fft.irfft(spectrum * gain, size)[: len(samples)].astype(np.float32)


def telephone(samples: np.ndarray, low_hz: float) -> np.ndarray:
    """What is left of a recording that was once stored with 8 kHz and 16 bits: nothing above 4 kHz, not even noise."""
    narrow = filter_band(resample(samples, 2, 1), 2.0 * low_hz)  # half as many samples: every frequency counts double
    narrow = np.round(np.clip(narrow, -1.0, 1.0) * 32767.0).astype(np.float32) / 32767.0
    return resample(narrow, 1, 2)[: len(samples)]


def reverberate(samples: np.ndarray, seconds: float, wet: float, rng: np.random.Generator) -> np.ndarray:
    """Add the echo of a room: exponentially fading noise of `seconds` (-60 dB), `wet` times as strong as the sound."""
    length = max(2, round(seconds * SAMPLING_RATE))
    decay = 10.0 ** (-3.0 * np.arange(length) / length)
    response = rng.normal(size=length) * decay
    response *= wet / np.sqrt(np.sum(response**2))
    response[0] += 1.0
    size = _transform_length(len(samples) + length)
    echoed = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return echoed[: len(samples)].astype(np.float32)


def add_noise(samples: np.ndarray, snr_db: float, colour: float, rng: np.random.Generator) -> np.ndarray:
    """Add noise whose power falls as 1 / frequency^`colour` (0 white, 1 pink, 2 brown), `snr_db` below the speech."""
    size = _transform_length(len(samples))
    spectrum = np.fft.rfft(rng.normal(size=size))
    hertz = np.fft.rfftfreq(size, 1.0 / SAMPLING_RATE)
    noise = np.fft.irfft(spectrum * np.maximum(hertz, 40.0) ** (-colour / 2.0), size)[: len(samples)]
    power = float(np.mean(samples.astype(np.float64) ** 2))
    scale = np.sqrt(max(power, 1e-10) / max(float(np.mean(noise**2)), 1e-20)) * 10.0 ** (-snr_db / 20.0)
    return (samples + scale * noise).astype(np.float32)


def set_peak(samples: np.ndarray, peak: float) -> np.ndarray:
    """Scale so that the loudest sample is `peak` (silence stays silence)."""
    loudest = float(np.abs(samples).max())
    return (samples * (peak / loudest)).astype(np.float32) if loudest > 0 else samples.astype(np.float32)


def augment_waveform(samples: np.ndarray, rng: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """One random change of speaker size, room, line, noise, loudness and surrounding silence.

    A `strength` of 0 changes loudness alone, 1 is what the demo trains on.
    """
    samples = set_peak(samples.astype(np.float32), 0.5)
    if strength > 0:
        # A longer clip is a slower and deeper, larger speaker. In twentieths: each ratio needs a filter of its own.
        factor = round(20 * float(np.exp(rng.uniform(-0.22, 0.22) * min(strength, 1.0))))
        samples = resample(samples, 20, factor)
        before, after = rng.uniform(0.0, 0.35, size=2) * rng.integers(0, 2, size=2) + 0.02  # seconds of silence
        samples = np.pad(samples, (round(before * SAMPLING_RATE), round(after * SAMPLING_RATE)))
        if rng.random() < 0.5 * strength:
            samples = reverberate(samples, float(rng.uniform(0.05, 0.4)), float(rng.uniform(0.1, 0.7)), rng)
        low, high = 0.0, SAMPLING_RATE / 2
        if rng.random() < 0.6 * strength:
            low, high = float(rng.uniform(20.0, 350.0)), float(rng.uniform(3200.0, 7800.0))
        samples = filter_band(samples, low, high, float(rng.uniform(-4.0, 4.0)) * min(strength, 1.0))
        if rng.random() < 0.8 * strength:
            samples = add_noise(samples, float(rng.uniform(8.0, 45.0)), float(rng.uniform(0.0, 2.0)), rng)
        if rng.random() < 0.25 * strength:
            samples = telephone(samples, float(rng.uniform(20.0, 300.0)))
    return set_peak(samples, float(np.exp(rng.uniform(np.log(0.03), np.log(0.95)))))


def quiet_waveform(kind: int, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """A recording in which nobody speaks, of any length up to `seconds`.

    Every eighth `kind` is a single sample, zeros or a constant; the others are the noise of rooms and lines, hum too.
    """
    length = int(rng.uniform(0.02, seconds) * SAMPLING_RATE)
    plain = {0: np.zeros(1), 1: np.zeros(length), 2: np.full(length, rng.uniform(-0.5, 0.5))}
    if kind % 8 == 0:
        return plain[kind // 8 % 3].astype(np.float32)
    samples = add_noise(np.zeros(length, np.float32), 0.0, float(rng.uniform(0.0, 2.0)), rng)
    samples = set_peak(samples, 0.5)
    if rng.random() < 0.3:
        times = np.arange(length) / SAMPLING_RATE
        for overtone in range(1, 6):
            samples += rng.uniform(0.0, 0.2) * np.sin(2 * np.pi * rng.uniform(48.0, 62.0) * overtone * times)
    samples = filter_band(samples, float(rng.uniform(0.0, 350.0)), float(rng.uniform(3200.0, 8000.0)))
    return set_peak(samples, float(np.exp(rng.uniform(np.log(2e-4), np.log(0.3)))))


def write_wave(samples: np.ndarray, path: str | Path) -> None:
    """Write 16 kHz mono 16-bit PCM; what lies outside [-1, 1] is clipped."""
    pcm = (np.clip(samples, -1.0, 1.0) * 32767.0).round().astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes(pcm.tobytes())


def read_wave(path: str | Path) -> np.ndarray:
    """The samples that `write_wave` has written: what `load_audio` gives, in a tenth of its time."""
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768.0

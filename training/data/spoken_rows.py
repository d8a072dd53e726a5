# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Rows of a source without a file: texts said by a synthesiser in many voices, and sounds in which nothing is said.

```yaml
- speak: {texts: [zero, one, ""], number: 3000}    # 1,000 times each; "" is a pause
  prompts: ["Transcribe the speech ."]
```

What is said, by which voice and how follows from the seed. A pause is digital silence, a constant, a click or noise of
any colour and level, 0.03 to 1.5 s long, and its answer is empty.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers.utils import logging

from xllm.processing.audio_decoding import resample
from xllm.training.data.media_rows import DataError
from xllm.training.instructions.speech_synthesis import ACCENTS, PEOPLE, random_speaker, synthesise


logger = logging.get_logger(__name__)
SPOKEN = "__spoken__"  # column of the sound
RATE = 16_000  # Hz


@dataclass(kw_only=True)
class SpeakSpec:
    """Texts that a synthesiser says: espeak-ng, of the extra `demo`.

    Args:
        texts (`list[str]`): each is said equally often, by a voice drawn for each time; "" is a pause.
        number (`int`): of sounds.
        language (`str`): "en" or "zh".
        seed (`int`): of voices, accents, rates, pitches and pauses.
        needed (`bool`): whether it is an error that espeak-ng is not installed; otherwise a warning, and only the
            pauses are left.
    """

    texts: list[str] = field(default_factory=list)
    number: int = 1000
    language: str = "en"
    seed: int = 0
    needed: bool = True


def check_speak(where: str, spec: SpeakSpec) -> None:
    """Raises a `DataError` for a value that is not possible."""
    if not spec.texts:
        raise DataError(f"{where}: speak.texts is empty; give the texts to say")
    if spec.number < len(spec.texts):
        raise DataError(f"{where}: speak.number is {spec.number}, expected at least one for each of the texts")
    if spec.language not in ACCENTS:
        raise DataError(f"{where}: speak.language is {spec.language!r}; choose {' or '.join(ACCENTS)}")


def spoken_rows(name: str, spec: SpeakSpec) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(place, {"text", "__spoken__"})` of each sound; texts take turns.

    Raises:
        DataError: see `check_speak`; espeak-ng is needed and not installed, or fails.
    """
    check_speak(name, spec)
    rng = np.random.default_rng([spec.seed, 4])
    texts = [spec.texts[index % len(spec.texts)] for index in range(spec.number)]
    voices = tuple(voice for group in PEOPLE for voice in group)
    said = {
        index: random_speaker(text, spec.language, voices, rng) for index, text in enumerate(texts) if text.strip()
    }
    try:
        waves, rate = synthesise(list(said.values())) if said else ([], 0)
    except ImportError as error:
        missing = f"{name}: espeak-ng is not installed: pip install 'xllm-transformers[demo]'"
        if spec.needed:
            raise DataError(missing) from error
        logger.warning(f"{missing}; {len(said)} synthesised sounds are left out")
        said, waves, rate = {}, [], 0
        if all(text.strip() for text in texts):
            raise DataError(f"{missing}, and there is nothing else in this source") from error
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error
    spoken = dict(zip(said, waves))
    for index, text in enumerate(texts):
        place = f"{name}[{index}]"
        if not text.strip():
            yield place, {"text": "", SPOKEN: _sound(pause(rng), place)}
        elif index in spoken:
            samples = resample(spoken[index].astype(np.float32), rate, RATE)
            yield place, {"text": text, SPOKEN: _sound(samples.round().clip(-32768, 32767).astype(np.int16), place)}


def _sound(samples: np.ndarray, place: str) -> dict[str, Any]:
    return {"array": samples, "sampling_rate": RATE, "path": place}


def pause(rng: np.random.Generator, rate: int = RATE) -> np.ndarray:
    """A sound in which nothing is said, float32 `(samples,)` in [-1, 1]."""
    samples = np.zeros(round(rate * float(np.exp(rng.uniform(np.log(0.03), np.log(1.5))))), np.float32)
    level = float(np.exp(rng.uniform(np.log(1e-4), np.log(0.5))))
    kind = rng.integers(6)
    if kind == 0:
        samples += level * rng.integers(2)  # a constant, or nothing at all
    elif kind == 1:
        samples[rng.integers(len(samples))] = level
    else:  # noise whose power falls as 1 / frequency^colour: 0 is white, 2 brown
        spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
        hertz = np.maximum(np.fft.rfftfreq(len(samples), 1 / rate), 40.0)
        noise = np.fft.irfft(spectrum * hertz ** (-rng.uniform(0, 2) / 2), len(samples))
        samples += (level * noise / np.abs(noise).max()).astype(np.float32)
    return samples


__all__ = ["SPOKEN", "SpeakSpec", "pause", "spoken_rows"]

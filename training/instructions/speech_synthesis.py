# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speech synthesised by espeak-ng in many voices, English accents and Mandarin.

espeak-ng (GPL-3.0-or-later) comes as a shared library in the wheel `espeakng-loader`, is loaded at run time, and
nothing of it is part of this package. Its noise generator and its oscillators keep their state between utterances, so
the same call can give other samples later in a process; `synthesise` therefore speaks a whole list in a fresh child
process, in the given order and with the generator seeded: the same list gives the same samples. The child runs this
file, which imports nothing of the package so that it starts in a moment.
"""

import ctypes
import importlib
import io
import json
import subprocess
import sys
import tempfile
import wave
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


ACCENTS = {
    "en": ("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029", "en-gb-x-gbcwmd"),
    "zh": ("cmn",),
}
# Voice variants of espeak-ng 1.52 that sound like people, near copies in one group: a group is never split between
# training and test. Robots, whispers and the variants that only shout are for training alone, as noise in the ear.
PEOPLE = (
    ("m1",), ("m2",), ("m3",), ("m4",), ("m5",), ("m6",), ("m7",), ("m8",),
    ("f1",), ("f2",), ("f3",), ("f4",), ("f5",),
    ("Alex",), ("Alicia",), ("Andrea",), ("Andy", "AnxiousAndy"), ("Annie",), ("Gene", "Gene2"), ("Jacky",),
    ("Lee",), ("Mario",), ("Michael", "michel", "miguel"), ("Mike", "mike2"), ("Nguyen",), ("Reed",),
    ("adam", "benjamin", "caleb", "david", "edward", "edward2"), ("anika",), ("announcer",), ("antonio",),
    ("aunty", "linda"), ("belinda",), ("boris",), ("ed",), ("grandma",), ("grandpa",), ("gustave",), ("ian",),
    ("iven4",), ("john",), ("kaukovalta",), ("klatt", "klatt3"), ("klatt4", "klatt5"), ("marcelo",), ("max",),
    ("norbert",), ("pablo",), ("pedro",), ("quincy",), ("rob",), ("robert",), ("sandro",), ("shelby",),
    ("steph",), ("travis",), ("victor",), ("zac",),
)  # fmt: skip
OTHERS = (
    "Marco", "Denis", "Diogo", "Henrique", "Hugo", "RicishayMax", "RicishayMax2", "croak", "fast", "iven", "iven2",
    "klatt2", "klatt6", "paul", "robosoft", "robosoft3", "robosoft6", "robosoft8", "steph2", "whisper", "whisperf",
)  # fmt: skip


@dataclass(frozen=True)
class Utterance:
    """What is said, by whom and how."""

    text: str
    accent: str  # language or accent of espeak-ng, e.g. "en-gb" or "cmn"
    voice: str  # variant, e.g. "f3"
    words_per_minute: int  # 80 to 450
    pitch: int  # 0 to 99; 50 is the voice's own
    pitch_range: int  # 0 (monotone) to 99; 50 is the voice's own


def split_voices(num_test_groups: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Voices of training and of test; a group of near copies goes to one side as a whole."""
    order = np.random.default_rng([seed, 2]).permutation(len(PEOPLE))
    test = [voice for group in sorted(order[:num_test_groups]) for voice in PEOPLE[group]]
    train = [voice for group in sorted(order[num_test_groups:]) for voice in PEOPLE[group]]
    return tuple(train + list(OTHERS)), tuple(test)


def random_speaker(text: str, language: str, voices: tuple[str, ...], rng: np.random.Generator) -> Utterance:
    """A text said in "en" or "zh" by one of `voices`: random accent, rate and pitch."""
    return Utterance(
        text=text,
        accent=str(rng.choice(ACCENTS[language])),
        voice=str(rng.choice(voices)),
        words_per_minute=int(rng.integers(110, 220)),
        pitch=int(rng.integers(20, 85)),
        pitch_range=int(rng.integers(20, 90)),
    )


def synthesise(utterances: list[Utterance]) -> tuple[list[np.ndarray], int]:
    """Speak every utterance, in order, in a fresh child process.

    Returns:
        The waveforms, each `int16` of shape `(A,)` (mono), and their sampling rate in Hz.

    Raises:
        ImportError: espeakng-loader is not installed.
        ValueError: the synthesiser refused a voice or failed.
    """
    importlib.import_module("espeakng_loader")  # which the child needs
    with tempfile.TemporaryDirectory() as folder:
        request, reply = Path(folder) / "utterances.json", Path(folder) / "speech.npz"
        request.write_text(json.dumps([asdict(utterance) for utterance in utterances]), encoding="utf-8")
        child = subprocess.run(
            [sys.executable, __file__, str(request), str(reply)], capture_output=True, text=True, check=False
        )
        if child.returncode != 0 or not reply.exists():
            lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
            raise ValueError(f"the speech synthesiser failed: {lines[-1]}")
        with np.load(reply) as arrays:
            samples, ends, rate = arrays["samples"], arrays["ends"], int(arrays["rate"])
    return np.split(samples, ends[:-1]), rate


class _Synthesiser:
    """espeak-ng through ctypes; one per process."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        synchronous = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples arrive in the callback before espeak_Synth returns
        self.rate = self._library.espeak_Initialize(synchronous, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.rate <= 0:
            raise ValueError(f"espeak-ng did not start (status {self.rate})")
        self._pieces: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._collect)  # kept: ctypes does not hold a reference for the library
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip

    def _collect(self, samples, num_samples: int, events) -> int:
        if samples and num_samples > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0

    def speak(self, utterance: Utterance, seed: int) -> np.ndarray:
        """Samples, `int16` of shape `(A,)`; a ValueError where there is no such voice, or nothing was said."""
        self._pieces.clear()
        voice = f"{utterance.accent}+{utterance.voice}"
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        # Numbers of espeakRATE, espeakPITCH and espeakRANGE.
        for number, value in ((1, utterance.words_per_minute), (3, utterance.pitch), (4, utterance.pitch_range)):
            self._library.espeak_SetParameter(number, value, 0)
        self._library.espeak_ng_SetRandSeed(seed)
        text = utterance.text.encode() + b"\0"
        by_character, utf8 = 1, 1
        self._library.espeak_Synth(text, len(text), 0, by_character, 0, utf8, None, None)
        if not self._pieces:
            raise ValueError(f"espeak-ng said nothing for {utterance.text!r} in voice {voice!r}")
        return _trim_silence(np.concatenate(self._pieces))


def wav_bytes(samples: np.ndarray, rate: int) -> bytes:
    """A mono WAV file of 16-bit PCM; what lies outside [-1, 1] is clipped."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.clip(samples, -1, 1) * 32767).round().astype("<i2").tobytes())
    return file.getvalue()


def _trim_silence(samples: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Cut the silence before and after, as far as the samples stay below `threshold` of the loudest one."""
    level = np.abs(samples.astype(np.float32))
    loud = np.flatnonzero(level > threshold * max(1.0, float(level.max())))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples


def _speak_request(request: str, reply: str) -> None:
    """JSON of utterances to an .npz file: `samples` (all waveforms joined), `ends` (where each ends) and `rate`."""
    utterances = [Utterance(**fields) for fields in json.loads(Path(request).read_text(encoding="utf-8"))]
    synthesiser = _Synthesiser()
    waves = [synthesiser.speak(utterance, seed) for seed, utterance in enumerate(utterances)]
    ends = np.cumsum([len(wave) for wave in waves])
    np.savez(reply, samples=np.concatenate(waves), ends=ends, rate=np.array(synthesiser.rate))


if __name__ == "__main__":
    _speak_request(*sys.argv[1:3])

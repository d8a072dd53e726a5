# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""espeak-ng through ctypes: `espeak_worker.py REQUEST REPLY`, a child process of `voices.synthesise`.

REQUEST is a JSON list of utterances (the fields of `voices.Utterance`), REPLY becomes an .npz file with all samples.
The script imports nothing of this package, so that the child starts in a moment.
"""

import ctypes
import json
import sys
from pathlib import Path

import espeakng_loader
import numpy as np


_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: the samples arrive in the callback before espeak_Synth returns
_POSITION_CHARACTER, _CHARACTERS_UTF8 = 1, 1
_PARAMETER_RATE, _PARAMETER_PITCH, _PARAMETER_RANGE = 1, 3, 4
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesiser:
    """espeak-ng; one per process."""

    def __init__(self):
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if self.rate <= 0:
            raise ValueError(f"espeak-ng did not start (status {self.rate})")
        self._pieces = []
        self._callback = _CALLBACK(self._collect)  # kept: ctypes does not hold a reference for the library
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

    def speak(self, utterance: dict, seed: int) -> np.ndarray:
        """Samples, `int16` of shape `(A,)`, of one utterance.

        Raises:
            ValueError: there is no such voice, or nothing was said.
        """
        self._pieces.clear()
        voice = f"{utterance['accent']}+{utterance['voice']}"
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        for parameter, name in (
            (_PARAMETER_RATE, "words_per_minute"),
            (_PARAMETER_PITCH, "pitch"),
            (_PARAMETER_RANGE, "pitch_range"),
        ):
            self._library.espeak_SetParameter(parameter, utterance[name], 0)
        self._library.espeak_ng_SetRandSeed(seed)
        text = utterance["text"].encode() + b"\0"
        self._library.espeak_Synth(text, len(text), 0, _POSITION_CHARACTER, 0, _CHARACTERS_UTF8, None, None)
        if not self._pieces:
            raise ValueError(f"espeak-ng said nothing for {utterance['text']!r} in voice {voice!r}")
        return trim_silence(np.concatenate(self._pieces))


def trim_silence(samples: np.ndarray, threshold: float = 0.01) -> np.ndarray:
    """Cut the silence before and after, as far as the samples stay below `threshold` of the loudest one."""
    level = np.abs(samples.astype(np.float32))
    loud = np.flatnonzero(level > threshold * max(1.0, float(level.max())))
    return samples[loud[0] : loud[-1] + 1] if len(loud) else samples


def main(request: str, reply: str) -> None:
    """Read the utterances and write `samples` (all waveforms joined), `ends` (where each ends) and `rate` (Hz)."""
    utterances = json.loads(Path(request).read_text(encoding="utf-8"))
    synthesiser = Synthesiser()
    waves = [synthesiser.speak(utterance, seed) for seed, utterance in enumerate(utterances)]
    ends = np.cumsum([len(wave) for wave in waves])
    np.savez(reply, samples=np.concatenate(waves), ends=ends, rate=np.array(synthesiser.rate))


if __name__ == "__main__":
    main(*sys.argv[1:3])

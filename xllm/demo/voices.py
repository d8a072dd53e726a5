# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speech of the demo: spoken digits synthesised by espeak-ng in many voices, English accents and Mandarin.

espeak-ng (GPL-3.0-or-later) comes as a shared library in the wheel `espeakng-loader`, is loaded at run time, and
nothing of it is part of this package. Its noise generator and its oscillators keep their state between utterances, so
the same call can give other samples later in a process; `synthesise` therefore speaks a whole list in a fresh child
process, in
the given order and with the generator seeded: the same list gives the same samples.
"""

import importlib
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


ENGLISH_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MANDARIN_WORDS = ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九")
ENGLISH_ACCENTS = ("en-us", "en-us", "en", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-029", "en-gb-x-gbcwmd")
MANDARIN_ACCENTS = ("cmn",)
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
    """What is said, by whom and how.

    Args:
        text (`str`): what the synthesiser reads, in UTF-8.
        accent (`str`): language or accent of espeak-ng, e.g. `"en-gb"` or `"cmn"`.
        voice (`str`): voice variant, e.g. `"f3"`.
        words_per_minute (`int`): 80 to 450.
        pitch (`int`): 0 to 99; 50 is the voice's own.
        pitch_range (`int`): 0 (monotone) to 99; 50 is the voice's own.
    """

    text: str
    accent: str = "en-us"
    voice: str = "m1"
    words_per_minute: int = 165
    pitch: int = 50
    pitch_range: int = 50


def split_voices(num_test_groups: int, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Voices of training and of test; a group of near copies goes to one side as a whole.

    Raises:
        ValueError: no voice would be left on one of the sides.
    """
    if not 0 < num_test_groups < len(PEOPLE):
        raise ValueError(f"num_test_groups must lie between 1 and {len(PEOPLE) - 1}, got {num_test_groups}")
    order = np.random.default_rng([seed, 2]).permutation(len(PEOPLE))
    test = [voice for group in sorted(order[:num_test_groups]) for voice in PEOPLE[group]]
    train = [voice for group in sorted(order[num_test_groups:]) for voice in PEOPLE[group]]
    return tuple(train + list(OTHERS)), tuple(test)


def random_utterance(
    digits: tuple[int, ...], language: str, voices: tuple[str, ...], rng: np.random.Generator
) -> Utterance:
    """One or more digits in a random voice, accent, rate and pitch, run together or with pauses.

    Args:
        digits (`tuple[int, ...]`): each 0 to 9.
        language (`str`): `"en"` or `"zh"`.
        voices (`tuple[str, ...]`): the voices to draw from.

    Raises:
        ValueError: an unknown language, or no digits.
    """
    if language not in ("en", "zh") or not digits:
        raise ValueError(f"expected digits and language 'en' or 'zh', got {digits!r} and {language!r}")
    words, accents = (ENGLISH_WORDS, ENGLISH_ACCENTS) if language == "en" else (MANDARIN_WORDS, MANDARIN_ACCENTS)
    separator = str(rng.choice([" ", " ", ", "]))
    return Utterance(
        text=separator.join(words[digit] for digit in digits),
        accent=str(rng.choice(accents)),
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
    importlib.import_module("espeakng_loader")  # used by the worker processes only
    if not utterances:
        raise ValueError("synthesise needs at least one utterance, got 0")
    with tempfile.TemporaryDirectory() as folder:
        request, reply = Path(folder) / "utterances.json", Path(folder) / "speech.npz"
        request.write_text(json.dumps([asdict(utterance) for utterance in utterances]), encoding="utf-8")
        command = [sys.executable, str(Path(__file__).with_name("espeak_worker.py")), str(request), str(reply)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        if child.returncode != 0 or not reply.exists():
            lines = child.stderr.strip().splitlines() or [f"exit status {child.returncode}"]
            raise ValueError(f"the speech synthesiser failed: {lines[-1]}")
        with np.load(reply) as arrays:
            samples, ends, rate = arrays["samples"], arrays["ends"], int(arrays["rate"])
    return np.split(samples, ends[:-1]), rate

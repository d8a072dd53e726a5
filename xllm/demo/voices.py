# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the demo's voices say: digits, in English and Mandarin."""

import numpy as np

from xllm.training.speech_synthesis import Utterance, random_speaker


NUMBER_WORDS = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": ("零", "一", "二", "三", "四", "五", "六", "七", "八", "九"),
}


def random_utterance(
    digits: tuple[int, ...], language: str, voices: tuple[str, ...], rng: np.random.Generator
) -> Utterance:
    """Digits (0 to 9), said in "en" or "zh" by one of `voices`, run together or not."""
    separator = str(rng.choice([" ", " ", ", "]))
    return random_speaker(separator.join(NUMBER_WORDS[language][digit] for digit in digits), language, voices, rng)

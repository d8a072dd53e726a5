# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Something that is said, and the chunks in which it comes."""

import numpy as np
from media_files import sine


RATE = 16_000


def quiet(seconds: float) -> np.ndarray:
    return (3.5e-4 * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)


def talk() -> np.ndarray:
    """13 s: two words, a pause, a word as loud as those."""
    parts = [sine(2), quiet(0.4), sine(2, frequency=900), quiet(6), sine(2.6, frequency=300)]
    return np.concatenate(parts)


def in_chunks(sound: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Chunks of these sizes in turn."""
    chunks, place, turn = [], 0, 0
    while place < len(sound):
        chunks.append(sound[place : place + sizes[turn % len(sizes)]])
        place, turn = place + sizes[turn % len(sizes)], turn + 1
    return chunks

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Character and word error rates, counted by jiwer, and accuracy.

Deviation from the authors' evaluation (their speech2text task): texts are not cut to 20 characters, and an answer that
failed counts in full instead of being left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jiwer import process_words
from jiwer.transforms import AbstractTransform


@dataclass(frozen=True)
class ErrorRate:
    """Errors over a corpus: `value` = (substitutions + deletions + insertions) / `reference` characters or words."""

    value: float
    substitutions: int
    deletions: int
    insertions: int
    reference: int


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Character error rate of a corpus: all errors over all reference characters; spaces count as characters."""
    return _error_rate(references, hypotheses, list, "character")


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Word error rate of a corpus: all errors over all reference words, which are what white space separates."""
    return _error_rate(references, hypotheses, str.split, "word")


def _error_rate(references: Sequence[str], hypotheses: Sequence[str], split: Callable, unit: str) -> ErrorRate:
    """Raises a `ValueError` for different numbers of texts, or where the references hold no unit at all."""
    _check_lengths(references, hypotheses)
    units = [split(text) for text in references]
    length = sum(map(len, units))
    if length == 0:
        raise ValueError(f"references hold no {unit}: there is no error rate")

    class Split(AbstractTransform):  # instead of jiwer's own, which strips the texts
        def __call__(self, texts: Any) -> list[list[str]]:
            return [split(text) for text in texts]

    found = process_words(list(references), list(hypotheses), Split(), Split())
    errors = (found.substitutions, found.deletions, found.insertions)
    return ErrorRate(sum(errors) / length, *errors, length)


def accuracy(references: Sequence, hypotheses: Sequence) -> float:
    """Fraction of equal pairs; a `ValueError` for different numbers, or none."""
    _check_lengths(references, hypotheses)
    if not references:
        raise ValueError("references are empty: there is no accuracy")
    return sum(a == b for a, b in zip(references, hypotheses)) / len(references)


def _check_lengths(references: Sequence, hypotheses: Sequence) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: expected as many of each")


# A metric of `xllm evaluate`: references and answers to its figures, "value" among them.
METRICS: dict[str, Callable[[list[str], list[str]], dict]] = {
    "cer": lambda references, answers: asdict(cer(references, answers)),
    "wer": lambda references, answers: asdict(wer(references, answers)),
    "accuracy": lambda references, answers: {"value": accuracy(references, answers)},
}


__all__ = ["METRICS", "ErrorRate", "accuracy", "cer", "wer"]

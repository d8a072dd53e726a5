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
    return _error_rate(references, hypotheses, list, "character")[0]


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Word error rate of a corpus: all errors over all reference words, which are what white space separates."""
    return _error_rate(references, hypotheses, str.split, "word")[0]


def _error_rate(
    references: Sequence[str], hypotheses: Sequence[str], split: Callable, unit: str
) -> tuple[ErrorRate, list[tuple[int, int]]]:
    """And (errors, units of the reference) of each row.

    Raises:
        ValueError: different numbers of texts, or the references hold no unit at all.
    """
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
    rows = [sum(_size(chunk) for chunk in chunks if chunk.type != "equal") for chunks in found.alignments]
    return ErrorRate(sum(errors) / length, *errors, length), list(zip(rows, map(len, units)))


def _size(chunk: Any) -> int:
    return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)


def accuracy(references: Sequence, hypotheses: Sequence) -> float:
    """Fraction of equal pairs; a `ValueError` for different numbers, or none."""
    _check_lengths(references, hypotheses)
    if not references:
        raise ValueError("references are empty: there is no accuracy")
    return sum(a == b for a, b in zip(references, hypotheses)) / len(references)


def _check_lengths(references: Sequence, hypotheses: Sequence) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: expected as many of each")


def _rates(split: Callable, unit: str) -> Callable[[list[str], list[str]], dict]:
    def metric(references: list[str], answers: list[str]) -> dict:
        rate, rows = _error_rate(references, answers, split, unit)
        return {**asdict(rate), "rows": rows}

    return metric


# A metric of `xllm evaluate`: references and answers to its figures, "value" among them; those with "rows", pairs
# (a, b) of each row with value = sum(a) / sum(b), get an interval.
METRICS: dict[str, Callable[[list[str], list[str]], dict]] = {
    "cer": _rates(list, "character"),
    "wer": _rates(str.split, "word"),
    "accuracy": lambda references, answers: {
        "value": accuracy(references, answers),
        "rows": [(a == b, 1) for a, b in zip(references, answers)],
    },
}


__all__ = ["METRICS", "ErrorRate", "accuracy", "cer", "wer"]

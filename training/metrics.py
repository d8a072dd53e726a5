# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Character error rate and accuracy.

Deviation from the authors' evaluation (their speech2text task): texts are not cut to 20 characters, and an answer that
failed counts in full instead of being left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ErrorRate:
    """Errors over a corpus: `value` = (substitutions + deletions + insertions) / `reference` characters."""

    value: float
    substitutions: int
    deletions: int
    insertions: int
    reference: int


def edit_counts(reference: Sequence, hypothesis: Sequence) -> tuple[int, int, int]:
    """(substitutions, deletions, insertions) of a shortest edit from `reference` to `hypothesis`."""
    # One row of the table at a time; a cell is (errors, substitutions, deletions, insertions).
    above = [(j, 0, 0, j) for j in range(len(hypothesis) + 1)]
    for i, wanted in enumerate(reference, start=1):
        row = [(i, 0, i, 0)]
        for j, got in enumerate(hypothesis, start=1):
            errors, subs, dels, ins = above[j - 1]
            miss = int(wanted != got)
            cells = [(errors + miss, subs + miss, dels, ins)]
            errors, subs, dels, ins = above[j]
            cells.append((errors + 1, subs, dels + 1, ins))
            errors, subs, dels, ins = row[j - 1]
            cells.append((errors + 1, subs, dels, ins + 1))
            row.append(min(cells, key=lambda cell: cell[0]))
        above = row
    return above[-1][1:]


def cer(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRate:
    """Character error rate of a corpus: all errors over all reference characters; spaces count as characters.

    Raises:
        ValueError: different numbers of texts, or no reference character at all.
    """
    _check_lengths(references, hypotheses)
    counts = [edit_counts(*pair) for pair in zip(references, hypotheses)]
    subs, dels, ins = (sum(column) for column in zip(*counts)) if counts else (0, 0, 0)
    length = sum(map(len, references))
    if length == 0:
        raise ValueError("references hold no character: there is no error rate")
    return ErrorRate((subs + dels + ins) / length, subs, dels, ins, length)


def accuracy(references: Sequence, hypotheses: Sequence) -> float:
    """Fraction of equal pairs.

    Raises:
        ValueError: different numbers, or none.
    """
    _check_lengths(references, hypotheses)
    if not references:
        raise ValueError("references are empty: there is no accuracy")
    return sum(a == b for a, b in zip(references, hypotheses)) / len(references)


def _check_lengths(references: Sequence, hypotheses: Sequence) -> None:
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(references)} references and {len(hypotheses)} hypotheses: expected as many of each")


__all__ = ["ErrorRate", "accuracy", "cer", "edit_counts"]

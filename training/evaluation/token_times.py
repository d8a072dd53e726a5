# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""When was it said? Times of words or characters against a reference's.

Transcripts are aligned character by character (a token of several takes an even part of its span for each), case and
spaces aside, so that words are held against subword pieces too. Of each token of the reference whose characters were
all heard, the start is compared with that of its first and the end with that of its last; the others are counted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xllm.training.data.media_rows import DataError
from xllm.training.data.row_files import read_rows
from xllm.training.evaluation.intervals import bootstrap_interval
from xllm.training.evaluation.transcripts import KEYS, align


COLUMNS = ("tokens", "timestamps", "words", "segments")
TEXTS = ("token", "word", "text", "char")
WITHIN = (0.05, 0.1, 0.2)  # seconds


@dataclass(frozen=True)
class Timed:
    """A token and its span, in seconds."""

    text: str
    start: float
    end: float


def read_times(path: str | Path) -> dict[str, list[Timed]]:
    """Timed tokens by utterance: of a CTM file (`utt channel start duration word`), or of a table with a list of
    `{"token" or "word", "start", "end"}` in `tokens`, `timestamps` or `words`: also of the samples of an evaluation by
    the recogniser of stage 1.

    Raises:
        DataError: no such file, or a row without times, or with times that run backwards.
    """
    path = Path(path).expanduser()
    rows = _ctm(path) if path.suffix == ".ctm" else _table(path)
    found: dict[str, list[Timed]] = {}
    for where, key, tokens in rows:
        if key in found and path.suffix != ".ctm":
            raise DataError(f"{where}: a second row of {key}")
        if bad := next((one for one in tokens if not 0 <= one.start <= one.end), None):
            raise DataError(f"{where}: {bad.text!r} is said from {bad.start:g} to {bad.end:g} s")
        found.setdefault(key, []).extend(tokens)
    if not found:
        raise DataError(f"{path}: holds no times")
    return found


def _ctm(path: Path) -> Iterator[tuple[str, str, list[Timed]]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no such file, or not text: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith((";;", "#")):
            continue
        try:
            key, _, start, duration, word = line.split()[:5]
            yield f"{path}:{number}", key, [Timed(word, float(start), float(start) + float(duration))]
        except ValueError as error:
            raise DataError(f"{path}:{number}: expected an utterance, channel, start, duration and word") from error


def _table(path: Path) -> Iterator[tuple[str, str, list[Timed]]]:
    for where, row in read_rows(path):
        if isinstance(row, DataError):
            raise row
        if "skipped" in row:
            continue
        key = next((str(row[name]) for name in KEYS if name in row), None)
        given = next((row[name] for name in COLUMNS if isinstance(row.get(name), list)), None)
        if key is None or given is None:
            lacks = "no key" if key is None else f"no times: a list in {', '.join(COLUMNS[:-1])}"
            raise DataError(f"{where}: {lacks} (it has {', '.join(row)})")
        yield where, key, [token for one in given for token in _tokens(where, one)]


def _tokens(where: str, one: Any) -> Iterator[Timed]:
    """A token, or those of a segment."""
    if isinstance(one, Mapping) and isinstance(one.get("tokens"), list):
        for token in one["tokens"]:
            yield from _tokens(where, token)
        return
    try:
        text = next(one[name] for name in TEXTS if name in one)
        yield Timed(str(text), float(one["start"]), float(one["end"]))
    except (StopIteration, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: {one!r:.60}: expected a token with its start and end in seconds") from error


def _characters(tokens: Sequence[Timed]) -> list[tuple[Timed, int]]:
    """Characters with their even parts of the spans, and the number of the token that each is of."""
    found = []
    for number, token in enumerate(tokens):
        text = "".join(token.text.casefold().split())
        bounds = np.linspace(token.start, token.end, len(text) + 1).tolist()
        found += [(Timed(*of), number) for of in zip(text, bounds, bounds[1:])]
    return found


def _errors(reference: Sequence[Timed], heard: Sequence[Timed]) -> list[tuple[float, float]]:
    """How much later than in the reference each token that was heard starts and ends."""
    expected, given = _characters(reference), _characters(heard)
    pairs = align([one.text for one, _ in expected], [one.text for one, _ in given])
    matched: dict[int, list[Timed | None]] = {}
    left, right = iter(expected), iter(given)
    for first, second in pairs:
        own = next(left) if first else None
        other = next(right)[0] if second else None
        if own is not None:
            matched.setdefault(own[1], []).append(other if first == second else None)
    errors = []
    for number, found in matched.items():
        known = [one for one in found if one is not None]
        if len(known) == len(found):
            errors.append((known[0].start - reference[number].start, known[-1].end - reference[number].end))
    return errors


def score_times(references: Mapping[str, list[Timed]], heard: Mapping[str, list[Timed]]) -> dict:
    """Mean absolute errors of starts, ends and both, in seconds, with the interval of the last (utterances drawn
    anew); the mean shift (above 0: later); shares of bounds within `WITHIN`; how many tokens they are over.

    Raises:
        DataError: no token of the references was heard.
    """
    by_utterance = [_errors(tokens, heard[key]) if key in heard else [] for key, tokens in references.items()]
    bounds = np.array([pair for errors in by_utterance for pair in errors])  # (tokens, 2)
    missing = [key for key in references if key not in heard]
    total = sum(map(len, references.values()))
    if not len(bounds):
        raise DataError(f"none of the {total} tokens of the references was heard: there is no error of times")
    sums = [(float(np.abs(errors).sum()), 2 * len(errors)) for errors in by_utterance if errors]
    return {
        "utterances": len(references),
        "missing": missing,
        "surplus": [key for key in heard if key not in references],
        "tokens": total,
        "n": len(bounds),
        "start": float(np.abs(bounds[:, 0]).mean()),
        "end": float(np.abs(bounds[:, 1]).mean()),
        "value": float(np.abs(bounds).mean()),
        "interval": list(bootstrap_interval(sums)),
        "shift": float(bounds.mean()),
        "within": {f"{limit:g}": float((np.abs(bounds) <= limit + 1e-9).mean()) for limit in WITHIN},
    }


__all__ = ["Timed", "read_times", "score_times"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Transcripts against references, as files: who said what by utterance, error rates in three units, alignments.

| rate  | a unit is                                                                         | as               |
|-------|-----------------------------------------------------------------------------------|------------------|
| cer   | a character, spaces too                                                           | jiwer            |
| wer   | what white space separates                                                        | jiwer            |
| mixed | a Chinese character (any letter without case), or a run of ASCII up to a space in | WeNet's          |
|       | upper case, without `<tags>` and `! , ?` and Chinese punctuation around it        | `compute-wer.py` |
|       |                                                                                   | `--char=1`       |

Where several alignments have as few errors, jiwer and WeNet may call them other names (a substitution twice, or a
deletion and an insertion); each unit counts as its own reference does.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from xllm.training.data.corpus_layouts import keyed_lines
from xllm.training.data.media_rows import DataError
from xllm.training.data.row_files import is_data_file, read_rows
from xllm.training.data.row_forms import FILE_COLUMNS
from xllm.training.evaluation.metrics import ErrorRate, cer, wer


KEYS = ("utt", "utt_id", "utterance_id", "uttid", "id", "key", "where", *FILE_COLUMNS)
REFERENCES = ("reference", "ref", "text", "sentence", "transcript", "transcription", "label", "txt")
HYPOTHESES = ("answer", "hypothesis", "hyp", "prediction", "pred_text", "pred", *REFERENCES[2:])
_PUNCTUATION = frozenset("!,?、。！，；？：「」︰『』《》")
_TAG = re.compile(r"<[^>]*(>|\Z)")
_RUN = re.compile(r"<[^> \t\r\n\x80-\U0010ffff]*>?|.[^ \t\r\n\x80-\U0010ffff]*", re.DOTALL)


def read_transcripts(path: str | Path, columns: Sequence[str] = REFERENCES) -> dict[str, str]:
    """Texts by utterance: of Kaldi's `text` (a key and its text per line), or of a table.

    Args:
        columns: names of the column with the text; the first that a table has is read. So for the key, by `KEYS`.

    Raises:
        DataError: no such file, a row without key or text, or a key that comes twice.
    """
    path, found = Path(path).expanduser(), {}
    if not is_data_file(path):
        return {key: text for _, key, text in keyed_lines(path)}
    for where, row in read_rows(path):
        if isinstance(row, DataError):
            raise row
        key, text = (next((name for name in names if name in row), None) for names in (KEYS, columns))
        if key is None or text is None:
            lacks, names = ("key", KEYS) if key is None else ("text", columns)
            has = f"it has {', '.join(row)}"
            raise DataError(f"{where}: no column of the {lacks}; name it one of {', '.join(names)} ({has})")
        if not isinstance(row[text], str):
            raise DataError(f"{where}: {text} is {row[text]!r:.40}, expected a text")
        if str(row[key]) in found:
            raise DataError(f"{where}: a second row of {row[key]}")
        found[str(row[key])] = row[text]
    return found


def mixed_units(text: str) -> list[str]:
    """The units of WeNet's `compute-wer.py --char=1`: 你好 hello world -> 你, 好, HELLO, WORLD."""
    units, place = [], 0
    while place < len(text):
        category = unicodedata.category(text[place])
        if text[place] in _PUNCTUATION or text[place] in " \t\r\n" or category in ("Zs", "Cn"):
            place += 1
            continue
        found = _RUN.match(text, place) if category != "Lo" else None
        run = found[0] if found else text[place]
        place += len(run)
        units.append(_TAG.sub("", run.upper()))
    return [unit for unit in units if unit]


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of units with the fewest errors, "" where one side has none; of equally good ones WeNet's: read from the
    end, a deletion before an insertion before a pair."""
    rows, columns = len(reference) + 1, len(hypothesis) + 1
    ids = {unit: number for number, unit in enumerate({*reference, *hypothesis})}
    heard = np.array([ids[unit] for unit in hypothesis], np.int64)
    steps = np.arange(columns, dtype=np.int32)
    distance = np.empty((rows, columns), np.int32)
    distance[0] = steps
    for row, unit in enumerate(reference, 1):
        above = distance[row - 1]
        best = above + 1
        np.minimum(best[1:], above[:-1] + (heard != ids[unit]), out=best[1:])
        distance[row] = np.minimum.accumulate(best - steps) + steps  # insertions: a step to the right costs 1
    pairs, row, column = [], rows - 1, columns - 1
    while row or column:
        here = distance[row, column]
        if row and here == distance[row - 1, column] + 1:
            row -= 1
            pairs.append((reference[row], ""))
        elif column and here == distance[row, column - 1] + 1:
            column -= 1
            pairs.append(("", hypothesis[column]))
        else:
            row, column = row - 1, column - 1
            pairs.append((reference[row], hypothesis[column]))
    return pairs[::-1]


def count_errors(pairs: Sequence[tuple[str, str]]) -> ErrorRate:
    """Errors of an alignment; the rate is 0 where the reference is empty (as WeNet prints it)."""
    deletions, insertions = sum(not b for _, b in pairs), sum(not a for a, _ in pairs)
    substitutions = sum(bool(a and b and a != b) for a, b in pairs)
    reference = len(pairs) - insertions
    errors = substitutions + deletions + insertions
    return ErrorRate(errors / reference if reference else 0.0, substitutions, deletions, insertions, reference)


@dataclass
class Scored:
    """Scores of a pair of files.

    Args:
        rates: "cer", "wer" and "mixed".
        alignments: utterance -> pairs of mixed units.
        missing, surplus: utterances without a hypothesis, and hypotheses of no utterance.
        empty: utterances whose reference is empty.
    """

    rates: dict[str, ErrorRate]
    alignments: dict[str, list[tuple[str, str]]]
    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        """For JSON."""
        lists = {name: getattr(self, name) for name in ("missing", "surplus", "empty")}
        return {"n": len(self.alignments), **{unit: asdict(rate) for unit, rate in self.rates.items()}, **lists}


def score_transcripts(
    references: dict[str, str],
    hypotheses: dict[str, str],
    normalize: Callable[[str], str] = lambda text: text,
    missing: str = "empty",
) -> Scored:
    """Error rates of a corpus: all errors over all units of the references.

    Args:
        normalize: of both sides, before anything is counted.
        missing: an utterance without a hypothesis counts as an "empty" one, or is left out ("skip", as WeNet does).
            Both are listed.

    Raises:
        DataError: no utterance is in both, or no reference holds anything.
    """
    if not references:
        raise DataError("there are no references: their file holds no utterance")
    absent = [key for key in references if key not in hypotheses]
    if len(absent) == len(references):
        raise DataError(
            f"no utterance has a hypothesis: the references are called {_first(references)}, the hypotheses "
            f"{_first(hypotheses)}"
        )
    keys = [key for key in references if missing == "empty" or key in hypotheses]
    expected = [normalize(references[key]) for key in keys]
    heard = [normalize(hypotheses.get(key, "")) for key in keys]
    if not any(text.strip() for text in expected):
        raise DataError(f"all {len(keys)} references are empty: there is no error rate")
    alignments = {key: align(mixed_units(a), mixed_units(b)) for key, a, b in zip(keys, expected, heard)}
    rates = {"cer": cer(expected, heard), "wer": wer(expected, heard)}
    rates["mixed"] = count_errors([pair for pairs in alignments.values() for pair in pairs])
    return Scored(
        rates=rates,
        alignments=alignments,
        missing=absent,
        surplus=[key for key in hypotheses if key not in references],
        empty=[key for key, text in zip(keys, expected) if not text.strip()],
    )


def _first(texts: dict[str, str]) -> str:
    return ", ".join([*list(texts)[:3], *["..."][: len(texts) > 3]]) or "nothing"


def report_lines(scored: Scored) -> Iterator[str]:
    """The lines of `cer.txt`: each utterance's errors and aligned units, then all, laid out as WeNet's script does."""
    for key, pairs in scored.alignments.items():
        yield f"\nutt: {key}"
        yield _summary("WER:", count_errors(pairs))
        widths = [max(_width(a), _width(b)) for a, b in pairs]
        for name, side in zip(("lab", "rec"), zip(*pairs) if pairs else ((), ())):
            yield f"{name}: " + "".join(unit + " " * (width - _width(unit) + 1) for unit, width in zip(side, widths))
    yield "\n" + "=" * 75 + "\n"
    yield _summary("Overall ->", scored.rates["mixed"])
    yield "\n" + "=" * 75


def _summary(head: str, rate: ErrorRate) -> str:
    correct = rate.reference - rate.substitutions - rate.deletions
    counts = f"S={rate.substitutions} D={rate.deletions} I={rate.insertions}"
    return f"{head} {100 * rate.value:4.2f} % N={rate.reference} C={correct} {counts}"


def _width(text: str) -> int:
    return sum(1 + (unicodedata.east_asian_width(character) in "AFW") for character in text)


__all__ = ["Scored", "align", "mixed_units", "read_transcripts", "report_lines", "score_transcripts"]

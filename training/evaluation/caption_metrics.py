# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Metrics of answers that have several references: captions, and answers of several people to one question.

| metric | of                               | by                                                                      |
|--------|----------------------------------|-------------------------------------------------------------------------|
| bleu   | BLEU-4 of the corpus, 0 to 1     | sacrebleu                                                               |
| cider  | CIDEr, mean over rows, 0 to 10   | pycocoevalcap; how frequent a word is, the references say               |
| vqa    | VQAv2's accuracy, mean over rows | for each reference left out: a third per other that is equal, 1 at most |

Words are those of Whisper's basic normaliser (lower case, no punctuation), a Chinese character each; COCO's scripts
tokenize with Stanford's, in Java. For vqa articles are left out and numbers up to ten are digits.
"""

from collections.abc import Callable, Sequence

from transformers.models.whisper.english_normalizer import BasicTextNormalizer

from xllm.training.evaluation.transcripts import mixed_units


_NUMBERS = {word: str(number) for number, word in enumerate(
    ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
)}  # fmt: skip
_ARTICLES = frozenset(("a", "an", "the"))


def words_of(text: str) -> list[str]:
    """The words of a caption: "Two dogs, 两只狗" -> two, dogs, 两, 只, 狗."""
    return [unit.lower() for unit in mixed_units(BasicTextNormalizer()(text))]


def bleu(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict:
    """BLEU-4 over the corpus; rows may have different numbers of references."""
    from sacrebleu.metrics import BLEU

    most = max(map(len, references))
    written = [[" ".join(words_of(text)) for text in texts] + [None] * (most - len(texts)) for texts in references]
    found = BLEU(tokenize="none").corpus_score([" ".join(words_of(text)) for text in answers], list(zip(*written)))
    return {"value": found.score / 100}


def cider(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict:
    """CIDEr. Of one row it is 0: words that are in all references of the corpus weigh nothing."""
    from pycocoevalcap.cider.cider import Cider

    expected = {number: [" ".join(words_of(text)) for text in texts] for number, texts in enumerate(references)}
    given = {number: [" ".join(words_of(text))] for number, text in enumerate(answers)}
    value, scores = Cider().compute_score(expected, given)
    return {"value": float(value), "rows": [(float(score), 1) for score in scores]}


def vqa(references: Sequence[Sequence[str]], answers: Sequence[str]) -> dict:
    """VQAv2's accuracy; of a single reference, 1 where it is equal."""
    rows = []
    for texts, answer in zip(references, answers, strict=True):
        equal = [_short(text) == _short(answer) for text in texts]
        others = [min(1.0, (sum(equal) - one) / 3) for one in equal] if len(equal) > 1 else [float(equal[0])]
        rows.append((sum(others) / len(others), 1))
    return {"value": sum(score for score, _ in rows) / len(rows), "rows": rows}


def _short(text: str) -> list[str]:
    return [_NUMBERS.get(word, word) for word in words_of(text) if word not in _ARTICLES]


# By name: the references of each row, and answers, to figures as in `metrics.METRICS`.
CAPTION_METRICS: dict[str, Callable[[Sequence[Sequence[str]], Sequence[str]], dict]] = {
    "bleu": bleu,
    "cider": cider,
    "vqa": vqa,
}


__all__ = ["CAPTION_METRICS", "bleu", "cider", "vqa", "words_of"]

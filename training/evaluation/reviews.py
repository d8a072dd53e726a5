# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Reviews of a judge that compares two assistants, as scores (paper section 4.1: 84.5 % of GPT-4).

A review should begin with a line of two scores; some begin with prose. What is then counted is a rule:

| rule        | a review whose first line is not two numbers                               | the paper's row      |
|-------------|----------------------------------------------------------------------------|----------------------|
| authors     | counts as the scores (-1, -1), which their parser gives                    | X-LLM                |
| authors_1_9 | counts as (1, 9), by lines that are commented out in their script          | w/ 4M, w/ 4M no init |
| parsed      | is read: "the scores for Assistant 1 and Assistant 2 are 3 and 8",         |                      |
|             | "Assistant 1 - 2 out of 10", "Scores: 8 9", ...; left out where no two     |                      |
|             | scores are found, or several that differ                                   |                      |
| dropped     | is left out                                                                |                      |

The relative score is 100 * (sum of the scores of Assistant 1) / (sum of those of Assistant 2); each says over how many
reviews it is.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from xllm.training.data.media_rows import DataError
from xllm.training.data.row_files import read_rows


Scores = tuple[float, float]
_N = r"(10(?:\.0+)?|[1-9](?:\.\d+)?)(?![.\d]*\d)(?:\s*(?:/|out of)\s*10\b)?"
_TWO = rf"{_N}\s*(?:and|to|,|;|/|vs\.?|\s)\s*{_N}"
_FIRST_LINE = re.compile(rf"\W*{_TWO}\W*")
_PAIR = re.compile(
    rf"scores? (?:for|of) (?:the )?(?:two )?assistants? 1 and (?:assistant )?2 (?:are|is|:)\W*{_TWO}", re.I
)
_SCORES_LINE = re.compile(rf"^\W*(?:\w+ )?scores?\W+{_TWO}\W*$", re.I | re.M)
_VERB = r"(?:'s|is|as|gets|receives|scores|deserves|earns|with|an?|the|overall|scores?|rating|of|be|to)"
_OF_EACH = [re.compile(rf"assistant {n}(?:\s*{_VERB}\b)*\s*[:=\u2013-]*\s*{_N}", re.I) for n in (1, 2)]


@dataclass(frozen=True)
class Review:
    """One review: where it stands, which kind of question it is about, what the judge wrote, and the scores of
    Assistants 1 and 2 that stand beside it, if any do."""

    where: str
    category: str | None
    text: str
    stored: Scores | None = None


def read_reviews(path: str | Path) -> list[Review]:
    """The reviews of a JSON list or JSON lines: the text in `review` or `content`, the kind of question in `category`,
    stored scores in `tuple` (the authors', LLaVA's) or in two columns that begin with "score_", in this order.

    Raises:
        DataError: no such file, or a row that is no review; the message names it.
    """
    reviews = []
    for where, row in read_rows(Path(path).expanduser()):
        if isinstance(row, DataError):
            raise row
        text = next((row[name] for name in ("review", "content", "text") if name in row), None)
        if not isinstance(text, str):
            raise DataError(
                f"{where}: no review: a text in the column `review` or `content` (it has {', '.join(row)})"
            )
        stored = row.get("tuple", [row[name] for name in row if name.startswith("score_")] or None)
        if stored is not None and (len(stored) != 2 or not all(isinstance(score, int | float) for score in stored)):
            raise DataError(f"{where}: the stored scores are {stored!r:.60}, expected two numbers")
        reviews.append(Review(where, row.get("category"), text, None if stored is None else tuple(stored)))
    if not reviews:
        raise DataError(f"{path}: holds no review")
    return reviews


def authors_scores(review: Review) -> Scores | None:
    """What the authors' `parse_score` gives: the stored scores, or those of the first line, where commas are spaces
    and one blank more is too many."""
    if review.stored is not None:
        return None if -1 in review.stored else review.stored
    try:
        first, second = map(float, review.text.split("\n")[0].replace(",", " ").split(" "))
    except ValueError:
        return None
    return first, second


def parse_scores(text: str) -> Scores | None:
    """Two scores from 1 to 10 by the first of these that is there: a first line of two numbers; "the scores for
    Assistant 1 and Assistant 2 are A and B"; a line "Scores: A B"; "Assistant 1 ... A" and "Assistant 2 ... B", where
    each has one value only."""
    found = _FIRST_LINE.fullmatch(text.strip().split("\n")[0])
    for pattern in (_PAIR, _SCORES_LINE):
        found = found or pattern.search(text)
    if found:
        return float(found[1]), float(found[2])
    first, second = ({float(value) for value in pattern.findall(text)} for pattern in _OF_EACH)
    return (first.pop(), second.pop()) if len(first) == len(second) == 1 else None


def _parsed(review: Review) -> Scores | None:
    return parse_scores(review.text)


# By name: the scores that a review counts with; `None`: it is left out.
RULES: dict[str, Callable[[Review], Scores | None]] = {
    "authors": lambda review: authors_scores(review) or (-1.0, -1.0),
    "authors_1_9": lambda review: authors_scores(review) or (1.0, 9.0),
    "parsed": _parsed,
    "dropped": authors_scores,
}


def relative_scores(reviews: list[Review], rule: str) -> dict:
    """Relative scores in percent by category, and of `all`; `n` reviews counted, and the places of those left out.

    Raises:
        DataError: Assistant 2 has no score above 0 in a category.
    """
    counted = [(review, scores) for review in reviews if (scores := RULES[rule](review)) is not None]
    out: dict = {"n": len(counted), "left_out": [review.where for review in reviews if RULES[rule](review) is None]}
    for category in [*dict.fromkeys(review.category for review in reviews if review.category), "all"]:
        pairs = [scores for review, scores in counted if category in (review.category, "all")]
        first, second = (sum(side) for side in zip(*pairs)) if pairs else (0.0, 0.0)
        if second <= 0:
            raise DataError(
                f"category {category}: the scores of Assistant 2 add up to {second:g}: nothing to relate to"
            )
        out[category] = 100 * first / second
    return out


def score_reviews(reviews: list[Review]) -> Mapping:
    """`relative_scores` by every rule, and how many first lines are not two numbers."""
    unparsed = [review.where for review in reviews if authors_scores(review) is None]
    rules = {rule: relative_scores(reviews, rule) for rule in RULES}
    return {"n": len(reviews), "unparsed": len(unparsed), "unparsed_at": unparsed, "rules": rules}


__all__ = ["RULES", "Review", "parse_scores", "read_reviews", "relative_scores", "score_reviews"]

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
reviews it is. A judge prefers a place as well as an answer: of reviews in both orders, each is what it says of the
model and of the reference, whichever it calls Assistant 1, and how much a place is worth is told.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from xllm.training.data.media_rows import DataError
from xllm.training.data.row_files import read_rows
from xllm.training.evaluation.intervals import bootstrap_interval


Scores = tuple[float, float]
ORDERS = ("given", "swapped")  # the model is Assistant 1, or Assistant 2
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
    """One review: where it stands, which kind of question it is about, what the judge wrote, the scores of Assistants
    1 and 2 that stand beside it, if any do; whether the model is Assistant 2 in it, and the question's id."""

    where: str
    category: str | None
    text: str
    stored: Scores | None = None
    is_swapped: bool = False
    question: str | None = None


def read_reviews(path: str | Path) -> list[Review]:
    """The reviews of a JSON list or JSON lines: the text in `review` or `content`, the kind of question in `category`,
    stored scores in `tuple` (the authors', LLaVA's) or in two columns that begin with "score_", in this order; the
    order of the answers in `order` ("swapped": Assistant 2 is the model). Rows of `xllm judge` that were not answered
    are none.

    Raises:
        DataError: no such file, or a row that is no review; the message names it.
    """
    reviews = []
    for where, row in read_rows(Path(path).expanduser()):
        if isinstance(row, DataError):
            raise row
        if "skipped" in row:
            continue
        text = next((row[name] for name in ("review", "content", "text") if name in row), None)
        if not isinstance(text, str):
            raise DataError(
                f"{where}: no review: a text in the column `review` or `content` (it has {', '.join(row)})"
            )
        stored = row.get("tuple", [row[name] for name in row if name.startswith("score_")] or None)
        if stored is not None and (len(stored) != 2 or not all(isinstance(score, int | float) for score in stored)):
            raise DataError(f"{where}: the stored scores are {stored!r:.60}, expected two numbers")
        question = None if row.get("question_id") is None else str(row["question_id"])
        scores = None if stored is None else tuple(stored)
        reviews.append(Review(where, row.get("category"), text, scores, row.get("order") == ORDERS[1], question))
    if not reviews:
        raise DataError(f"{path}: holds no review")
    return reviews


def authors_scores(review: Review) -> Scores | None:
    """What the authors' `parse_score` gives: the stored scores, or those of the first line, where commas are spaces
    and one blank more is too many."""
    if review.stored is not None:
        first, second = review.stored
    else:
        try:
            first, second = map(float, review.text.split("\n")[0].replace(",", " ").split(" "))
        except ValueError:
            return None
    is_score = math.isfinite(first) and math.isfinite(second) and (review.stored is None or -1 not in review.stored)
    return (first, second) if is_score else None


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


def _of_model(review: Review, scores: Scores | None) -> Scores | None:
    return scores[::-1] if scores is not None and review.is_swapped else scores


# By name: the scores of model and reference that a review counts with; `None`: it is left out.
RULES: dict[str, Callable[[Review], Scores | None]] = {
    "authors": lambda review: _of_model(review, authors_scores(review)) or (-1.0, -1.0),
    "authors_1_9": lambda review: _of_model(review, authors_scores(review)) or (1.0, 9.0),
    "parsed": lambda review: _of_model(review, parse_scores(review.text)),
    "dropped": lambda review: _of_model(review, authors_scores(review)),
}


def relative_scores(reviews: list[Review], rule: str) -> dict:
    """Relative scores in percent by category, and of `all`; `None` where the reference has no score above 0. `n`
    reviews counted, `n_of` each category, and the places of those left out."""
    counted = [(review, scores) for review in reviews if (scores := RULES[rule](review)) is not None]
    left_out = [review.where for review in reviews if RULES[rule](review) is None]
    out: dict = {"n": len(counted), "n_of": {}, "left_out": left_out}
    for category in [*dict.fromkeys(review.category for review in reviews if review.category), "all"]:
        pairs = [scores for review, scores in counted if category in (review.category, "all")]
        first, second = (sum(side) for side in zip(*pairs)) if pairs else (0.0, 0.0)
        out[category], out["n_of"][category] = 100 * first / second if second > 0 else None, len(pairs)
    return out


def _interval(reviews: list[Review], rule: str) -> list[float] | None:
    """95 % of the relative scores of as many questions drawn anew; the orders of a question stay together."""
    sums: dict[str, list[float]] = {}
    for review in reviews:
        if (scores := RULES[rule](review)) is not None:
            row = sums.setdefault(review.question or review.where, [0.0, 0.0])
            row[:] = row[0] + scores[0], row[1] + scores[1]
    pairs = [(first, second) for first, second in sums.values()]
    return [100 * bound for bound in bootstrap_interval(pairs)] if pairs else None


def position_bias(reviews: list[Review]) -> dict | None:
    """Of the questions with a review in each order, scores read from both: by how much the answer shown first is
    scored higher on average, the same answers being shown first and second, and how often the judge prefers another
    answer once they are swapped. `None`: there is no such question."""
    parsed: dict[str, dict[bool, Scores]] = {}
    for review in reviews:
        if review.question is not None and (scores := parse_scores(review.text)) is not None:
            parsed.setdefault(review.question, {})[review.is_swapped] = scores
    pairs = [found for found in parsed.values() if len(found) == 2]
    if not pairs:
        return None
    more = [(scores[0] - scores[1]) / 2 for found in pairs for scores in found.values()]
    changed = sum(_preferred(found[False]) != -_preferred(found[True]) for found in pairs)
    return {"n": len(pairs), "first_is_higher_by": sum(more) / len(pairs), "preference_changes": changed / len(pairs)}


def _preferred(scores: Scores) -> int:
    return (scores[0] > scores[1]) - (scores[0] < scores[1])


def check_rule(rule: str) -> None:
    """A `ValueError` for what is none of `RULES`."""
    if rule not in RULES:
        raise ValueError(f"--rule is {rule!r}; choose one of {', '.join(RULES)}")


def score_reviews(reviews: list[Review]) -> dict:
    """`relative_scores` by every rule with their intervals, and how many first lines are not two numbers; of reviews
    in both orders those of each, and the `position_bias`."""
    unparsed = [review.where for review in reviews if authors_scores(review) is None]
    rules = {rule: relative_scores(reviews, rule) | {"interval": _interval(reviews, rule)} for rule in RULES}
    found: dict = {"n": len(reviews), "unparsed": len(unparsed), "unparsed_at": unparsed, "rules": rules}
    if (bias := position_bias(reviews)) is not None:
        found["orders"] = {}
        for order in ORDERS:
            side = [review for review in reviews if review.is_swapped == (order == ORDERS[1])]
            found["orders"][order] = {rule: relative_scores(side, rule)["all"] for rule in RULES}
        found["position_bias"] = bias
    return found


def headline(found: dict, rule: str) -> dict:
    """Of `score_reviews`: `{"rule", "value", "interval"}`.

    Raises:
        DataError: there is no relative score by this rule.
    """
    row = found["rules"][rule]
    if row["all"] is None:
        raise DataError(
            f"no relative score by the rule {rule!r}: of the {row['n']} reviews that it counts ({found['n']} in all) "
            "the scores of the reference do not add up to more than 0"
        )
    return {"rule": rule, "value": row["all"], "interval": row["interval"]}


def _rows(places: list[str]) -> str:
    """Lines of a file, or items of its list."""
    return ", ".join(place.rpartition(":")[2].rpartition("/")[2] for place in places)


def summary_lines(found: dict, rule: str) -> list[str]:
    """What `score_reviews` found, for a terminal."""
    rules, first = found["rules"], headline(found, rule)
    columns = [name for name in rules[rule] if name not in ("n", "n_of", "left_out", "interval")]
    rows = [["rule", "n", *columns], ["", "", *(f"n={rules[rule]['n_of'][name]}" for name in columns)]]
    for name, row in rules.items():
        rows.append([name, str(row["n"]), *("-" if row[one] is None else f"{row[one]:.1f}" for one in columns)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths)) for row in rows]
    low, high = first["interval"]
    lines = [
        f"relative score {first['value']:.1f} % by the rule {rule!r}, n = {rules[rule]['n']} of {found['n']} reviews; "
        f"95 % of resampled questions between {low:.1f} and {high:.1f}"
    ]
    at = _rows(found["unparsed_at"])
    lines.append(f"{found['unparsed']} do not begin with two scores{f' (rows {at})' if at else ''}")
    if left_out := rules[rule]["left_out"]:
        lines.append(f"{len(left_out)} left out: the rule {rule!r} finds no scores there (rows {_rows(left_out)})")
    if bias := found.get("position_bias"):
        sides = (f"{found['orders'][order][rule]:.1f} %" if found["orders"][order][rule] else "-" for order in ORDERS)
        given, swapped = sides
        lines.append(
            f"shown first {given}, shown second {swapped}; whichever is first gets {bias['first_is_higher_by']:+.2f} "
            f"points more than the other, and in {bias['preference_changes']:.0%} of {bias['n']} pairs the judge "
            "prefers another answer once they are swapped"
        )
    return [*lines, "", *table]


__all__ = [
    "ORDERS",
    "RULES",
    "Review",
    "check_rule",
    "headline",
    "parse_scores",
    "position_bias",
    "read_reviews",
    "relative_scores",
    "score_reviews",
    "summary_lines",
]

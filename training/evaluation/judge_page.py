# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`report.html` of a judge: the figures by each rule, what was left out and why, the questions that went worst."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from xllm.training.evaluation.judging import NAME, ORDERS, Comparison
from xllm.training.evaluation.results import file_of
from xllm.training.evaluation.reviews import RULES, Review, summary_lines
from xllm.training.inspection.html_page import document, safe_text, table, write_page


def write_judge_report(
    folder: Path,
    result: Mapping,
    comparisons: list[Comparison],
    samples: list[dict],
    reviews: list[Review],
    shown: int,
) -> None:
    """Args:
    result: as the command prints it. samples: of `run_judge`. reviews: those of them that were given. shown: how many
        questions, beside those without a score.
    """
    title = f"{NAME}: {result['judge']}, relative score {result['value']:.1f} %"
    body = "".join(_body(title, result, comparisons, samples, reviews, shown))
    write_page(file_of(folder, NAME, "report.html"), document(title, body))


def _body(
    title: str, result: Mapping, comparisons: list[Comparison], samples: list[dict], reviews: list[Review], shown: int
) -> Iterator[str]:
    rule = result["rule"]
    first, second, *more = summary_lines(dict(result), rule)
    yield f"<h1>{safe_text(title)}</h1>" + "".join(f"<p>{safe_text(line)}</p>" for line in (first, second))
    yield "".join(f"<p>{safe_text(line)}</p>" for line in more[: more.index("")])
    rules = result["rules"]
    columns = [name for name in rules[rule] if name not in ("n", "n_of", "left_out", "interval")]
    rows = [[name, row["n"], *("-" if row[one] is None else f"{row[one]:.1f}" for one in columns)]
            for name, row in rules.items()]  # fmt: skip
    yield table(("rule", "n", *columns), [["", "", *(f"n={rules[rule]['n_of'][one]}" for one in columns)], *rows])
    if left := [(what.replace("_", " "), ", ".join(result[what])) for what in result["left"]]:
        yield "<h2>Not compared</h2>" + table(("", ""), left)
    if missing := [sample for sample in samples if "skipped" in sample]:
        yield "<h2>Reviews that are missing</h2>"
        yield table(
            ("question", "order", "reason"), [(one["question_id"], one["order"], one["skipped"]) for one in missing]
        )
    given: dict[str, dict[str, Review]] = {}
    for review in reviews:
        given.setdefault(str(review.question), {})[ORDERS[review.is_swapped]] = review
    gaps = {one.id: _gap(given.get(one.id, {}), rule) for one in comparisons}
    without = [one for one in comparisons if gaps[one.id] is None]
    order = sorted((gap, place) for place, one in enumerate(comparisons) if (gap := gaps[one.id]) is not None)
    yield f"<h2>The {min(shown, len(order))} questions that went worst</h2>"
    yield from (_question(comparisons[at], given[comparisons[at].id], rule) for _, at in order[:shown])
    if without:
        yield "<h2>Questions without a score</h2>"
        yield from (_question(one, given.get(one.id, {}), rule) for one in without)


def _gap(given: Mapping[str, Review], rule: str) -> float | None:
    """By how much the model's scores lie above the reference's, on average; `None`: there is none by the rule."""
    scores = [found for review in given.values() if (found := RULES[rule](review)) is not None]
    return sum(first - second for first, second in scores) / len(scores) if scores else None


def _question(one: Comparison, given: Mapping[str, Review], rule: str) -> str:
    rows = [("question", one.question), ("answer", one.answers[0]), ("reference", one.answers[1])]
    rows += [("told of the medium", one.context)] if one.context is not None else []
    for order, review in given.items():
        scores = RULES[rule](review)
        said = "no scores" if scores is None else "answer {:g}, reference {:g}".format(*scores)
        rows.append((f"shown {'first' if order == ORDERS[0] else 'second'}: {said}", review.text))
    kind = f", {one.category}" if one.category else ""
    return f"<h3>{safe_text(f'{one.id}{kind}: {one.where}')}</h3>{table(('', ''), rows)}"


__all__ = ["write_judge_report"]

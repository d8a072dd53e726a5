# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A judge compares two answers to each question (paper section 4.1; LLaVA's protocol of 90 questions).

The judge sees no picture but, where there is a context, captions and boxes of it, then the question, both answers, and
what it is to do; its first line should be two scores. Deviations from the authors' scripts: each pair is shown in both
orders, which tells how much a place is worth; what the judge wrote is kept, and `reviews` reads it by stated rules.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xllm.processing.media_kinds import IMAGE
from xllm.training.data.media_rows import DataError
from xllm.training.data.row_files import read_rows
from xllm.training.evaluation.answer_log import AnswerLog
from xllm.training.evaluation.endpoint import EndpointError, Reply, ask_all
from xllm.training.evaluation.reviews import ORDERS
from xllm.training.progress import ProgressLine


NAME = "judge"
# LLaVA's, whose scripts the authors used (Apache-2.0).
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
REQUEST = {"temperature": 0.2, "max_tokens": 1024}
_WANTED = (
    "We would like to request your feedback on the performance of two AI assistants in response to the user question "
    "displayed above."
)
_SEEN = (
    " The user asks the question on observing an image. For your reference, the visual content in the image is "
    "represented with five descriptive sentences describing the same image and the bounding box coordinates of each "
    "object in the scene. These coordinates are in the form of bounding boxes, represented as (x1, y1, x2, y2) with "
    "floating numbers ranging from 0 to 1. These values correspond to the top left x, top left y, bottom right x, and "
    "bottom right y. "
)
_HOW = (
    "\nPlease rate the helpfulness, relevance, accuracy, level of details of their responses. Each assistant receives "
    "an overall score on a scale of 1 to 10, where a higher score indicates better overall performance.\nPlease first "
    "output a single line containing only two values indicating the scores for Assistant 1 and 2, respectively. The "
    "two scores are separated by a space.\nIn the subsequent line, please provide a comprehensive explanation of your "
    "evaluation, avoiding any potential bias and ensuring that the order in which the responses were presented does "
    "not affect your judgment."
)
_TEXTS = {"question": ("text_en", "text", "question"), "answer": ("text_en", "text", "answer")}
_IDS = ("question_id", "id")


@dataclass(frozen=True)
class Comparison:
    """A question with two answers: the model's, and that of the reference it is held against."""

    id: str
    where: str
    category: str | None
    question: str
    context: str | None
    answers: tuple[str, str]

    def prompt(self, order: str, rules: Mapping[str, Mapping[str, str]] | None = None) -> str:
        """What the judge reads; `rules`: category (or "default") -> `prompt` and `role`, as in the authors' file."""
        first, second = self.answers if order == ORDERS[0] else self.answers[::-1]
        rule: Mapping[str, str] = {"prompt": _WANTED + (_SEEN if self.context is not None else "") + _HOW}
        if rules is not None:
            rule = rules.get(self.category or "default", rules.get("default", rule))
        role = rule.get("role", "Assistant")
        return "".join((
            "" if self.context is None else f"[Context]\n{self.context}\n\n",
            f"[Question]\n{self.question}\n\n",
            f"[{role} 1]\n{first}\n\n[End of {role} 1]\n\n[{role} 2]\n{second}\n\n[End of {role} 2]\n\n",
            f"[System]\n{rule['prompt']}\n\n",
        ))  # fmt: skip


# ---- files ----------------------------------------------------------------------------------------------------------


def _read(path: str | Path) -> list[tuple[str, dict]]:
    found = []
    for where, row in read_rows(Path(path).expanduser()):
        if isinstance(row, DataError):
            raise row
        found.append((where, row))
    if not found:
        raise DataError(f"{path}: holds no row")
    return found


def _table(path: str | Path) -> dict[str, tuple[str, dict]]:
    """Rows by id: a column `question_id` or `id`; else by `n`, the number in an evaluation's samples, or their own."""
    rows: dict[str, tuple[str, dict]] = {}
    for number, (where, row) in enumerate(_read(path)):
        key = str(next((row[name] for name in (*_IDS, "n") if name in row), number))
        if key in rows:
            raise DataError(f"{where}: {key} has a row already, at {rows[key][0]}: ids must differ")
        rows[key] = where, row
    return rows


def _text(where: str, row: Mapping, what: str, column: str | None) -> str:
    names = _TEXTS[what] if column is None else (column,)
    text = next((row[name] for name in names if name in row), None)
    if not isinstance(text, str):
        raise DataError(
            f"{where}: no {what}: a text in the column {' or '.join(names)} (it has {', '.join(row)}); "
            "--text-column names another"
        )
    return text


def read_comparisons(
    answers: str | Path,
    questions: str | Path | None = None,
    references: str | Path | None = None,
    contexts: str | Path | None = None,
    column: str | None = None,
) -> tuple[list[Comparison], dict[str, list[str]]]:
    """What is to be compared, in the order of the questions, and the ids of what is not: `unanswered` and
    `without_reference` questions (an empty one is none), `answers_of_no_question`, `references_of_no_question`. An
    empty answer is one, and is compared.

    Args:
        answers: of the model: a table of `question_id` and a text, or the samples of `xllm evaluate`, which hold
            questions and references themselves. questions: with `question_id`, `category`, `image`.
        contexts: `captions` and `instances` (`category`, `bbox`) by `image`. column: of the texts.

    Raises:
        DataError: a file or row that cannot be used; there is no pair.
    """
    given, asked = _table(answers), _table(questions or answers)
    if questions is not None and _has_ids(asked) and not _has_ids(given):  # samples number the rows of their file
        asked = {str(number): row for number, row in enumerate(asked.values())}
    held = None if references is None else _table(references)
    seen = None if contexts is None else {str(row.get(IMAGE.type)): (where, row) for where, row in _read(contexts)}
    comparisons: list[Comparison] = []
    left: dict[str, list[str]] = {"unanswered": [], "without_reference": []}
    for key, (where, row) in asked.items():
        if key not in given or "skipped" in given[key][1]:
            left["unanswered"].append(key)
            continue
        place, answered = given[key]
        if held is not None and key not in held:
            left["without_reference"].append(key)
            continue
        question = _text(where, row, "question", None if questions is None else column)
        if answered.get("question", question) != question:
            raise DataError(f"{place}: answers another question than {where}: {answered['question']!r:.60}")
        answer = _text(place, answered, "answer", column)
        reference = _own_reference(place, answered, row) if held is None else _text(*held[key], "answer", column)
        if not reference.strip():
            left["without_reference"].append(key)
            continue
        context = None if seen is None else _context(where, row, seen, contexts)
        comparisons.append(Comparison(key, where, row.get("category"), question, context, (answer, reference)))
    left["answers_of_no_question"] = [key for key in given if key not in asked]
    left["references_of_no_question"] = [key for key in held or () if key not in asked]
    if not comparisons:
        first = " and ".join(", ".join([*table][:3]) for table in (given, asked))
        raise DataError(f"{answers}: no answer has both a question and a reference; the first ids are {first}")
    return comparisons, {what: keys for what, keys in left.items() if keys}


def _has_ids(table: Mapping[str, tuple[str, dict]]) -> bool:
    return any(name in row for _, row in table.values() for name in _IDS)


def _own_reference(where: str, answered: Mapping, asked: Mapping) -> str:
    text = answered.get("reference", asked.get("reference"))
    if not isinstance(text, str):
        raise DataError(f"{where}: no reference: --reference names a file of answers to hold these against")
    return text


def _context(where: str, row: Mapping, seen: Mapping[str, tuple[str, dict]], path: Any) -> str:
    image = str(row.get(IMAGE.type))
    if image not in seen:
        raise DataError(f"{where}: its picture {image} is not in {path}")
    place, found = seen[image]
    try:
        boxes = [f"{one['category']}: {one['bbox']}" for one in found["instances"]]
        return "\n".join(found["captions"]) + "\n\n" + "\n".join(boxes)
    except (KeyError, TypeError) as error:
        raise DataError(f"{place}: expected captions, and instances with category and bbox") from error


def read_rules(path: str | Path) -> dict[str, dict[str, str]]:
    """The authors' file of prompts: category -> `{"role", "prompt"}`.

    Raises:
        DataError: it is no such file.
    """
    try:
        rules = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        if all(isinstance(rule["prompt"], str) for rule in rules.values()):
            return rules
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise DataError(f'{path}: expected {{"category": {{"prompt": "...", "role": "Assistant"}}, ...}}')


# ---- asking ---------------------------------------------------------------------------------------------------------


def prompts_of(
    comparisons: list[Comparison], orders: tuple[str, ...], rules: Mapping | None = None
) -> dict[int, tuple[Comparison, str, list[dict]]]:
    """By number, in any order of answers the same: the comparison, the order, the messages."""
    return {
        2 * place + ORDERS.index(order): (
            one, order,
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": one.prompt(order, rules)}],
        )
        for place, one in enumerate(comparisons)
        for order in orders
    }  # fmt: skip


def digest(comparisons: list[Comparison], rules: Mapping | None = None) -> str:
    """Of all that the judge may be shown."""
    texts = [one.prompt(ORDERS[0], rules) for one in comparisons]
    return hashlib.sha256(json.dumps([SYSTEM, *texts]).encode()).hexdigest()


def run_judge(
    ask: Callable[[list[dict]], Reply],
    asked: Mapping[int, tuple[Comparison, str, list[dict]]],
    log: AnswerLog,
    concurrency: int = 4,
    progress: bool = False,
) -> tuple[list[dict], int]:
    """Have the judge review what it has not yet, and write `samples_judge.jsonl`.

    Returns:
        its lines, `{"n", "where", "question_id", "category", "order", "review"}`, or `"skipped"` with the reason; and
        how many had been there.

    Raises:
        EndpointError: the judge answers nothing any more; what it has answered is kept.
    """
    found = len(log.answers)
    left = [number for number in asked if number not in log.answers]
    line = ProgressLine(NAME, "review", len(left)) if progress else None
    try:
        replies = ask_all(left, lambda number: ask(asked[number][2]), concurrency)
        for done, (number, reply) in enumerate(replies, 1):
            log.add([_sample(number, *asked[number][:2], reply)])
            if line is not None:
                line.update(done, is_last=done == len(left))
    except EndpointError as error:
        raise EndpointError(f"{error}; {len(log.answers)} reviews are kept, the same command goes on") from error
    samples = log.join()
    log.finish(samples)
    return samples, found


def _sample(number: int, one: Comparison, order: str, reply: Reply | EndpointError) -> dict:
    sample = {"n": number, "where": one.where, "question_id": one.id, "category": one.category, "order": order}
    if isinstance(reply, EndpointError):
        return {**sample, "skipped": str(reply)}
    return {**sample, "review": reply.text} | ({"is_cut": True} if reply.is_cut else {})


def local_judge(name_or_path: str, device: str | None, max_new_tokens: int) -> Callable[[list[dict]], Reply]:
    """A language model in this process as the judge, greedily.

    Raises:
        ValueError: it is none, or its tokenizer has no chat template.
    """
    from transformers import pipeline

    generate: Any = pipeline("text-generation", model=name_or_path, device=device)
    if not generate.tokenizer.chat_template:
        raise ValueError(f"--judge-model {name_or_path}: its tokenizer has no chat template, so it cannot be asked")

    def ask(messages: list[dict]) -> Reply:
        [found] = generate(messages, max_new_tokens=max_new_tokens, do_sample=False)
        return Reply(found["generated_text"][-1]["content"])

    return ask


def questions_of(samples: list[dict]) -> Iterator[str]:
    """The questions of which at least one order has no review."""
    yield from dict.fromkeys(str(sample["question_id"]) for sample in samples if "skipped" in sample)


__all__ = [
    "NAME",
    "ORDERS",
    "REQUEST",
    "Comparison",
    "digest",
    "local_judge",
    "prompts_of",
    "questions_of",
    "read_comparisons",
    "read_rules",
    "run_judge",
]

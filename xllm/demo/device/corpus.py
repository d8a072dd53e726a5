# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Text about phones, on which the language model is pretrained, and the same talk beside the states themselves."""

import json
import re
from pathlib import Path

import numpy as np

from xllm.assembly.tiny import WRAPPER_PIECES
from xllm.demo.corpus import TextSample, Turn, build_vocabulary
from xllm.demo.device import phrases
from xllm.demo.device.world import (
    DESCRIBE,
    STEP,
    Task,
    clock,
    describe,
    loosely,
    random_question,
    random_request,
    random_state,
    random_task,
    say,
    unheard,
)
from xllm.device.phone import APPS, RINGERS, STATUS
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer


# Of what is spoken: what is to be written down; what says a number or a time, all of which are to be heard often.
_WRITTEN, _NUMBERS = 0.15, 0.25
# Short words that a request can do without, and how often the language model reads one without them.
_SHORT = {"the", "my", "to", "at", "by", "for", "of", "i", "you", "me", "could", "now", "please", "percent"}
_OVERHEARD = 0.05
_DESCRIPTIONS = 0.1  # of the rows of stage 2; they have most of its words, and other questions need most of its care
MOST_NUMBER, LEAST_NUMBER = 160, -10
TESTS = ("status", "command", "refusal")  # questions, what can be done, what cannot


def random_text_sample(rng: np.random.Generator, spoken: float = 0.0) -> TextSample:
    """Something said about a phone that is described in words, often in any order, often no more than is needed.

    Args:
        spoken: share of the samples in which it is described too, as a voice says it, and nothing is asked in writing.
    """
    state = random_state(rng)
    task, kept = random_task(rng, state), None
    is_spoken = spoken > 0 and rng.random() < spoken
    if is_spoken:
        task = random_spoken(rng, state)
    if is_spoken and rng.random() < _WRITTEN:
        words = say(task.words).split()
        if rng.random() < 0.5:  # in no order, so that each word is read, and none guessed
            words = [words[place] for place in rng.permutation(len(words))]
        return (Turn((("speech", " ".join(words)),), phrases.WHAT_IS_SAID, " ".join(words)),)
    if rng.random() < 0.6:
        others = rng.permutation(list(STATUS["properties"]))[: int(rng.integers(1, 7))]
        kept = {*task.needs, *map(str, others)}
    described = describe(state, rng if rng.random() < 0.5 else None, kept)
    if is_spoken:
        heard = " ".join(word for word in say(task.words).split() if word not in _SHORT or rng.random() > _OVERHEARD)
        return (Turn((("status", described), ("speech", heard)), "", task.reply or described),)
    return (Turn((("status", described),), task.words, task.reply or described),)


def random_spoken(rng: np.random.Generator, state: dict) -> Task:
    """Anything that training speaks."""
    task = random_task(rng, state, 0.0)
    if rng.random() < _NUMBERS:
        while not set(re.findall(r"\d+", task.words)) - {str(STEP)}:
            task = random_request(rng, state, False)
    return task


def build_tokenizer(folder: Path, seed: int, spoken: bool = False) -> ChatGLMTokenizer:
    """The vocabulary of the corpus: numbers, words and the members of a command are one token each; so are, where
    requests are `spoken`, the words that a voice says."""
    rng = np.random.default_rng([seed, 3])
    samples = [random_text_sample(rng)[0] for _ in range(1500)]
    forms = [*phrases.QUESTIONS.values(), *phrases.REQUESTS.values()]
    wordings = [words for form in forms for words in form.train]
    wordings += [loosely(words, rng, 0.5) for words in wordings for _ in range(3)]
    said = [DESCRIBE, *wordings, *(turn.question for turn in samples)]
    said += [*phrases.VERBS, *phrases.OBJECTS, *(name for names in phrases.NAMES.values() for name in names)]
    voiced = [phrases.WHAT_IS_SAID, *phrases.TEENS, *phrases.TENS, "hundred percent o'clock"] if spoken else []
    said += voiced
    text = [
        *said,
        *(word for words in phrases.TITLES for word in words),
        *(turn.answer for turn in samples),
        *(turn.media[0][1] for turn in samples),
    ]
    found = {word for line in text for word in re.findall(r"[A-Za-z]+", line)}
    members = {word for turn in samples for word in re.findall(r'[{]?"[a-z_]+"[:]?', turn.answer)}
    words = sorted({form for word in found for form in (word, word.lower())} | members)
    words += ["o'clock"] if spoken else []
    words += [*map(str, range(LEAST_NUMBER, MOST_NUMBER + 1)), *APPS, *RINGERS, "%"]
    bare = sorted({line.split(" ")[0].rstrip(".?,") for line in said})
    minutes = sorted({clock({"hour": 0, "minute": 15 * part})[1:] for part in range(4)})
    wrappers = (*WRAPPER_PIECES, "<Status>", "</Status>")
    # Nothing but characters is learnt: a learnt "15" would lose to the given "1" and a "5".
    characters = len(set("".join(text)) - {" "}) + 3
    return build_vocabulary(folder, text, words, bare, [*minutes, "}", ",", ".", "?"], characters, wrappers)


def write_data(folder: Path, num_states: int, num_tests: int, seed: int, spoken: bool = False) -> Path:
    """Write states and what is said about them: `align_status.jsonl`, and of unseen ones `test_*.jsonl`.

    Args:
        spoken: the test's numbers are those that training never says (`unheard`).
    """
    (folder / "states").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 5])
    lines = []
    for count in range(num_states):
        state = random_state(rng)
        task = random_task(rng, state, _DESCRIPTIONS)
        lines.append(status_line(folder, f"train-{count:05d}", state, task))
    write_rows(folder / "align_status.jsonl", lines)
    tests: dict[str, list[dict]] = {name: [] for name in TESTS}
    rng = np.random.default_rng([seed, 6])
    while any(len(lines) < num_tests for lines in tests.values()):
        state = random_state(rng, held_out=True)
        task = (random_question if rng.random() < 0.4 else random_request)(rng, state, True)
        if spoken and False in unheard(task.words):
            while True not in unheard(task.words):
                task = random_request(rng, state, True)
        name = TESTS[1 if task.command else 2 if task.kind in ("impossible", "refused") else 0]
        if len(tests[name]) < num_tests:
            line = status_line(folder, f"test-{name}-{len(tests[name]):04d}", state, task)
            tests[name].append({**line, "kind": task.kind})
    for name, lines in tests.items():
        write_rows(folder / f"test_{name}.jsonl", lines)
    return folder


def status_line(folder: Path, name: str, state: dict, task: Task) -> dict:
    """A state in a file of its own, and the conversation about it."""
    path = f"states/{name}.json"
    (folder / path).write_text(json.dumps(state), encoding="utf-8")
    asked = {"type": "text", "text": task.words}
    return conversation([{"type": "status", "path": path}, asked], task.reply or describe(state))


def conversation(asked: list[dict], reply: str) -> dict:
    """One row: content parts, and the answer."""
    said = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
    return {"messages": [{"role": "user", "content": asked}, said]}


def write_rows(path: Path, lines: list[dict]) -> None:
    """Write a JSONL file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


__all__ = [
    "TESTS",
    "build_tokenizer",
    "conversation",
    "random_spoken",
    "random_text_sample",
    "write_data",
    "write_rows",
]

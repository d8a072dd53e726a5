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
    clock,
    describe,
    loosely,
    random_question,
    random_request,
    random_state,
    random_task,
)
from xllm.device.phone import APPS, RINGERS, STATUS
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer


_DESCRIPTIONS = 0.1  # of the rows of stage 2; they have most of its words, and other questions need most of its care
MOST_NUMBER, LEAST_NUMBER = 160, -10
TESTS = ("status", "command", "refusal")  # questions, what can be done, what cannot


def random_text_sample(rng: np.random.Generator) -> TextSample:
    """Something said about a phone that is described in words, often in any order, often no more than is needed."""
    state = random_state(rng)
    task, kept = random_task(rng, state), None
    if rng.random() < 0.6:
        others = rng.permutation(list(STATUS["properties"]))[: int(rng.integers(1, 7))]
        kept = {*task.needs, *map(str, others)}
    described = describe(state, rng if rng.random() < 0.5 else None, kept)
    return (Turn((("status", described),), task.words, task.reply or described),)


def build_tokenizer(folder: Path, seed: int) -> ChatGLMTokenizer:
    """The vocabulary of the corpus: numbers, words and the members of a command are one token each."""
    rng = np.random.default_rng([seed, 3])
    samples = [random_text_sample(rng)[0] for _ in range(1500)]
    forms = [*phrases.QUESTIONS.values(), *phrases.REQUESTS.values()]
    wordings = [words for form in forms for words in form.train]
    wordings += [loosely(words, rng, 0.5) for words in wordings for _ in range(3)]
    said = [DESCRIBE, *wordings, *(turn.question for turn in samples)]
    said += [*phrases.VERBS, *phrases.OBJECTS, *(name for names in phrases.NAMES.values() for name in names)]
    text = [
        *said,
        *(word for words in phrases.TITLES for word in words),
        *(turn.answer for turn in samples),
        *(turn.media[0][1] for turn in samples),
    ]
    found = {word for line in text for word in re.findall(r"[A-Za-z]+", line)}
    members = {word for turn in samples for word in re.findall(r'[{]?"[a-z_]+"[:]?', turn.answer)}
    words = sorted({form for word in found for form in (word, word.lower())} | members)
    words += [*map(str, range(LEAST_NUMBER, MOST_NUMBER + 1)), *APPS, *RINGERS, "%"]
    bare = sorted({line.split(" ")[0].rstrip(".?,") for line in said})
    minutes = sorted({clock({"hour": 0, "minute": 15 * part})[1:] for part in range(4)})
    wrappers = (*WRAPPER_PIECES, "<Status>", "</Status>")
    # Nothing but characters is learnt: a learnt "15" would lose to the given "1" and a "5".
    characters = len(set("".join(text)) - {" "}) + 3
    return build_vocabulary(folder, text, words, bare, [*minutes, "}", ",", ".", "?"], characters, wrappers)


def write_data(folder: Path, num_states: int, num_tests: int, seed: int) -> Path:
    """Write states and what is said about them: `align_status.jsonl`, and of unseen ones `test_*.jsonl`."""
    (folder / "states").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 5])
    lines = []
    for count in range(num_states):
        state = random_state(rng)
        task = random_task(rng, state, _DESCRIPTIONS)
        lines.append(_line(folder, f"train-{count:05d}", state, task))
    _write(folder / "align_status.jsonl", lines)
    tests: dict[str, list[dict]] = {name: [] for name in TESTS}
    rng = np.random.default_rng([seed, 6])
    while any(len(lines) < num_tests for lines in tests.values()):
        state = random_state(rng, held_out=True)
        task = (random_question if rng.random() < 0.4 else random_request)(rng, state, True)
        name = TESTS[1 if task.command else 2 if task.kind in ("impossible", "refused") else 0]
        if len(tests[name]) < num_tests:
            line = _line(folder, f"test-{name}-{len(tests[name]):04d}", state, task)
            tests[name].append({**line, "kind": task.kind})
    for name, lines in tests.items():
        _write(folder / f"test_{name}.jsonl", lines)
    return folder


def _line(folder: Path, name: str, state: dict, task) -> dict:
    """A state in a file of its own, and the conversation about it."""
    path = f"states/{name}.json"
    (folder / path).write_text(json.dumps(state), encoding="utf-8")
    asked = [{"type": "status", "path": path}, {"type": "text", "text": task.words}]
    reply = [{"type": "text", "text": task.reply or describe(state)}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]}


def _write(path: Path, lines: list[dict]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


__all__ = ["TESTS", "build_tokenizer", "random_text_sample", "write_data"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""BLEU, CIDEr and VQAv2's accuracy against counts of one's own; rows with several references by the command."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest

from xllm.cli import main
from xllm.training.evaluation.caption_metrics import bleu, cider, vqa, words_of


WORDS = ["red", "dog", "runs", "fast", "on", "grass", "two", "cats", "sleep", "here"]


def captions(seed, rows=12, references=3):
    rng = random.Random(seed)

    def text():
        return " ".join(rng.choices(WORDS, k=rng.randint(4, 9)))

    return [[text() for _ in range(rng.randint(1, references))] for _ in range(rows)], [text() for _ in range(rows)]


def grams(text, n):
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def test_words():
    assert words_of("Two dogs, 两只狗!") == ["two", "dogs", "两", "只", "狗"]


@pytest.mark.parametrize("seed", [0, 1])
def test_bleu_is_that_of_the_paper(seed):
    """Clipped n-gram precisions over the corpus, and the closest reference's length."""
    references, answers = captions(seed)
    answers[0] = references[0][0]  # some 4-grams
    right, total = [0] * 4, [0] * 4
    for texts, answer in zip(references, answers):
        for n in range(1, 5):
            most = Counter()
            for text in texts:
                most |= grams(text, n)
            right[n - 1] += sum((grams(answer, n) & most).values())
            total[n - 1] += sum(grams(answer, n).values())
    length = sum(len(answer.split()) for answer in answers)
    closest = sum(
        min((abs(len(text.split()) - len(answer.split())), len(text.split())) for text in texts)[1]
        for texts, answer in zip(references, answers)
    )
    brevity = min(1.0, math.exp(1 - closest / length))
    expected = brevity * math.exp(sum(math.log(a / b) for a, b in zip(right, total)) / 4)
    assert bleu(references, answers)["value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_cider_is_that_of_the_paper(seed):
    """Mean over n of 10 x the cosine of tf-idf vectors, clipped, with the penalty of lengths (CIDEr-D, sigma 6)."""
    references, answers = captions(seed)
    scores = np.zeros(len(answers))
    for n in range(1, 5):
        found_in = Counter(gram for texts in references for gram in set().union(*(grams(text, n) for text in texts)))

        def weighted(text, n=n, found_in=found_in):
            weight = {gram: math.log(len(references)) - math.log(max(1, found_in[gram])) for gram in grams(text, n)}
            return {gram: count * weight[gram] for gram, count in grams(text, n).items()}

        for row, (texts, answer) in enumerate(zip(references, answers)):
            given, of_row = weighted(answer), []
            for text in texts:
                other = weighted(text)
                product = sum(min(value, other[gram]) * other[gram] for gram, value in given.items() if gram in other)
                norms = math.sqrt(sum(v * v for v in given.values()) * sum(v * v for v in other.values()))
                penalty = math.exp(-((len(answer.split()) - len(text.split())) ** 2) / 72)
                of_row.append(penalty * product / norms if norms else 0.0)
            scores[row] += 10 * np.mean(of_row) / 4
    found = cider(references, answers)
    assert found["value"] == pytest.approx(scores.mean(), abs=1e-6)
    assert [score for score, _ in found["rows"]] == pytest.approx(scores.tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("answers", "given", "score"),
    [
        (["yes"] * 10, "Yes.", 1.0),
        (["two"] * 2 + ["three"] * 8, "2", 0.6),  # left out once of each of the two: 8 times 2/3, twice 1/3
        (["a dog"] * 3 + ["cat"] * 7, "the dog", 0.9),
        (["cat"] * 10, "dog", 0.0),
        (["cat"], "a cat", 1.0),
    ],
)
def test_vqa_leaves_each_answer_out_once(answers, given, score):
    assert vqa([answers], [given])["value"] == pytest.approx(score)


def test_rows_with_several_references(media, tiny_checkpoint, tmp_path, capsys, monkeypatch):
    rows = [
        {"image": "red.png", "captions": ["a red square", "red"]},
        {"image": "blue.png", "captions": ["blue", "sky"]},
    ]
    (media / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = iter(["red", "sky"])
    monkeypatch.setattr(
        "xllm.training.evaluation.answers.generated",
        lambda model, processor, rows, most: [{"text": next(said)} for _ in rows],
    )
    command = [
        "evaluate",
        str(tiny_checkpoint),
        "--task",
        "caption",
        "--data",
        str(media / "captions.jsonl"),
        "--json",
    ]
    command += ["--output", str(tmp_path / "out")]
    assert main([*command, "--metric", "vqa"]) == 0
    found = json.loads(capsys.readouterr().out)
    # each is one of two references: once left out, no other is equal; else one of three that are wanted
    assert (found["metric"], found["value"]) == ("vqa", pytest.approx(1 / 6))
    (first, _) = map(json.loads, (tmp_path / "out/samples_caption.jsonl").read_text().splitlines())
    assert first["references"] == ["a red square", "red"]
    assert main([*command, "--metric", "bleu"]) == 0  # the same answers
    assert json.loads(capsys.readouterr().out)["found"] == 2
    assert main([*command, "--metric", "meteor"]) == 1
    assert "metric is 'meteor'; choose one of cer, wer, accuracy, bleu, cider, vqa" in capsys.readouterr().err

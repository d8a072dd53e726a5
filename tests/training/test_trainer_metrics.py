# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`compute_metrics` of a plain Trainer, over rows with media and of several lengths."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction, Trainer, TrainingArguments

from xllm import AnswerMetrics, XLLMDataCollator, likeliest_tokens
from xllm.assembly.opening import load_checkpoint
from xllm.cli import main


class Letters:
    """A processor whose tokens are letters."""

    tokenizer = property(lambda self: self)

    def batch_decode(self, rows, skip_special_tokens):
        return ["".join(chr(97 + token) for token in row) for row in rows]


def measured(predicted, labels, rate=None):
    return AnswerMetrics(Letters(), rate)(EvalPrediction(np.array(predicted), np.array(labels)))


def test_a_token_is_foretold_by_the_place_before_it():
    none = -100
    labels = [[none, none, 1, 2, 3], [none, 4, 5, none, none], [none] * 5]
    predicted = [[9, 1, 2, 9, 9], [4, 5, 9, 9, 9], [7] * 5]  # of the first row, the last token is wrong
    found = measured(predicted, labels, "cer")
    assert found == {"token_accuracy": 4 / 5, "answer_accuracy": 1 / 2, "answers": 2, "cer": 1 / 5}


@pytest.mark.parametrize(
    ("predicted", "labels", "message"),
    [
        ([[[0.5, 0.5]]], [[1]], "preprocess_logits_for_metrics=likeliest_tokens"),
        ([[1, 2]], [[-100, -100]], "there is nothing to measure"),
    ],
)
def test_what_cannot_be_measured_is_an_error(predicted, labels, message):
    with pytest.raises(ValueError, match=message):
        measured(predicted, labels)


def test_an_unknown_rate_is_an_error():
    with pytest.raises(ValueError, match="rate is 'bleu'"):
        AnswerMetrics(Letters(), "bleu")


def test_a_trainer_says_what_each_row_says_alone(tmp_path):
    assert main(["init", str(tmp_path / "m"), "--preset", "tiny"]) == 0
    model, processor = load_checkpoint(str(tmp_path / "m"))
    rows = []
    for number, answer in enumerate(("one", "two three", "four", "什么", "six")):
        picture = torch.full((3, 32, 32), 40 * number, dtype=torch.uint8)
        question = [{"type": "image", "image": picture}] * (number % 2) + [{"type": "text", "text": "What?"}]
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"messages": turns})
    collate = XLLMDataCollator(processor)
    arguments = TrainingArguments(
        tmp_path / "out", per_device_eval_batch_size=2, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    measure = {"compute_metrics": AnswerMetrics(processor, "cer"), "preprocess_logits_for_metrics": likeliest_tokens}
    found = Trainer(model, arguments, data_collator=collate, eval_dataset=rows, **measure).evaluate()
    right = total = 0
    for row in rows:
        batch = collate([row])
        tokens, labels = model(**batch).logits.argmax(-1)[:, :-1], batch["labels"][:, 1:]
        total += int((labels != -100).sum())
        right += int((tokens == labels)[labels != -100].sum())
    assert found["eval_token_accuracy"] == pytest.approx(right / total)
    assert found["eval_answers"] == len(rows)
    assert found["eval_cer"] > 0

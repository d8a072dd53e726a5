# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Error rates counted by hand."""

import pytest

from xllm.training.metrics import accuracy, cer, edit_counts


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("abc", "abc", (0, 0, 0)),
        ("abc", "axc", (1, 0, 0)),
        ("abc", "ac", (0, 1, 0)),
        ("abc", "abxc", (0, 0, 1)),
        ("abc", "", (0, 3, 0)),
        ("", "ab", (0, 0, 2)),
        ("今天", "明天", (1, 0, 0)),
    ],
)
def test_counts(reference, hypothesis, counts):
    assert edit_counts(reference, hypothesis) == counts


def test_kitten_and_sitting_differ_by_two_substitutions_and_an_insertion():
    assert edit_counts("kitten", "sitting") == (2, 0, 1)


def test_cer_is_of_the_corpus_and_not_a_mean_of_rates():
    rate = cer(["a", "abcdefghi"], ["b", "abcdefghi"])
    assert rate.value == 1 / 10
    assert (rate.substitutions, rate.deletions, rate.insertions, rate.reference) == (1, 0, 0, 10)


def test_cer_may_exceed_one():
    assert cer(["a"], ["abc"]).value == 2.0


def test_accuracy():
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == 0.75


def test_impossible_questions_are_errors():
    with pytest.raises(ValueError, match="1 references and 2 hypotheses"):
        cer(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="no character"):
        cer([""], ["a"])
    with pytest.raises(ValueError, match="empty"):
        accuracy([], [])

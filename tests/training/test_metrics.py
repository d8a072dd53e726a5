# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Error rates counted by hand."""

import pytest

from xllm.training.evaluation.metrics import ErrorRate, accuracy, cer, wer


@pytest.mark.parametrize(
    ("reference", "hypothesis", "counts"),
    [
        ("abc", "abc", (0, 0, 0)),
        ("abc", "axc", (1, 0, 0)),
        ("abc", "ac", (0, 1, 0)),
        ("abc", "abxc", (0, 0, 1)),
        ("abc", "", (0, 3, 0)),
        ("今天", "明天", (1, 0, 0)),
        ("kitten", "sitting", (2, 0, 1)),
        ("abc", "bcd", (0, 1, 1)),  # one shift, not three substitutions
        (" a b ", "a b", (0, 2, 0)),  # spaces count, at the ends too
    ],
)
def test_character_counts(reference, hypothesis, counts):
    rate = cer([reference], [hypothesis])
    assert (rate.substitutions, rate.deletions, rate.insertions) == counts
    assert rate.value == sum(counts) / len(reference)


def test_an_empty_reference_counts_what_was_said_instead():
    assert cer(["", "x"], ["ab", "x"]) == ErrorRate(2.0, 0, 0, 2, 1)


def test_ties_are_broken_alike_each_time():
    # Two substitutions, or a deletion and an insertion: equally short.
    rates = {cer(["ab"], ["ba"]) for _ in range(20)}
    assert len(rates) == 1
    assert rates.pop().value == 1.0


def test_cer_is_of_the_corpus_and_not_a_mean_of_rates():
    assert cer(["a", "abcdefghi"], ["b", "abcdefghi"]) == ErrorRate(1 / 10, 1, 0, 0, 10)


def test_cer_may_exceed_one():
    assert cer(["a"], ["abc"]).value == 2.0


def test_wer_counts_words():
    # "sat" becomes "sits", "the" is lost, "now" is new: three errors in seven words; white space is no error.
    assert wer(["the cat sat  on the mat", "yes"], ["the cat sits on mat", "yes now"]) == ErrorRate(3 / 7, 1, 1, 1, 7)


def test_accuracy():
    assert accuracy(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == 0.75


def test_impossible_questions_are_errors():
    with pytest.raises(ValueError, match="1 references and 2 hypotheses"):
        cer(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="no character"):
        cer([""], ["a"])
    with pytest.raises(ValueError, match="no word"):
        wer([" "], ["a"])
    with pytest.raises(ValueError, match="empty"):
        accuracy([], [])

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which answers carry loss and where their tokens stand, by hand."""

from types import SimpleNamespace

import pytest
import torch

from xllm.training.batches.answers import answers_with_loss, earlier_answers, located


def talk(*losses):
    """A question and an answer for each; None: the answer does not say whether it carries loss."""
    turns = []
    for number, loss in enumerate(losses):
        turns.append({"role": "user", "text": f"q{number}"})
        turns.append({"role": "assistant", "text": f"a{number}", **({} if loss is None else {"loss": loss})})
    return turns


@pytest.mark.parametrize(
    ("losses", "loss_on", "chosen"),
    [
        ((None, None, None), "last", [5]),
        ((None, None, None), "all", [1, 3, 5]),
        ((True, None, None), "last", [1, 5]),
        ((None, False, None), "all", [1, 5]),
        ((None, True, False), "last", [3]),
    ],
)
def test_a_turn_s_own_word_goes_before_the_switch(losses, loss_on, chosen):
    assert answers_with_loss(talk(*losses), loss_on) == chosen


def test_a_sample_whose_answers_all_decline_is_refused():
    with pytest.raises(ValueError, match="no answer of a sample carries loss"):
        answers_with_loss(talk(None, False), "last")


class Writer:
    """A processor whose template writes `role:text;`, and answers as `text;`; one to be continued is left open."""

    def __init__(self, is_fast=True, thought=""):
        self.tokenizer, self.thought = SimpleNamespace(is_fast=is_fast), thought

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize
        written = "".join(f"{turn['role']}:{turn['text']};" for turn in messages)
        return f"{written}assistant:{self.thought}" if add_generation_prompt else written[:-1]

    def answer_text(self, messages, stop_ids):
        return f"{messages[-1]['text']}{stop_ids[0]}"


def test_earlier_answers_are_found_in_the_prompt_of_the_last():
    messages = talk(None, None, None)
    whole = "user:q0;assistant:a0;user:q1;assistant:a1;user:q2;assistant:"
    spans = earlier_answers(Writer(), messages, [1, 3], ";")
    assert [whole[first:end] for first, end in spans] == ["a0;", "a1;"]
    assert [first for first, _ in spans] == [18, 39]
    assert earlier_answers(Writer(), messages, [], ";") == []
    assert earlier_answers(Writer(), messages[:2] + messages[-1:], [1], ";") == spans[:1]  # two answers to a question
    assert earlier_answers(Writer(), messages, [1, 3], "!") is None  # it stops otherwise than the template writes it
    assert earlier_answers(Writer(thought="<think>"), messages, [1], ";") is None  # in the generation prompt alone
    assert earlier_answers(Writer(is_fast=False), messages, [1], ";") is None


# "<I>ab cd<I>ef", each placeholder (of three characters) written out to six: what stands behind the first moves by 3,
# behind the second by 6.
MOVED = [{"span": (0, 3), "new_span": (0, 6)}, {"span": (8, 11), "new_span": (11, 17)}]
OFFSETS = [(0, 3), (3, 6), (6, 7), (7, 8), (8, 8), (8, 9), (9, 9), (9, 11), (11, 14), (14, 17), (17, 19), (19, 19)]


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ([(3, 5)], [2, 3]),  # "ab"; from where the first placeholder ends
        ([(3, 4)], [2]),
        ([(5, 8)], [5, 7]),  # " cd", without the tokens of no characters before and in it
        ([(3, 5), (11, 13)], [2, 3, 10]),  # "ab" and "ef"
        ([(7, 8)], None),  # the token "cd" begins before "d"
        ([(5, 7)], None),  # and ends behind "c"
        ([(3, 5), (7, 8)], None),
        ([(13, 14)], None),  # no token is there
    ],
)
def test_tokens_of_spans_by_hand(spans, found):
    """Among the real tokens: two columns of padding stand before them."""
    offsets = torch.tensor([[(0, 3), (0, 3), *OFFSETS]] * 2)
    mask = torch.tensor([[False] * 2 + [True] * len(OFFSETS)] * 2)
    batch = {"offset_mapping": offsets, "text_replacement_offsets": [MOVED, MOVED], "other": 1}
    assert located(batch, mask, [(), spans]) == [[], found]
    assert batch == {"other": 1}
    assert located({}, mask, [(), ()]) == [[], []]


def test_what_stands_before_a_placeholder_stays_where_it_is():
    """ "ab <I>cd", the placeholder written out from three characters to six."""
    offsets = torch.tensor([[(0, 2), (3, 9), (9, 11)]])
    moved = [{"span": (3, 6), "new_span": (3, 9)}]
    for spans, found in (([(0, 2)], [0]), ([(6, 8)], [2]), ([(0, 2), (6, 8)], [0, 2]), ([(0, 1)], None)):
        batch = {"offset_mapping": offsets, "text_replacement_offsets": [moved]}
        assert located(batch, torch.ones(1, 3, dtype=torch.bool), [spans]) == [found]

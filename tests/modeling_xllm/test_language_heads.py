# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Logits and loss behind the layers, as each family computes them, by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig
from transformers.loss.loss_utils import ForCausalLMLoss

from xllm.modeling_xllm.language_heads import (
    SupervisedTokens,
    has_biased_head,
    logits_and_loss,
    scaled_logits,
    supervised_tokens,
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"model_type": "llama", "logit_scale": 2.0}, [1.0, -4.0]),  # no field of its family
        ({"model_type": "cohere2", "logit_scale": 0.5}, [0.5, -2.0]),
        ({"model_type": "falcon_h1", "lm_head_multiplier": 3.0}, [3.0, -12.0]),
        ({"model_type": "granitemoe", "logits_scaling": 4.0}, [0.25, -1.0]),
        ({"model_type": "hyperclovax", "logits_scaling": 4.0}, [4.0, -16.0]),
        ({"model_type": "gemma2", "final_logit_softcapping": 2.0}, [0.9242343145, -1.9280551601]),  # 2 tanh(x / 2)
        ({"model_type": "a", "final_logit_softcapping": None, "logits_soft_cap": 1.0}, [0.7615941560, -0.9993292997]),
    ],
)
def test_families_scale_and_bound_their_logits(fields, expected):
    logits = scaled_logits(SimpleNamespace(**fields), torch.tensor([1.0, -4.0]))
    torch.testing.assert_close(logits, torch.tensor(expected))


@pytest.mark.parametrize("compiling", [False, True])
def test_supervised_tokens_are_found_by_their_number(compiling, monkeypatch):
    """Which a device need not be asked for a second time; a graph, which cannot wait for it, looks by itself."""
    looked = []
    nonzero = torch.Tensor.nonzero
    monkeypatch.setattr(torch.Tensor, "nonzero", lambda self: looked.append(1) or nonzero(self))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    labels = torch.tensor([[-100, 5, -100, 6], [7, -100, 8, -100]])
    found = SupervisedTokens(labels)
    assert found.targets.tolist() == [5, -100, 6, -100, -100, 8, -100, -100]
    assert (found.count is None) == compiling
    assert found.places().tolist() == [0, 2, 5]
    assert bool(looked) == compiling


def test_heads_with_a_bias():
    assert has_biased_head(SimpleNamespace(model_type="phi"))
    assert not has_biased_head(SimpleNamespace(model_type="llama"))
    assert has_biased_head(SimpleNamespace(model_type="llama", lm_head_bias=True))
    assert not has_biased_head(SimpleNamespace(model_type="phi", lm_head_bias=False))


class Head(torch.nn.Module):
    """A vocabulary of five over states of width four."""

    config = LlamaConfig(hidden_size=4, num_attention_heads=2, vocab_size=5)
    loss_function = staticmethod(ForCausalLMLoss)

    def __init__(self):
        super().__init__()
        self.lm_head = torch.nn.Linear(4, 5)


LABELS = torch.tensor([[-100, 2, -100, 4], [1, -100, -100, 3]])
ASKED = ([0, 2, 6], [2, 4, 3])  # places of `LABELS` behind which a token is asked for, and which; 1 has none before it


@pytest.mark.parametrize("training", [True, False])
def test_supervised_positions_alone_give_the_same_loss(training):
    head, states = Head().train(training), torch.randn(2, 4, 4)
    places, targets = ASKED
    expected = cross_entropy(head.lm_head(states.flatten(0, 1)[places]), torch.tensor(targets))
    supervised = supervised_tokens(head, LABELS, 0, {})
    assert (supervised is None) == (not training)
    logits, loss = logits_and_loss(head, states, LABELS, 0, supervised)
    torch.testing.assert_close(loss, expected)
    if supervised is None:
        torch.testing.assert_close(logits, head.lm_head(states))
    else:
        assert logits is None
        assert supervised.places().tolist() == places
        assert supervised.targets.tolist() == [2, -100, 4, -100, -100, -100, 3, -100]
    logits, loss = logits_and_loss(head, states, None, 0, supervised)
    assert loss is None
    torch.testing.assert_close(logits, head.lm_head(states))
    torch.testing.assert_close(logits_and_loss(head, states, None, 2)[0], head.lm_head(states[:, 2:]))


@pytest.mark.parametrize(
    ("labels", "logits_to_keep", "kwargs"),
    [(None, 0, {}), (LABELS, 1, {}), (LABELS, torch.tensor([0]), {}), (LABELS, 0, {"shift_labels": LABELS})],
)
def test_who_asks_for_logits_gets_all_of_them(labels, logits_to_keep, kwargs):
    assert supervised_tokens(Head().train(), labels, logits_to_keep, kwargs) is None

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Training computes real tokens only, and gives what computing everything gives."""

from types import SimpleNamespace

import pytest
import torch
from fixtures.chatglm_helpers import ROWS, build, pad
from tiny import EOP, SOP, assert_equal_whatever_is_made_by_default, batch_of, gradients, mixed_rows, tiny_model
from transformers import LlamaConfig

from xllm import freeze_for_stage
from xllm.modeling_xllm.language_models import LanguageModel
from xllm.modeling_xllm.modeling_chatglm import chatglm_positions
from xllm.modeling_xllm.real_tokens import RealTokens, computes_real_tokens_only, real_tokens


def test_real_tokens_by_hand():
    tokens = RealTokens(torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]))
    assert tokens.take(torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])).tolist()[0] == [11, 13, 14]
    assert tokens.mask.tolist() == [[True, True, True], [True, False, False]]
    states = torch.arange(10.0).view(2, 5, 1)
    assert tokens.put_back(tokens.take_states(states)).flatten(1).tolist() == [[0, 1, 1, 3, 4], [5, 5, 5, 5, 5]]
    positions = torch.stack([torch.arange(10).view(2, 5), torch.arange(10).view(2, 5) + 100])
    assert tokens.take(positions)[1].tolist()[0] == [101, 103, 104]


def test_rows_without_gaps_are_left_as_they_are():
    whole, states = RealTokens(torch.ones(2, 3)), torch.randn(2, 3, 4)
    assert whole.is_whole
    assert whole.real() is None
    assert whole.take(states) is whole.take_states(states) is states
    assert whole.put_back(states) is states
    one_short = RealTokens(torch.tensor([[1, 1, 1], [0, 1, 1]]))
    assert not one_short.is_whole
    assert one_short.real().tolist() == [[1, 1, 1], [1, 1, 0]]
    nothing = RealTokens(torch.zeros(2, 3))
    assert nothing.take_states(states).shape == (2, 1, 4)
    assert not nothing.put_back(states[:, :1]).any()


def test_a_process_that_makes_other_tensors_by_default_moves_the_same():
    mask, language = torch.tensor([[0, 1, 1], [1, 0, 0]]), LanguageModel(LlamaConfig(attn_implementation="sdpa"))

    def numbers() -> dict:
        tokens = RealTokens(mask)
        return {"mask": tokens.mask, "columns": tokens.columns, "seen": tokens.seen(language, None, {}, True)}

    assert_equal_whatever_is_made_by_default(numbers)


@pytest.mark.parametrize(
    ("width", "ours", "counts_alone", "sees_all", "seen"),
    [
        (512, True, True, True, "causal"),
        (513, True, True, True, "none"),  # a longer mask costs more than to do without
        (4, True, True, False, "none"),
        (4, False, True, True, "real"),  # positions are the caller's
        (4, True, False, True, "real"),
    ],
)
def test_the_mask_of_real_tokens(width, ours, counts_alone, sees_all, seen):
    mask = (torch.arange(width + 1) < torch.tensor([[width], [2]])).long()
    language = SimpleNamespace(counts_alone=lambda: counts_alone, sees_all_before=lambda: sees_all)
    layout = {"position_ids": mask}
    got = RealTokens(mask).seen(language, None, layout, ours)
    assert ("position_ids" in layout) == (seen == "real")
    if seen == "none":
        assert got is None
    elif seen == "real":
        assert got.tolist() == mask[:, :width].tolist()
    else:
        assert got.shape == (1, 1, width, width)
        assert got[0, 0, :3, :3].tolist() == [[True, False, False], [True, True, False], [True] * 3]


@pytest.mark.parametrize(
    ("changes", "kwargs"),
    [
        ({"training": False}, {}),
        ({"cache": "a cache"}, {}),
        ({"use_cache": True}, {}),
        ({"mask": torch.ones(1, 1, 2, 2)}, {}),
        ({"mask": None}, {}),
        ({}, {"output_hidden_states": True}),
        ({}, {"output_attentions": True}),
        ({"config": {"output_attentions": True}}, {}),
    ],
    ids=str,
)
def test_when_padding_is_computed_all_the_same(changes, kwargs):
    def asked(mask=torch.ones(1, 2), cache=None, use_cache=False, training=True, config=(), **kwargs):  # noqa: B008
        model = SimpleNamespace(training=training, config=SimpleNamespace(**dict(config)))
        found = real_tokens(model, mask, cache, use_cache, kwargs)
        is_asked = mask is not None and computes_real_tokens_only(model, mask, cache, use_cache, kwargs)
        assert (is_asked and training) == (found is not None)
        return found is not None

    assert asked()
    assert asked(config={"output_attentions": True}, output_attentions=False)
    assert not asked(**changes, **kwargs)


def assert_same_step(model, batch):
    # A cache that is asked for holds every position, so everything is computed.
    (loss, grads), (all_loss, all_grads) = gradients(model, **batch), gradients(model, **batch, use_cache=True)
    torch.testing.assert_close(loss, all_loss)
    torch.testing.assert_close(grads, all_grads, atol=1e-5, rtol=1e-4)
    assert any(grad.abs().sum() > 0 for grad in grads.values())


@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_a_step_over_every_kind_of_row(text):
    model = tiny_model(text)
    freeze_for_stage(model, 2)
    model.train()
    answer = [30, 31, EOP]
    batch = batch_of([(ids + answer, media) for ids, media in mixed_rows()])
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    start = -len(answer) - 1
    batch["labels"][:, start:] = batch["input_ids"][:, start:]
    assert (batch["labels"][:, start] == SOP).all()
    widths = []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    assert_same_step(model, batch)
    features = model(**batch).modality_features
    fired = features["speech"].mask.sum(-1).tolist()
    surplus = (features["speech"].num_placeholders - features["speech"].mask.sum(-1)).tolist()
    assert max(surplus) > 0, f"every placeholder was filled: {fired}"
    unfilled = torch.tensor([0, 0, surplus[0], 0, surplus[1]])
    real = batch["attention_mask"].sum(1) - unfilled
    rows, length = batch["input_ids"].shape
    assert widths[:2] == [(rows, int(real.max())), (rows, length)]
    assert int(real.max()) < length


@pytest.mark.parametrize("side", ["left", "right"])
def test_chatglm_in_batches_of_a_fixed_length(side):
    model = build().train()
    ids, mask = pad([row + [21, 22] for row in ROWS], side)
    gap = torch.zeros(len(ids), 20, dtype=ids.dtype)
    order = [gap, ids] if side == "left" else [ids, gap]
    batch = {
        "input_ids": torch.cat(order, 1),
        "attention_mask": torch.cat([gap, mask][:: 1 if side == "left" else -1], 1),
    }
    batch["labels"] = batch["input_ids"].where((batch["input_ids"] == 21) | (batch["input_ids"] == 22), -100)
    widths = []
    model.transformer.layers[0].register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[1]))
    assert_same_step(model, batch)
    assert widths == [ids.shape[1], ids.shape[1] + 20]
    names = ("position_ids", "token_type_ids")  # who gives both has left out padding where it may be
    laid_out = dict(zip(names, chatglm_positions(batch["input_ids"], batch["attention_mask"], model.config)))
    for given in (laid_out, *({name: laid_out[name]} for name in names)):
        torch.testing.assert_close(model(**batch, **given).loss, model(**batch).loss)
    assert widths[2::2] == [ids.shape[1] + 20] + [ids.shape[1]] * 2
    assert model(**batch, output_hidden_states=True).hidden_states[0].shape[1] == ids.shape[1] + 20

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Training computes real tokens only, and gives what computing everything gives."""

import pytest
import torch
from fixtures.chatglm_helpers import ROWS, build, pad
from tiny import EOP, SOP, batch_of, gradients, mixed_rows, tiny_model

from xllm import freeze_for_stage
from xllm.modeling_xllm.real_tokens import RealTokens


def test_real_tokens_by_hand():
    tokens = RealTokens(torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]))
    assert tokens.take(torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])).tolist()[0] == [11, 13, 14]
    assert tokens.mask.tolist() == [[True, True, True], [True, False, False]]
    states = torch.arange(10.0).view(2, 5, 1)
    assert tokens.put_back(tokens.take_states(states)).flatten(1).tolist() == [[0, 1, 1, 3, 4], [5, 5, 5, 5, 5]]
    positions = torch.stack([torch.arange(10).view(2, 5), torch.arange(10).view(2, 5) + 100])
    assert tokens.take(positions)[1].tolist()[0] == [101, 103, 104]


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
    assert model(**batch, output_hidden_states=True).hidden_states[0].shape[1] == ids.shape[1] + 20

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Samples that share rows of the language model give the loss and the gradients that they give apart."""

from types import SimpleNamespace

import pytest
import torch
from tiny import EOP, PAD, VOCAB, assert_equal_whatever_is_made_by_default, batch_of, gradients, mixed_rows, tiny_model
from transformers import Lfm2Config, MambaConfig, MambaModel, Qwen3Config

from xllm import freeze_for_stage
from xllm.modeling_xllm.packing import (
    PackedTokens,
    _shared_rows,
    computed_tokens,
    packing_problem,
    packs_by_default,
)
from xllm.modeling_xllm.real_tokens import RealTokens


def test_packed_tokens_by_hand():
    mask = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]])
    ids = torch.tensor([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24], [30, 31, 32, 33, 34], [40, 41, 42, 43, 44]])
    two = PackedTokens(mask, width=1000)  # as many positions as one row of six, and fewer that attend to each other
    assert two.take(ids).tolist() == [[11, 13, 14], [30, 31, 20]]
    assert two.take(torch.stack((ids, ids + 100)))[1].tolist() == [[111, 113, 114], [130, 131, 120]]
    assert two.places.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert two.owners.tolist() == [[0, 0, 0], [2, 2, 1]]
    one = PackedTokens(mask, width=1000, in_one=True)
    assert one.take(ids).tolist() == [[11, 13, 14, 30, 31, 20]]
    for packed in (one, two):
        found = packed.put_back(packed.take_states(ids[..., None].float())).squeeze(-1).int().tolist()
        assert found == [[0, 11, 11, 13, 14], [20] * 5, [30, 31, 31, 31, 31], [0] * 5]


def test_rows_that_are_not_full():
    """Where attention costs all, there are many rows, of which a twentieth may be padding; where products do, one."""
    mask = (torch.arange(41) < torch.tensor([41, 20, 20, 19, 21, 40])[:, None]).long()
    filled = PackedTokens(mask, width=0)
    assert filled.mask.shape == (4, 41)
    assert filled.mask.sum() == 161
    assert filled.take(mask)[~filled.mask].tolist() == [0, 0, 0]
    assert filled.owners[~filled.mask].tolist() == [-1, -1, -1]
    assert filled.places[~filled.mask].tolist() == [0, 0, 0]
    assert PackedTokens(mask[:2], width=10_000).mask.shape == (1, 61)
    assert PackedTokens(torch.ones(3, 1), width=0).mask.tolist() == [[True]] * 3  # rows of one token
    none = PackedTokens(torch.zeros(2, 3), width=9)
    assert none.mask.tolist() == [[False]]  # there is none, and a row all the same
    assert torch.equal(none.put_back(none.take_states(torch.randn(2, 3, 4))), torch.zeros(2, 3, 4))
    states = torch.randn(6, 41, 2)
    assert torch.equal(filled.put_back(filled.take_states(states))[mask.bool()], states[mask.bool()])


def test_a_process_that_makes_other_tensors_by_default_shares_rows_the_same():
    mask = (torch.arange(9) < torch.tensor([9, 3, 4, 2])[:, None]).long()

    def numbers() -> dict:
        packed = PackedTokens(mask, width=0)
        return {"owners": packed.owners, "places": packed.places, "taken": packed.take(mask)}

    assert_equal_whatever_is_made_by_default(numbers)


def rows_by_a_loop(lengths, width):
    """The lengths of each row, for the number of rows that costs least: the longest first, each where least is."""
    best, least = [lengths], sum(lengths) * (6 * width + sum(lengths))
    for number in range(2, len(lengths) + 1):
        rows = [[] for _ in range(number)]
        for length in sorted(lengths, reverse=True):
            min(rows, key=sum).append(length)
        size = max(map(sum, rows))
        if number * size <= 1.05 * sum(lengths) and number * size * (6 * width + size) < least:
            best, least = rows, number * size * (6 * width + size)
    return sorted(sorted(row) for row in best)


@pytest.mark.parametrize("width", [0, 2, 40])
def test_as_many_rows_as_cost_least(width):
    for seed in range(30):
        lengths = torch.randint(1, 30, (7,), generator=torch.Generator().manual_seed(seed)).tolist()
        rows = _shared_rows(lengths, width, False)
        assert sorted(sorted(length for _, length in row) for row in rows) == rows_by_a_loop(lengths, width)
        assert sorted(place for row in rows for place in row) == list(enumerate(lengths))
        assert len(_shared_rows(lengths, width, True)) == 1
    assert _shared_rows([21, 19], 0, False) == [[(0, 21)], [(1, 19)]]  # of 42 positions exactly a twentieth is padding
    assert _shared_rows([22, 18], 0, False) == [[(0, 22), (1, 18)]]
    assert len(_shared_rows([21, 19], 59, False)) == 2  # 42 (6 * 59 + 21) < 40 (6 * 59 + 40)
    assert len(_shared_rows([21, 19], 60, False)) == 1


def step_batch():
    """Rows of every kind with answers of different lengths, some of their speech placeholders left empty."""
    answers = [[30, 31, EOP], [30, EOP], [30, 31, 32, 33, EOP], [EOP], [31, 32, EOP]]
    rows = [(ids + answer, media) for (ids, media), answer in zip(mixed_rows(), answers)]
    batch = batch_of(rows)
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    for row, answer in enumerate(answers):
        batch["labels"][row, -len(answer) - 1 :] = batch["input_ids"][row, -len(answer) - 1 :]
    return batch


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("chatglm", "sdpa"), ("chatglm", "eager"), ("chatglm", "checkpointing"), ("llama", "sdpa"), ("llama", "eager"),
        ("qwen3", "sdpa"), ("qwen3", "sliding"),
    ],
)  # fmt: skip
def test_a_packed_step_is_the_same_step(text, how):
    model = tiny_model(text)
    if how == "sliding":
        language = model.config.text_config
        language.layer_types, language.sliding_window = ["sliding_attention", "full_attention"], 4
        inner = model.model.language_model
        inner.has_sliding_layers = True
        inner.layers[0].self_attn.sliding_window = 4
    elif how == "eager":
        model.set_attn_implementation("eager")
    freeze_for_stage(model, 2)
    model.train()
    if how == "checkpointing":
        model.gradient_checkpointing_enable()
    batch, shapes = step_batch(), []
    model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    loss, grads = gradients(model, **batch)
    packed_loss, packed_grads = gradients(model, **batch, packing=True)
    torch.testing.assert_close(packed_loss, loss)
    torch.testing.assert_close(packed_grads, grads, atol=1e-5, rtol=1e-4)
    assert all(grad.abs().sum() > 0 for name, grad in grads.items() if "adapter" in name)
    speech = model(**batch).modality_features["speech"]
    surplus = int((speech.num_placeholders - speech.mask.sum(-1)).sum())
    real = int(batch["attention_mask"].sum()) - surplus
    assert surplus > 0
    (rows, width), (packed_rows, packed_width) = shapes[:2]
    assert rows == len(batch["input_ids"])
    assert rows * width > 1.3 * real
    assert packed_rows * packed_width <= 1.05 * real


def test_a_sample_does_not_see_its_neighbours():
    """Another text in the first sample leaves the losses of the others as they are, to the bit."""
    model = tiny_model("llama")
    freeze_for_stage(model, 2)
    model.train()
    batch = step_batch()
    del batch["labels"]

    def states() -> torch.Tensor:
        torch.manual_seed(0)  # the same dropout in the converters
        return model.model(**batch, packing=True).last_hidden_state

    before = states()
    is_text = (batch["input_ids"][0] > 10) & (batch["input_ids"][0] < 20)
    assert is_text.any()
    batch["input_ids"][0, is_text] += 1
    after = states()
    assert not torch.equal(before[0], after[0])
    assert torch.equal(before[1:], after[1:])


def test_evaluation_and_a_cache_are_not_packed():
    model, batch = tiny_model("llama"), step_batch()
    assert torch.equal(model(**batch, packing=True).logits, model(**batch).logits)
    freeze_for_stage(model, 2)
    model.train()
    assert model(**batch, packing=True, use_cache=True).past_key_values.get_seq_length() == batch["input_ids"].shape[1]


def test_what_is_packed_unless_a_recipe_says_otherwise():
    """Where nothing could mix samples: full attention by a mask of ours, and positions that are given."""
    models = {name: tiny_model(name) for name in ("chatglm", "llama", "qwen3")}
    assert [packs_by_default(model) for model in models.values()] == [True] * 3
    models["chatglm"].set_attn_implementation("eager")
    models["qwen3"].config.text_config.layer_types[0] = "sliding_attention"
    inner = models["llama"].model.language_model
    inner.forward = lambda inputs_embeds, attention_mask: None
    assert [packs_by_default(model) for model in models.values()] == [False] * 3
    del inner.forward
    assert packs_by_default(models["llama"])
    inner._is_stateful = True
    assert not packs_by_default(models["llama"])


@pytest.mark.parametrize(("lengths", "is_packed"), [((20, 20, 20), False), ((20, 20, 18), False), ((20, 20, 9), True)])
def test_rows_that_are_nearly_as_long_stay_rows(lengths, is_packed):
    """Packed, the second batch computes 58 tokens instead of 60, which is not worth masks of blocks."""
    model, mask = tiny_model("llama").train(), (torch.arange(20) < torch.tensor(lengths)[:, None]).long()
    found = computed_tokens(model, True, mask, None, None, {})
    assert isinstance(found, PackedTokens) == is_packed
    if not is_packed:
        expected = RealTokens(mask)
        assert torch.equal(found.columns, expected.columns)
        assert found.is_whole == expected.is_whole == (min(lengths) == 20)
    assert isinstance(computed_tokens(model, False, mask, None, None, {}), RealTokens)
    model.config.text_config.hidden_size = 60  # one row of 40 instead of 42 positions: no more than a twentieth less
    nearly = (torch.arange(21) < torch.tensor([[21], [19]])).long()
    assert isinstance(computed_tokens(model, True, nearly, None, None, {}), RealTokens)
    assert computed_tokens(model.eval(), True, mask, None, None, {}) is None


def test_what_cannot_be_packed_says_why():
    assert packing_problem(tiny_model("llama")) == packing_problem(tiny_model()) == ""
    own = SimpleNamespace(
        config=SimpleNamespace(model_type="mpt"), _is_stateful=False, _supports_attention_backend=False
    )
    own = packing_problem(SimpleNamespace(model=SimpleNamespace(language_model=own)))
    assert own == "the attention of a mpt is its own and may not read the mask that keeps samples apart"
    mamba = MambaModel(MambaConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, state_size=4))
    state = packing_problem(SimpleNamespace(model=SimpleNamespace(language_model=mamba)))
    assert state == "a mamba hands a state on from token to token, and with it one sample to the next"


@pytest.mark.parametrize("kind", ["conv", "full_attention", "sliding_attention"])
def test_a_convolution_reads_over_the_border_of_samples(kind):
    """LFM2 says nowhere that it has states."""
    config = (Lfm2Config if kind == "conv" else Qwen3Config)(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=[kind, "full_attention"], pad_token_id=PAD, sliding_window=4,
        use_sliding_window=True,
    )  # fmt: skip
    model = tiny_model(text_config=config).train()
    ids = torch.tensor([[*range(5, 20)], [*range(30, 36), *[PAD] * 9]])
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": ids.masked_fill(ids == PAD, -100)}
    if kind == "conv":
        with pytest.raises(ValueError, match="packing: a lfm2 hands a state on from token to token"):
            model(**batch, packing=True)
    else:
        torch.testing.assert_close(model(**batch, packing=True).loss, model(**batch).loss)

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM's forward and training against a slow re-implementation (fixtures/chatglm_oracle.py)."""

import copy
import functools
import types

import pytest
import torch
from fixtures.chatglm_helpers import REFERENCE, ROWS, WEIGHTS, build, pad
from fixtures.chatglm_oracle import CONFIG, EOP, GMASK, MASK, PAD, PROMPTS, SOP, slow_logits, slow_positions
from huggingface_hub.errors import StrictDataclassFieldValidationError
from tiny import assert_equal_whatever_is_made_by_default, default_numbers

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm.modeling_xllm.modeling_chatglm import (
    ChatGLMLanguageModel,
    ChatGLMModel,
    ChatGLMRotaryEmbedding,
    chatglm_positions,
    eager_attention_forward,
)


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    return build()


def test_default_sizes_are_those_of_chatglm_6b():
    assert default_numbers(ChatGLMConfig) == {
        "vocab_size": 130528, "hidden_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 32,
        "intermediate_size": 16384, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5,
        "residual_scale": 56**0.5, "rope_theta": 10_000, "rope_half_precision": False, "initializer_range": 0.02,
        "use_cache": True, "tie_word_embeddings": False,
    }  # fmt: skip


def test_sizes_by_their_published_names_are_checked_as_ours_are():
    with pytest.raises(StrictDataclassFieldValidationError, match="'num_hidden_layers'"):
        ChatGLMConfig(num_layers="two")


def test_every_norm_has_the_configs_epsilon():
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**CONFIG, layer_norm_eps=0.5))
    norms = [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert [norm.eps for norm in norms] == [0.5] * (2 * model.config.num_hidden_layers + 1)


@pytest.mark.parametrize(
    ("config", "is_told"),
    [
        (ChatGLMConfig(dtype="float16"), True),
        (ChatGLMConfig(dtype="float16", rope_half_precision=True), False),
        (ChatGLMConfig(dtype="float32"), False),
    ],
)
def test_who_composes_a_half_precision_chatglm_is_told_of_its_angles(config, is_told):
    assert ("rope_half_precision" in ChatGLMLanguageModel(config).note()) == is_told


@pytest.mark.parametrize("kind", [ChatGLMModel, ChatGLMForConditionalGeneration])
def test_fresh_weights_have_the_configs_deviation(kind):
    torch.manual_seed(0)
    for name, weight in kind(ChatGLMConfig(**CONFIG, initializer_range=0.5)).named_parameters():
        if weight.dim() == 2:
            assert 0.45 < weight.std() < 0.55, name
        else:
            assert (weight == name.endswith("norm.weight")).all(), name


# ---- positions ------------------------------------------------------------------------------------------------------


def test_positions_by_hand():
    config = ChatGLMConfig(**CONFIG)
    ids = torch.tensor(
        [[PAD, PAD, 7, 8, GMASK, SOP, 20], [7, 9, 8, GMASK, SOP, 20, PAD], [7, MASK, 8, SOP, 20, 21, 22]]
    )
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]])
    positions, token_types = chatglm_positions(ids, mask, config)
    assert positions[0].tolist() == [[0, 0, 0, 1, 2, 2, 2], [0, 0, 1, 2, 2, 2, 2], [0, 1, 2, 1, 1, 1, 1]]
    assert positions[1].tolist() == [[0, 0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 2, 3, 4]]
    assert token_types.tolist() == [[0, 0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("legacy", [False, True])
def test_positions_equal_the_slow_rule_wherever_masked_tokens_stand(legacy):
    config = ChatGLMConfig(**CONFIG, legacy_sop_position=legacy)
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        length = 24
        ids = torch.randint(4, 50, (1, length), generator=generator)
        keep = torch.rand(1, length, generator=generator) > 0.4
        ids[0, 12], ids[0, 13] = GMASK, SOP
        keep[0, 12] = keep[0, 13] = True
        ids[0, 3], keep[0, 3] = SOP, False  # masked: does not count
        positions, token_types = chatglm_positions(ids, keep.long(), config)
        first, second, context = slow_positions(ids[0][keep[0]].tolist(), legacy)
        assert positions[:, 0, keep[0]].tolist() == [first, second]
        assert token_types[0, keep[0]].tolist() == [int(place >= context) for place in range(len(first))]


def test_the_longest_row_is_as_long_as_the_config_says():
    config = ChatGLMConfig(**{**CONFIG, "max_sequence_length": 5})
    ids, mask = torch.tensor([[PAD, 7, 8, 9, GMASK, SOP]]), torch.tensor([[0, 1, 1, 1, 1, 1]])
    chatglm_positions(ids, mask, config)
    with pytest.raises(ValueError, match="input_ids has 6 tokens in a row, the model takes max_sequence_length=5"):
        chatglm_positions(ids, torch.ones_like(mask), config)


def test_layout_errors_name_the_row_and_the_remedy():
    config = ChatGLMConfig(**CONFIG)
    with pytest.raises(ValueError, match=r"row 1 of input_ids has no <sop> \(id 62\)"):
        chatglm_positions(torch.tensor([[5, GMASK, SOP], [PAD, 6, GMASK]]), torch.tensor([[1] * 3, [0, 1, 1]]), config)
    with pytest.raises(ValueError, match=r"row 0 of input_ids has no \[gMASK\] \(id 61\) nor \[MASK\] \(id 60\)"):
        chatglm_positions(torch.tensor([[5, 6, SOP]]), None, config)
    ids = torch.full((1, 140), 5)
    ids[0, -2:] = torch.tensor([GMASK, SOP])
    with pytest.raises(ValueError, match="140 tokens in a row, the model takes max_sequence_length=128"):
        chatglm_positions(ids, None, config)
    mask = torch.ones_like(ids)
    mask[0, :20] = 0  # padding may exceed the limit, tokens may not
    assert chatglm_positions(ids, mask, config)[0].max() == 118
    chatglm_positions(torch.tensor([[5, GMASK, SOP], [PAD, PAD, PAD]]), torch.tensor([[1, 1, 1], [0, 0, 0]]), config)


def test_a_row_may_be_as_long_as_the_model_takes_and_repeat_places_but_not_fall():
    config = ChatGLMConfig(**CONFIG)
    ids = torch.full((1, 129), 5)
    ids[0, -2:] = torch.tensor([GMASK, SOP])
    assert chatglm_positions(ids[:, 1:], None, config)[0].max() == 126
    with pytest.raises(ValueError, match="129 tokens in a row"):
        chatglm_positions(ids, None, config)
    ids, mask = torch.tensor([[7, 8, 9, GMASK, SOP]]), torch.tensor([[1, 1, 0, 1, 1]])
    places = torch.tensor([[0, 2, 1, 2, 4]])  # one that falls at a masked token, one that is had twice
    positions, _ = chatglm_positions(ids, mask, config, places)
    assert positions.tolist() == [[[0, 2, 1, 2, 2]], [[0, 0, 0, 0, 1]]]
    for falling in ([0, 2, 1, 1, 4], [3, 2, 2, 3, 4]):
        with pytest.raises(ValueError, match="position_ids fall within a row"):
            chatglm_positions(ids, mask, config, torch.tensor([falling]))
    config.mask_token_id = None  # a vocabulary without [MASK]
    assert chatglm_positions(ids, mask, config)[0].tolist() == [[[0, 1, 1, 2, 2]], [[0, 0, 0, 0, 1]]]
    with pytest.raises(ValueError, match=r"row 0 of input_ids has no \[gMASK\]"):
        chatglm_positions(torch.tensor([[7, MASK, SOP]]), None, config)
    assert ChatGLMLanguageModel(config).layout_tokens() == [GMASK, SOP]


def test_a_cache_is_kept_but_in_a_training_step_with_labels(model):
    ids = torch.tensor([[7, 8, GMASK, SOP, 20]])
    kept = [
        model(ids, labels=labels, use_cache=use).past_key_values for labels in (None, ids) for use in (None, False)
    ]
    assert [cache is not None for cache in kept] == [True, False, True, False]
    model = copy.deepcopy(model).train()
    given = ((None, None), (ids, None), (ids, True))
    kept = [model(ids, labels=labels, use_cache=use).past_key_values for labels, use in given]
    assert [cache is not None for cache in kept] == [True, False, True]


def test_frequencies_are_no_weights_and_nothing_is_recomputed_unasked(model):
    assert not [name for name in model.state_dict() if "rotary" in name]
    assert not model.is_activation_checkpointing


# ---- forward --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", PROMPTS)
def test_logits_equal_the_slow_model(name, attention):
    logits = build(attention)(torch.tensor([PROMPTS[name]])).logits[0]
    assert (logits - REFERENCE[f"logits.{name}"]).abs().max() < 2e-5


def test_the_fixture_is_what_the_slow_model_says():
    assert torch.equal(slow_logits(WEIGHTS, PROMPTS["middle"]).float(), REFERENCE["logits.middle"])


def test_the_march_2023_rule_moves_sop(model):
    ids = torch.tensor([PROMPTS["answered"]])
    old = build(legacy_sop_position=True)(ids).logits[0]
    assert (old - slow_logits(WEIGHTS, PROMPTS["answered"], legacy=True)).abs().max() < 2e-5
    assert (old - model(ids).logits[0]).abs().max() > 1e-3
    positions, _ = chatglm_positions(ids, None, ChatGLMConfig(**CONFIG, legacy_sop_position=True))
    assert torch.equal(model(ids, position_ids=positions).logits[0], old)  # the caller's are kept


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_equal_rows_alone(side, attention):
    ids, mask = pad(ROWS, side)
    logits = build(attention)(ids, attention_mask=mask).logits
    assert torch.isfinite(logits).all()
    for row, got, keep in zip(ROWS, logits, mask.bool()):
        assert (got[keep] - slow_logits(WEIGHTS, row)).abs().max() < 2e-5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_masked_slots_inside_a_row_are_as_good_as_absent(attention, dtype):
    model = build(attention).to(dtype)
    ids = torch.tensor([[7, 8, 9, 9, 9, 10, GMASK, SOP, 20]])
    mask = torch.tensor([[1, 1, 0, 0, 0, 1, 1, 1, 1]])
    with_holes = model(ids, attention_mask=mask).logits
    without = model(ids[mask.bool()][None]).logits
    assert torch.isfinite(with_holes).all()
    assert (with_holes[mask.bool()][None] - without).abs().max() < (1e-5 if dtype is torch.float32 else 0.05)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_row_of_padding_only_has_finite_outputs_and_gradients(attention):
    model = build(attention)
    embeds = torch.randn(2, 4, 32, requires_grad=True)
    ids, mask = torch.tensor([[7, 8, GMASK, SOP], [PAD] * 4]), torch.tensor([[1] * 4, [0] * 4])
    logits = model(ids, inputs_embeds=embeds, attention_mask=mask).logits
    logits[0].sum().backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(embeds.grad).all()
    assert embeds.grad[0].abs().sum() > 0
    assert embeds.grad[1].abs().sum() == 0


def test_media_embeddings_with_ids_or_with_positions(model):
    media = torch.randn(3, 32)
    ids = torch.tensor([[999, 999, 999, 7, 8, GMASK, SOP, 20]])  # placeholder ids lie outside the vocabulary
    embeds = torch.cat((media, model.get_input_embeddings()(ids[0, 3:])))[None]
    expected = slow_logits(WEIGHTS, [0, 0, 0, *ids[0, 3:].tolist()], media)
    positions, token_types = chatglm_positions(ids, None, model.config)
    for inputs in (
        {"input_ids": ids},
        {"position_ids": positions, "token_type_ids": token_types},
        {"position_ids": positions},
    ):
        assert (model(inputs_embeds=embeds, **inputs).logits[0] - expected).abs().max() < 2e-5


def test_token_types_say_what_sees_what_follows(model):
    ids = torch.tensor([[7, 8, GMASK, SOP, 20, 21], [7, 8, GMASK, SOP, 20, 22]])
    causal, whole = model(ids).logits, model(ids, token_type_ids=torch.zeros_like(ids)).logits
    assert torch.equal(causal[0, :5], causal[1, :5])
    assert not torch.isclose(whole[0, :5], whole[1, :5]).all(-1).any()


def test_a_mask_of_four_dimensions_is_used_as_it_is(model):
    ids = torch.tensor([PROMPTS["answered"]])
    causal, number = torch.ones(1, 1, ids.shape[1], ids.shape[1]).tril().bool(), ids.shape[1] - 2
    got = model(ids, attention_mask=causal).logits
    torch.testing.assert_close(got, model(ids, token_type_ids=torch.ones_like(ids)).logits, atol=1e-5, rtol=1e-5)
    cache = model(ids[:, :number], use_cache=True).past_key_values
    got = model(ids[:, number:], attention_mask=causal[:, :, number:], past_key_values=cache).logits
    torch.testing.assert_close(got, model(ids).logits[:, number:], atol=1e-5, rtol=1e-5)


def test_hidden_states_are_the_inputs_of_each_layer_and_the_normed_output(model):
    ids = torch.tensor([PROMPTS["middle"]])
    outputs = build("eager")(ids, output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(1, 7, 32)] * 3
    assert torch.equal(outputs.hidden_states[0], model.get_input_embeddings()(ids))
    last = model.lm_head(outputs.hidden_states[-1])
    assert (last - outputs.logits).abs().max() < 1e-5
    weights = outputs.attentions[0][0]
    assert weights.shape == (2, 7, 7)
    assert weights[:, 0, 5].min() > 0  # the prefix sees what follows in it
    assert weights[:, :6, 6].abs().max() == 0  # but not <sop>


def test_flash_attention_knows_no_prefix_and_is_refused():
    with pytest.raises(ValueError, match="does not support Flash Attention 2"):
        build("flash_attention_2")


def test_eager_scores_of_deep_layers_stay_within_fp16():
    query = torch.full((1, 1, 2, 16), 300.0, dtype=torch.float16)  # scores of 360000
    layer = types.SimpleNamespace(layer_idx=27)
    _, weights = eager_attention_forward(layer, query, query, query, None, scaling=0.25)
    assert weights.tolist() == [[[[0.5, 0.5], [0.5, 0.5]]]]


def test_bad_input_is_refused(model):
    embeds = torch.zeros(1, 3, 32)
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="row 0 of input_ids has no <sop>"):
        model(inputs_embeds=embeds)
    with pytest.raises(ValueError, match=r"input_ids must lie in 0..63, got 5..130001"):
        model(torch.tensor([[5, 130001, SOP]]))
    expected = r"position_ids must have shape \(2, batch, length\) = \(2, 1, {}\), got {}"
    with pytest.raises(ValueError, match=expected.format(3, r"\(3, 1, 3\)")):
        model(inputs_embeds=embeds, position_ids=torch.zeros(3, 1, 3, dtype=torch.long))
    cache = model(torch.tensor([ROWS[0]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=expected.format(1, r"\(1, 1\)")):
        model(torch.tensor([[20]]), past_key_values=cache, position_ids=torch.tensor([[7]]))
    first = {"position_ids": torch.zeros(2, 1, 1, dtype=torch.long), "use_cache": True}
    with pytest.raises(ValueError, match="past_key_values holds 1 tokens: give the position_ids"):
        model(torch.tensor([[20]]), past_key_values=model(torch.tensor([[7]]), **first).past_key_values)  # no prompt
    del cache.first_positions
    with pytest.raises(ValueError, match="past_key_values holds 7 tokens: give the position_ids"):
        model(torch.tensor([[20]]), past_key_values=cache)


@pytest.mark.parametrize("legacy", [False, True])
def test_embeddings_and_places_give_what_ids_give(legacy):
    model, (ids, mask) = build(legacy_sop_position=legacy), pad(ROWS)
    expected = model(ids, attention_mask=mask).logits
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits, expected)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    assert torch.equal(model(ids, attention_mask=mask, position_ids=places).logits, expected)
    filled = places.masked_fill(mask == 0, 1)  # what stands at padding does not matter
    got = model(ids, attention_mask=mask, position_ids=filled).logits
    torch.testing.assert_close(got[mask.bool()], expected[mask.bool()], atol=1e-6, rtol=1e-6)
    row = torch.tensor([ROWS[0]])
    one_place_missing = torch.tensor([[0, 1, 2, 4, 5, 6, 7]])
    shifted = model(row, position_ids=one_place_missing).logits - model(row).logits
    assert shifted.abs().max() > 1e-3


@pytest.mark.parametrize("legacy", [False, True])
def test_a_cache_knows_the_positions_of_what_follows(legacy):
    model, (ids, mask) = build(legacy_sop_position=legacy), pad(ROWS)
    words = torch.tensor([[20, 21, 22]]).expand(3, -1)
    whole_mask = torch.cat([mask, torch.ones_like(words)], 1)
    whole = model(torch.cat([ids, words], 1), attention_mask=whole_mask).logits[:, -3:]
    cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
    first = model(words[:, :2], attention_mask=whole_mask[:, :-1], past_key_values=cache).logits
    last = model(words[:, 2:], attention_mask=whole_mask, past_key_values=cache).logits
    torch.testing.assert_close(torch.cat([first, last], 1), whole, atol=1e-5, rtol=1e-5)
    row, alone = torch.tensor(ROWS[:1]), model(torch.tensor([[*ROWS[0], 20, 21, 22]])).logits[:, -3:]
    kept = model(row, use_cache=True).past_key_values
    torch.testing.assert_close(model(words[:1], past_key_values=kept).logits, alone, atol=1e-5, rtol=1e-5)  # no mask
    with pytest.raises(ValueError, match="past_key_values holds 10 tokens: give the position_ids"):
        model(words[:2], past_key_values=kept)  # of one row
    shortest = model(torch.tensor([[GMASK, SOP]]), use_cache=True).past_key_values
    expected = model(torch.tensor([[GMASK, SOP, 20]])).logits[:, -1:]
    torch.testing.assert_close(model(words[:1, :1], past_key_values=shortest).logits, expected, atol=1e-5, rtol=1e-5)
    cache.crop(-3)  # another answer to the same question
    again = model(words, attention_mask=whole_mask, past_key_values=cache).logits
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=1e-5)


def test_rotary_tables_survive_casts_and_can_be_half_precision(model):
    position_ids = torch.full((2, 1, 1), 1999)
    frequencies = (1.0 / 10000 ** (torch.arange(0, 8, 2) / 8)).half().double()
    expected = (1999 * frequencies).cos()
    cast = copy.deepcopy(model).to(torch.bfloat16).transformer.rotary_emb(position_ids, torch.float32)[0]
    assert cast.shape == (1, 1, 1, 1, 2, 2, 4)
    assert (cast - expected).abs().max() < 2e-4  # fp32 angles near 2000
    half = build(rope_half_precision=True).transformer.rotary_emb(position_ids, torch.float32)[0]
    assert torch.equal(half[0, 0, 0, 0, 0, 0], (torch.tensor(1999.0).half() * frequencies.half()).cos().float())
    assert (half - expected).abs().max() > 0.01
    bits = functools.partial(ChatGLMRotaryEmbedding.compute_inv_freq_bits, model.config)
    assert_equal_whatever_is_made_by_default(lambda: {"bits": bits()})
    made_in_bf16 = ChatGLMForConditionalGeneration._from_config(model.config, dtype=torch.bfloat16)
    assert torch.equal(made_in_bf16.transformer.rotary_emb.inv_freq_bits, bits())


# ---- training -------------------------------------------------------------------------------------------------------


def test_training_projects_supervised_positions_only_and_gets_the_same_loss():
    model = build()
    ids, mask = pad([PROMPTS["answered"], [5, GMASK, SOP, 20, EOP]], "right")
    labels = ids.masked_fill((mask == 0) | (ids < 20) | (ids == GMASK), -100)
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[:-1].numel()))
    full = model(ids, attention_mask=mask, labels=labels)
    full.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    by_hand = torch.nn.functional.cross_entropy(full.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert full.loss.item() == pytest.approx(by_hand.item(), abs=1e-6)
    model.zero_grad()
    model.train()
    sparse = model(ids, attention_mask=mask, labels=labels)
    sparse.loss.backward()
    assert sparse.logits is None
    assert sparse.past_key_values is None
    assert rows == [24, int((labels != -100).sum())]
    assert sparse.loss.item() == pytest.approx(full.loss.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() < 1e-5, name
    assert model(ids, attention_mask=mask, labels=labels, logits_to_keep=12).logits.shape == (2, 12, 64)
    scaled = model(ids, attention_mask=mask, labels=labels, num_items_in_batch=torch.tensor(2 * 8)).loss
    assert scaled.item() == pytest.approx(full.loss.item() * 8 / 16, abs=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradient_to_the_media(reentrant):
    model = build().train()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    ids = torch.tensor([PROMPTS["answered"]])
    labels = ids.masked_fill(ids < SOP, -100)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(0)
        embeds = torch.randn(1, ids.shape[1], 32, requires_grad=True)
        model(ids, inputs_embeds=embeds, labels=labels, use_cache=False).loss.backward()
        gradients.append(embeds.grad)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)

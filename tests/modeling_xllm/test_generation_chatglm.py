# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM's generate in every mode against recomputation without a cache."""

import contextlib
import copy
import functools

import pytest
import torch
from fixtures.chatglm_helpers import REFERENCE, ROWS, build, pad
from fixtures.chatglm_oracle import CONFIG, GMASK, PROMPTS, SOP
from tiny import assert_equal_whatever_is_made_by_default
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import Cache, DynamicCache, GPT2Config, GPT2LMHeadModel, StaticCache, masking_utils
from transformers.integrations import flex_attention as flex_integration

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm.modeling_xllm.language_models import LanguageModelGenerationMixin, float8_saturates
from xllm.modeling_xllm.modeling_chatglm import ChatGLMLanguageModel, chatglm_positions, freeze_answer


@pytest.fixture(scope="module")
def model() -> ChatGLMForConditionalGeneration:
    return build()


def recompute(model, ids: list[int], steps: int) -> list[int]:
    """Greedy continuation without a cache and without `generate`."""
    for _ in range(steps):
        ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_positions_of_further_tokens_by_hand():
    language = ChatGLMLanguageModel(ChatGLMConfig(**CONFIG))
    prompt = torch.tensor([[[0, 1, 2, 2]], [[0, 0, 0, 1]]])  # (2, B, L): `<sop>` is the last
    assert language.next_positions(prompt, 2).tolist() == [[[0, 1, 2, 2, 2, 2]], [[0, 0, 0, 1, 2, 3]]]
    shortest = torch.tensor([[[0, 0]], [[0, 1]]])
    assert language.next_positions(shortest, 1).tolist() == [[[0, 0, 0]], [[0, 1, 2]]]
    last = torch.tensor([[[2]], [[5]]])  # of an answer
    assert language.next_positions(last, 1).tolist() == [[[2, 2]], [[5, 6]]]
    drafted = torch.tensor([[[0, 1, 2, 2, 3, 4]], [[0, 0, 0, 1, 2, 3]]])  # as transformers counts them
    assert language.drafted_positions(drafted).tolist() == [[[0, 1, 2, 2, 2, 2]], [[0, 0, 0, 1, 2, 3]]]
    places = torch.tensor([[0, 1]])
    assert language.drafted_positions(places) is places
    assert language.empty_prompt() == [GMASK, SOP]
    assert language.layout(torch.tensor([[7, GMASK, SOP]]), None, 3) == language.layout(None, None) == {}


@pytest.mark.parametrize(
    ("given", "frozen"),
    [
        ([[0, 1, 2, 2, 3, 4], [0, 0, 0, 1, 2, 3]], [0, 1, 2, 2, 2, 2]),  # <sop> and all behind it at the mask's place
        ([[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]], [0, 1, 2, 3, 2, 2]),  # <sop> in its own, as of March 2023
        ([[0, 1, 2, 1, 2, 3], [0, 0, 0, 1, 2, 3]], [0, 1, 2, 1, 1, 1]),  # [MASK] is not the last
        ([[3, 4, 5], [2, 3, 4]], [3, 3, 3]),  # an answer alone goes on where it begins
        ([[7, 8], [3, 4]], [7, 7]),
        ([[5, 6, 7], [1, 2, 3]], [5, 5, 5]),
    ],
)
def test_an_answer_stands_in_one_place(given, frozen):
    positions = torch.tensor(given)[:, None]
    assert freeze_answer(positions)[0, 0].tolist() == frozen
    assert torch.equal(freeze_answer(positions)[1], positions[1])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_drafted_tokens_of_a_step_stand_where_the_mask_is(model, number):
    """transformers has counted on for each of them."""
    prompt = torch.tensor([[7, 8, 9, GMASK, SOP]])
    cache = model(prompt, use_cache=True).past_key_values
    ids, counts = torch.cat([prompt, torch.full((1, number), 20)], 1), torch.arange(number + 1)
    positions = torch.stack([torch.cat([torch.arange(4), 3 + counts]), torch.cat([torch.zeros(4), 1 + counts])])[
        :, None
    ]
    if number == 1:
        positions[0, :, -1] = 3  # the answer goes on by itself
    step = model.prepare_inputs_for_generation(
        ids, next_sequence_length=number, past_key_values=cache, position_ids=positions.long(), use_cache=True,
        attention_mask=torch.ones_like(ids),
    )["position_ids"]  # fmt: skip
    assert step[0, 0, -number:].tolist() == [3] * number
    assert step[1, 0, -number:].tolist() == list(range(2, 2 + number))


def test_greedy_equals_the_slow_model(model):
    assert model.generate(torch.tensor([PROMPTS["middle"]]), max_new_tokens=8, eos_token_id=None)[0].tolist() == (
        REFERENCE["greedy"].tolist()
    )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"logits_to_keep": 0},
    ],
    ids=str,
)
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_modes_equal_recomputation_of_each_row_alone(options, legacy, attention):
    model = build(attention, legacy_sop_position=legacy)
    ids, mask = pad(ROWS)
    got = model.generate(ids, attention_mask=mask, max_new_tokens=9, eos_token_id=None, do_sample=False, **options)
    for row, sequence, fill in zip(ROWS, got, (mask == 0).sum(-1)):
        assert sequence[fill:].tolist() == recompute(model, row, 9)


class NoStream(contextlib.nullcontext):
    """Stands for a CUDA stream, so that the moves of offloaded caches can be followed without a GPU."""

    def wait_stream(self, other) -> None:
        pass


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloaded_caches(model, monkeypatch, kind, beams):
    monkeypatch.setattr(torch, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: NoStream())
    offloaded = []
    monkeypatch.setattr(Cache, "offload", lambda cache, layer, *args: offloaded.append(layer))
    ids, mask = pad(ROWS)
    options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, "num_beams": beams}
    got = model.generate(ids, cache_implementation=kind, **options)
    assert torch.equal(got, model.generate(ids, use_cache=False, **options))
    assert offloaded[:2] == [0, 1]


@pytest.mark.skipif(not float8_saturates(), reason="NOT TESTED: caches quantised by fp8; it needs a newer torch")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_quantised_cache_is_near_recomputation(legacy):
    model = build(legacy_sop_position=legacy)
    ids, mask = pad(ROWS)
    options = {"max_new_tokens": 9, "eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    quantised = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    outputs = model.generate(ids, attention_mask=mask, **options, **quantised)
    assert type(outputs.past_key_values).__name__ == "QuantizedCache"
    for row, (sequence, fill) in enumerate(zip(outputs.sequences, (mask == 0).sum(-1))):
        expected = model(sequence[None, fill:]).logits[0, -10:-1]
        got = torch.stack([step[row] for step in outputs.logits])
        assert (got - expected).abs().max() < 0.3  # of 6; counting one position too far makes it 1.5


@torch.no_grad()  # flex attention has no backward on the CPU
@pytest.mark.parametrize("beams", [1, 3])
def test_flex_attention(monkeypatch, beams):
    # Uncompiled: it takes a minute, and the C++ that torch 2.14 writes for a single query is not valid.
    monkeypatch.setattr(masking_utils, "create_block_mask", lambda _compile, **kwargs: create_block_mask(**kwargs))
    monkeypatch.setattr(flex_integration, "WrappedFlexAttention", lambda training: lambda: flex_attention)
    model, reference = build("flex_attention"), build()
    for side in ("left", "right"):
        ids, mask = pad(ROWS, side)
        expected = reference(ids, attention_mask=mask).logits[mask.bool()]
        assert (model(ids, attention_mask=mask).logits[mask.bool()] - expected).abs().max() < 1e-5
    ids, mask = pad(ROWS)
    options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, "num_beams": beams}
    assert torch.equal(model.generate(ids, **options), reference.generate(ids, use_cache=False, **options))


def test_decoding_with_a_static_cache_is_one_graph():
    model = build()
    ids, mask = pad(ROWS)
    options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, "do_sample": False}
    expected = model.generate(ids, **options)
    forward, compiled, lengths = model.forward, torch.compile(model.forward, backend="eager", fullgraph=True), []

    @functools.wraps(forward)
    def compile_decoding(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return (compiled if lengths[-1] == 1 else forward)(*args, **kwargs)

    model.forward = compile_decoding
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch.equal(model.generate(ids, cache_implementation="static", **options), expected)
    assert lengths == [7, 1, 1, 1, 1, 1]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


@pytest.mark.parametrize("legacy", [False, True])
def test_drafted_tokens_get_the_right_positions(legacy):
    model = build(legacy_sop_position=legacy)
    prompt = [20, 21, 22, 23, 20, 21, GMASK, SOP]
    options = {"max_new_tokens": 14, "eos_token_id": None, "do_sample": False}
    expected = recompute(model, prompt, 14)
    seen = []
    hook = model.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["position_ids"]), with_kwargs=True
    )
    looked_up = model.generate(torch.tensor([prompt]), prompt_lookup_num_tokens=3, **options)
    hook.remove()
    assert looked_up[0].tolist() == expected
    drafted = [positions for positions in seen[1:] if positions.shape[-1] > 1]
    assert drafted
    assert all((positions[0, :, positions[1, 0] > 1] == 6).all() for positions in seen)
    assistant, drafting = copy.deepcopy(model), []
    assistant.generation_config.update(num_assistant_tokens=4, assistant_confidence_threshold=0.0)
    assistant.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: drafting.append(kwargs["position_ids"]), with_kwargs=True
    )
    assert model.generate(torch.tensor([prompt]), assistant_model=assistant, **options)[0].tolist() == expected
    assert len(drafting) > 3
    assert all((positions[0, :, positions[1, 0] > 1] == 6).all() for positions in drafting)


def test_beams_and_returned_sequences_equal_each_row_alone(model):
    ids, mask = pad(ROWS)
    options = {
        "max_new_tokens": 7,
        "num_beams": 3,
        "num_return_sequences": 2,
        "do_sample": False,
        "eos_token_id": None,
    }
    together = model.generate(ids, attention_mask=mask, **options)
    uncached = model.generate(ids, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(together, uncached)
    for index, row in enumerate(ROWS):
        alone = model.generate(torch.tensor([row]), **options)
        assert torch.equal(together[2 * index : 2 * index + 2, -7:], alone[:, -7:])


def test_sampling_with_and_without_a_cache_draws_the_same(model):
    ids, mask = pad(ROWS)
    drawn = []
    for use_cache in (True, False):
        torch.manual_seed(5)
        drawn.append(model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=True, use_cache=use_cache))
    assert torch.equal(*drawn)


@pytest.mark.parametrize("give", ["ids", ("position_ids", "token_type_ids"), ("position_ids",), ()], ids=str)
def test_generation_from_embeddings(model, give):
    ids, mask = pad(ROWS)
    embeds = model.get_input_embeddings()(ids)
    options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, "do_sample": False}
    expected = model.generate(ids, **options)
    if give == "ids":
        assert torch.equal(model.generate(ids, inputs_embeds=embeds, **options), expected)
        other = {"inputs_embeds": -embeds, "attention_mask": mask}  # which tell no token
        found = model.generate(ids, **{**options, **other})[:, -6]
        assert torch.equal(found, model(ids, **other).logits[:, -1].argmax(-1))
    else:
        layout = dict(zip(give, chatglm_positions(ids, mask, model.config)))
        got = model.generate(inputs_embeds=embeds, **layout, **options)
        assert torch.equal(got, expected[:, ids.shape[1] :])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["places", "positions"])
def test_generation_with_the_callers_positions(model, kind, cache):
    ids, mask = pad(ROWS)
    options = {"attention_mask": mask, "max_new_tokens": 6, "eos_token_id": None, "cache_implementation": cache}
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    given = places if kind == "places" else chatglm_positions(ids, mask, model.config)[0]
    for beams in (1, 3):
        expected = model.generate(ids, num_beams=beams, **options)
        assert torch.equal(model.generate(ids, position_ids=given, num_beams=beams, **options), expected)


@torch.no_grad()
@pytest.mark.parametrize("negative", [None, [5, 9, GMASK, SOP]])
def test_classifier_free_guidance_is_its_formula(model, negative):
    """Without a negative prompt the guide is the shortest prompt there is."""
    ids, scale = torch.tensor([PROMPTS["middle"]] * 2), 1.7
    given = {} if negative is None else {"negative_prompt_ids": torch.tensor([negative] * 2)}
    options = {"max_new_tokens": 5, "eos_token_id": None, "do_sample": False, "guidance_scale": scale}
    rows, guides = [PROMPTS["middle"]], [negative or [GMASK, SOP]]
    for _ in range(5):
        wanted, guide = (model(torch.tensor(text)).logits[0, -1].log_softmax(-1) for text in (rows, guides))
        word = int((scale * (wanted - guide) + guide).argmax())
        rows, guides = [[*rows[0], word]], [[*guides[0], word]]
    assert model.generate(ids, **options, **given).tolist() == rows * 2
    drawn = {**options, "do_sample": True, "top_k": 1, "num_return_sequences": 2}
    if negative is None:
        assert model.generate(ids[:1], **drawn).tolist() == rows * 2


def test_guidance_that_weighs_nothing_leaves_beams_as_they_are(model):
    ids, options = torch.tensor([PROMPTS["middle"]]), {"num_beams": 3, "max_new_tokens": 4, "eos_token_id": None}
    assert torch.equal(model.generate(ids, guidance_scale=1 + 1e-6, **options), model.generate(ids, **options))


@torch.no_grad()
def test_a_loop_that_keeps_no_positions_goes_on_without(model):
    outputs, mask = model(torch.tensor([PROMPTS["middle"]])), torch.ones(1, 7, dtype=torch.long)
    kept = model._update_model_kwargs_for_generation(outputs, {"attention_mask": mask})
    assert kept["attention_mask"].tolist() == [[1] * 8]
    assert "position_ids" not in kept
    given = {"position_ids": torch.tensor([[[0, 1, 1]], [[0, 0, 1]]]), "attention_mask": mask[:, :3]}
    kept = model._update_model_kwargs_for_generation(outputs, {**given, "use_cache": False})
    assert kept["position_ids"].tolist() == [[[0, 1, 1, 1]], [[0, 0, 1, 2]]]
    assert "token_type_ids" not in kept
    kept = model._update_model_kwargs_for_generation(outputs, {**given, "use_cache": True})  # all follow from the last
    assert kept["position_ids"].tolist() == [[[1]], [[2]]]


@torch.no_grad()
def test_a_masked_token_behind_a_cache_takes_no_position(model):
    text = PROMPTS["middle"]
    cache = model(torch.tensor([text]), use_cache=True).past_key_values
    mask = torch.tensor([[1] * len(text) + [1, 0, 1]])
    found = model(torch.tensor([[20, 9, 21]]), attention_mask=mask, past_key_values=cache).logits[0, [0, 2]]
    torch.testing.assert_close(found, model(torch.tensor([[*text, 20, 21]])).logits[0, -2:], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generation_goes_on_from_a_cache_that_holds_the_prefix(model, kind):
    prompt = torch.tensor([PROMPTS["middle"]])
    options = {"eos_token_id": None, "do_sample": False}
    cache = (
        DynamicCache(config=model.config) if kind == "dynamic" else StaticCache(config=model.config, max_cache_len=32)
    )
    some = model.generate(prompt, past_key_values=cache, max_new_tokens=4, **options)
    more = model.generate(some, past_key_values=cache, max_new_tokens=4, **options)
    assert torch.equal(more, model.generate(prompt, max_new_tokens=8, **options))


def test_a_batch_goes_on_from_its_cache_in_several_ways(model):
    ids, mask = pad(ROWS)
    options = {"eos_token_id": None, "do_sample": False}
    cache = DynamicCache(config=model.config)
    some = model.generate(ids, attention_mask=mask, past_key_values=cache, max_new_tokens=3, **options)
    for word in (20, 21):
        turned = torch.cat((some, torch.full((3, 1), word)), dim=1)
        turned_mask = torch.cat((mask, torch.ones(3, 4, dtype=torch.long)), dim=1)
        got = model.generate(
            turned, attention_mask=turned_mask, past_key_values=copy.deepcopy(cache), max_new_tokens=4, **options
        )
        for sequence, fill in zip(got, (mask == 0).sum(-1)):
            row = sequence[fill:].tolist()
            assert row == recompute(model, row[:-4], 4)


def test_generation_refuses_what_a_bidirectional_prefix_cannot_do(model):
    prompt = torch.tensor([PROMPTS["middle"]])
    with pytest.raises(ValueError, match="prefill_chunk_size=2: the prompt of a chatglm is seen in both directions"):
        model.generate(prompt, prefill_chunk_size=2)
    positions, types = chatglm_positions(prompt, None, model.config)
    cache = model(
        prompt[:, :3], position_ids=positions[..., :3], token_type_ids=types[:, :3], use_cache=True
    ).past_key_values
    with pytest.raises(ValueError, match="holds 3 tokens but the prompt's bidirectional prefix is longer"):
        model.generate(prompt, past_key_values=cache)
    with pytest.raises(ValueError, match="row 0 of input_ids has no <sop>"):
        model.generate(inputs_embeds=model.get_input_embeddings()(prompt[:, :3]))
    with pytest.raises(ValueError, match="row 0 of input_ids has no <sop>"):
        model.generate(torch.tensor([[5, 6, 7]]))
    with pytest.raises(ValueError, match="position_ids fall within a row"):
        model.generate(prompt, position_ids=torch.tensor([[0, 1, 2, 0, 1, 2, 3]]))


def test_without_a_prompt_the_shortest_one_is_answered(model):
    options = {"max_new_tokens": 4, "eos_token_id": None, "do_sample": False}
    assert model.generate(**options).tolist() == [recompute(model, [GMASK, SOP], 4)]
    two = model.generate(attention_mask=torch.ones(2, 2, dtype=torch.long), **options)
    assert two.tolist() == [recompute(model, [GMASK, SOP], 4)] * 2


@pytest.mark.parametrize("give", ["nothing", "ids", "embeddings"])
def test_a_process_that_makes_other_tensors_by_default_says_the_same(model, give):
    ids = torch.tensor([PROMPTS["middle"]])
    options = {"max_new_tokens": 3, "eos_token_id": None, "do_sample": False}
    given = {"nothing": {}, "ids": {"input_ids": ids, "guidance_scale": 1.7}}
    given["embeddings"] = {"inputs_embeds": model.get_input_embeddings()(ids), "attention_mask": torch.ones_like(ids)}
    assert_equal_whatever_is_made_by_default(lambda: {"answer": model.generate(**given[give], **options)})


def test_the_mixin_leaves_other_language_models_alone():
    class Other(GPT2LMHeadModel, LanguageModelGenerationMixin):
        pass

    # Each position has an embedding of its own.
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, initializer_range=1.0)
    plain = GPT2LMHeadModel(config).eval()
    other = Other(config).eval()
    other.load_state_dict(plain.state_dict())
    ids, mask = torch.tensor([[0, 5, 6, 7], [4, 5, 6, 8]]), torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    for options in ({}, {"num_beams": 2}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}):
        options = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, **options}
        assert torch.equal(plain.generate(ids, **options), other.generate(ids, **options))

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A third language model with a mask of its own: one class, one registration; forward, train, `generate`."""

import re
from types import SimpleNamespace

import pytest
import torch
from tiny import (
    IMAGE,
    PIXELS,
    QUERIES,
    SOP,
    TEXT,
    batch_of,
    left_pad,
    mixed_rows,
    prompt,
    tiny_config,
    tiny_text_config,
)
from transformers import (
    AutoConfig,
    BartConfig,
    BertConfig,
    DeepseekV4Config,
    DynamicCache,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MambaConfig,
    OPTConfig,
    StaticCache,
    T5Config,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

from xllm import XLLMConfig, XLLMForConditionalGeneration, freeze_for_stage
from xllm.modeling_xllm import language_models
from xllm.modeling_xllm.language_models import (
    LANGUAGE_MODELS,
    CacheNote,
    LanguageModel,
    PrefixLanguageModel,
    embed_tokens,
    find_tokens,
    language_model_of,
    register_language_model,
)


class PrefixLlamaConfig(LlamaConfig):
    """A Llama that reads all before `<sop>` in both directions."""

    model_type = "test_prefix_llama"


class PrefixLlama(PrefixLanguageModel):
    """Its plan: `<sop>` begins the answer."""

    def build(self):
        return LlamaModel._from_config(self.config)

    def token_types(self, input_ids, attention_mask):
        return (input_ids == SOP).long().cumsum(-1).clamp(max=1)


@pytest.fixture
def model():
    AutoConfig.register("test_prefix_llama", PrefixLlamaConfig, exist_ok=True)
    register_language_model("test_prefix_llama", PrefixLlama)
    config = tiny_config("llama")
    config.text_config = PrefixLlamaConfig(
        **{**tiny_text_config("llama").to_dict(), "model_type": "test_prefix_llama"}
    )
    torch.manual_seed(0)
    model = XLLMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    yield model
    del LANGUAGE_MODELS["test_prefix_llama"]


def by_hand(model, ids: list[int]) -> torch.Tensor:
    """Logits of one unpadded row by transformers' Llama under a mask that is written out."""
    causal = LlamaForCausalLM(model.config.text_config).eval()
    causal.model.load_state_dict(model.model.language_model.state_dict())
    causal.lm_head.load_state_dict(model.lm_head.state_dict())
    length, prefix = len(ids), ids.index(SOP)
    sees = torch.ones(length, length).tril().bool()
    sees[:prefix, :prefix] = True
    mask = torch.zeros(length, length).masked_fill(~sees, torch.finfo().min)
    return causal(input_ids=torch.tensor([ids]), attention_mask=mask[None, None]).logits[0]


@torch.no_grad()
def test_the_prompt_is_read_in_both_directions(model):
    rows = [[*prompt(TEXT), 15, 16], [*prompt([20, 21]), 17]]
    batch = left_pad(rows)
    logits = model(**batch).logits
    for row, ids in enumerate(rows):
        expected = by_hand(model, ids)
        torch.testing.assert_close(model(input_ids=torch.tensor([ids])).logits[0], expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits[row, -len(ids) :], expected, atol=1e-5, rtol=1e-4)
    causal = XLLMForConditionalGeneration(tiny_config("llama")).eval()
    causal.load_state_dict(model.state_dict())
    assert not torch.allclose(causal(**batch).logits[0, -1], logits[0, -1], atol=1e-3)


@torch.no_grad()
def test_words_see_a_picture_that_comes_behind_them(model):
    ids = torch.tensor([prompt(TEXT, [IMAGE] * QUERIES)])
    pictures = torch.randn(2, 3, PIXELS, PIXELS)
    first, second = (model.model(input_ids=ids, pixel_values=picture[None])[0][0, 0] for picture in pictures)
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize(
    "mode",
    [{}, {"num_beams": 3}, {"use_cache": False}, {"cache_implementation": "static"}, {"prompt_lookup_num_tokens": 2}],
    ids=str,
)
@torch.no_grad()
def test_generation_equals_uncached_recomputation(model, mode):
    for ids, media in mixed_rows():
        ids = torch.tensor([ids])
        output = model.generate(input_ids=ids, **media, max_new_tokens=5, do_sample=False, eos_token_id=-1, **mode)
        logits = model(input_ids=output[:, :-1], **media).logits[0, ids.shape[1] - 1 :]
        logits[:, model.model.placeholder_ids()] = -torch.inf
        if "num_beams" not in mode:
            assert logits.argmax(-1).tolist() == output[0, ids.shape[1] :].tolist()
        else:  # the best of three beams is at least as good as the greedy answer
            greedy = model.generate(input_ids=ids, **media, max_new_tokens=5, do_sample=False, eos_token_id=-1)
            assert score(model, output, ids, media) >= score(model, greedy, ids, media) - 1e-4


def score(model, output, ids, media) -> float:
    logits = model(input_ids=output[:, :-1], **media).logits[0, ids.shape[1] - 1 :]
    logits[:, model.model.placeholder_ids()] = -torch.inf
    return float(logits.log_softmax(-1).gather(1, output[0, ids.shape[1] :, None]).sum())


@torch.no_grad()
def test_a_row_is_answered_the_same_alone_and_in_a_batch(model):
    rows = mixed_rows()
    batch = batch_of(rows)
    mode = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": -1}
    together = model.generate(**batch, **mode)[:, batch["input_ids"].shape[1] :]
    for row, (ids, media) in zip(together, rows):
        assert row.tolist() == model.generate(input_ids=torch.tensor([ids]), **media, **mode)[0, len(ids) :].tolist()


def test_training_computes_what_evaluation_does(model):
    freeze_for_stage(model, "integrate")
    batch = batch_of(mixed_rows())
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100  # behind a speech placeholder that nothing fills, training predicts from what is before it
    expected = model(**batch, labels=labels).loss
    torch.testing.assert_close(model.train()(**batch, labels=labels).loss, expected, atol=1e-5, rtol=1e-5)


def test_what_cannot_be_generated_is_refused(model, monkeypatch):
    ids = torch.tensor([prompt(TEXT)])
    with pytest.raises(ValueError, match="`streamer` cannot be used with beam search"):
        model.generate(ids, num_beams=2, streamer=SimpleNamespace())
    monkeypatch.setattr(language_models, "float8_saturates", lambda: False)  # large states would be NaN
    fp8 = {"cache_implementation": "quantized", "cache_config": {"backend": "fp8"}}
    with pytest.raises(ValueError, match="cache_config, backend 'fp8': torch .* makes NaN of states"):
        model.generate(ids, max_new_tokens=1, **fp8)
    model.generate(ids, max_new_tokens=1)
    with pytest.raises(ValueError, match="prefill_chunk_size=2: the prompt of a test_prefix_llama is seen in both"):
        model.generate(ids, prefill_chunk_size=2, max_new_tokens=1)
    cache = DynamicCache(config=model.config.text_config)
    model(input_ids=ids[:, :2], past_key_values=cache, use_cache=True)
    with pytest.raises(
        ValueError, match="past_key_values holds 2 tokens but the prompt's bidirectional prefix is longer"
    ):
        model.generate(ids, past_key_values=cache, max_new_tokens=1)


@torch.no_grad()
def test_it_is_opened_from_a_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = XLLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert type(language_model_of(again.config)) is PrefixLlama
    batch = batch_of(mixed_rows())
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert {"LlamaDecoderLayer"} <= set(again._no_split_modules)


def test_any_other_language_model_needs_no_entry():
    assert type(language_model_of(tiny_config("llama"))) is LanguageModel
    assert LanguageModel(LlamaConfig(dtype="float16")).note() == ""
    assert "ChatGLMBlock" in XLLMForConditionalGeneration(tiny_config("chatglm"))._no_split_modules


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (BertConfig(), "a bert is an encoder, or has one"),
        (T5Config(), "a t5 is an encoder, or has one"),
        (BartConfig(is_encoder_decoder=False, is_decoder=True), "a bart is an encoder, or has one"),  # BartForCausalLM
        (MambaConfig(), r"a mamba hands on a state .*\(past_key_values\)"),
        (OPTConfig(word_embed_proj_dim=16), "its embeddings are 16 wide, its layers 768"),
        (DeepseekV4Config(), "a deepseek_v4 chooses experts by token ids"),
        (GPTNeoXConfig(), ""),  # an is_decoder that means nothing
        (GPT2Config(), ""),  # layers for an encoder that it need not have
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_is_no_causal_language_model_is_named_before_it_is_built(config, problem):
    assert re.match(problem + "$" * (not problem), LanguageModel(config).problem())
    if problem:
        with pytest.raises(ValueError, match=f"text_config: {problem}.*; give another language model"):
            XLLMForConditionalGeneration(XLLMConfig(text_config=config))


def test_positions_of_any_language_model_by_hand():
    language, mask = LanguageModel(LlamaConfig()), torch.tensor([[0, 0, 1, 1, 1], [1, 0, 1, 1, 0]])
    assert language.layout(None, mask)["position_ids"].tolist() == [[0, 0, 0, 1, 2], [0, 0, 1, 2, 2]]
    assert language.layout(None, mask, 3)["position_ids"].tolist() == [[1, 2], [2, 2]]
    assert language.layout(None, None) == language.layout(None, torch.ones(1, 1, 2, 2)) == {}
    prefix, ids = PrefixLlama(LlamaConfig()), torch.tensor([[11, 12, SOP, 13, 14]]).expand(2, -1)
    assert prefix.layout(ids, mask)["token_type_ids"].tolist() == [[0, 0, 1, 1, 1]] * 2
    for given in ((ids, mask, 3), (None, mask, 0)):  # an answer, and a text that only embeddings tell
        assert set(prefix.layout(*given)) == {"position_ids"}
    places = prefix.next_positions(torch.tensor([[2, 3, 4], [0, 0, 7]]), 2)
    assert places.tolist() == [[2, 3, 4, 5, 6], [0, 0, 7, 8, 9]]


@pytest.mark.parametrize(
    ("fields", "sees"),
    [
        ({}, True),
        ({"layer_types": ["full_attention"] * 2}, True),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layer_types": ["sliding_attention"]}, False),
        ({"sliding_window": 4}, False),
        ({"attention_chunk_size": 4}, False),
        ({"alibi": True}, False),
        ({"model_type": "bloom"}, False),
        ({"_attn_implementation": "eager"}, False),
    ],
    ids=str,
)
def test_who_takes_the_mask_of_scaled_dot_product_attention(fields, sees):
    config = SimpleNamespace(**{"model_type": "llama", "_attn_implementation": "sdpa", **fields})
    assert LanguageModel(config).sees_all_before() is sees


def test_who_counts_alone():
    assert LanguageModel(LlamaConfig()).counts_alone()
    assert not LanguageModel(LlamaConfig(output_router_logits=True)).counts_alone()
    assert not PrefixLlama(LlamaConfig()).counts_alone()


@pytest.mark.parametrize("first", ["of token", "behind a cache", "a token"])
def test_the_prefix_is_seen_where_it_is_read(model, first):
    """Not behind a filled cache, nor by one token."""
    length = 1 if first == "a token" else 3
    embeds, cache = torch.zeros(1, length, 32), DynamicCache(config=model.config.text_config)
    if first == "behind a cache":
        cache.update(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8), 0)
    types = torch.tensor([[0, 0, 1]])[:, :length]
    language = PrefixLlama(model.model.language_model.config)
    mask = language.mask(embeds, torch.ones(1, length + cache.get_seq_length()), cache, types)
    if first == "of token":
        assert mask[0, 0].tolist() == [[True, True, False], [True, True, False], [True] * 3]
    elif first == "behind a cache":
        assert mask is None or mask[0, 0].tolist() == [[True] * 3 + [False] * 2, [True] * 4 + [False], [True] * 5]
    else:
        assert mask is None or mask.all()
        assert language.mask(
            embeds.expand(1, 2, -1), torch.ones(1, 2), None, torch.zeros(1, 2)
        ).all()  # two, no answer
    four = torch.ones(1, 1, 3, 3)
    assert language.mask(embeds, four, cache, types) is four


@pytest.mark.parametrize("cached", [None, 0, 1, 2])
def test_positions_of_the_caller_stay_and_the_prefix_is_found(model, cached):
    ids, given, cache = torch.tensor([[11, 12, SOP]]), torch.tensor([[0, 2, 4]]), DynamicCache()
    if cached:
        cache.update(torch.zeros(1, 2, cached, 8), torch.zeros(1, 2, cached, 8), 0)
    how = {"attention_mask": torch.ones_like(ids), "past_key_values": None if cached is None else cache}
    found, kwargs = model._expand_inputs_for_generation(2, False, ids, position_ids=given, **how)
    assert found.tolist() == ids.tolist() * 2
    assert kwargs["position_ids"].tolist() == [[0, 2, 4]] * 2
    if cached:  # the prefix was read
        assert "token_type_ids" not in kwargs
    else:
        assert kwargs["token_type_ids"].tolist() == [[0, 0, 1]] * 2
    found, kwargs = model._expand_inputs_for_generation(2, False, ids, **how)
    assert found.tolist() == ids.tolist() * 2
    assert kwargs["attention_mask"].tolist() == [[1, 1, 1]] * 2


@pytest.mark.parametrize(
    ("kind", "changes", "is_laid_out"),
    [
        ("dynamic", {}, True),
        ("dynamic", {"next_sequence_length": 2}, False),
        ("dynamic", {"position_ids": None}, False),
        ("dynamic", {"attention_mask": None}, False),
        ("dynamic", {"attention_mask": torch.ones(1, 1, 1, 3)}, False),
        ("static", {}, False),
        ("one layer slides", {}, False),
        ("none", {}, False),
    ],
    ids=str,
)
def test_the_mask_of_a_single_token_is_laid_out_for_attention(model, kind, changes, is_laid_out):
    """So that nobody asks the device whether it hides anything."""
    caches = {"dynamic": DynamicCache(), "one layer slides": DynamicCache()}
    for cache in caches.values():
        cache.update(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8), 0)
    caches["one layer slides"].layers.append(DynamicSlidingWindowLayer(sliding_window=2))
    caches["static"] = StaticCache(config=model.config.text_config, max_cache_len=4)
    given = {"attention_mask": torch.tensor([[0, 1, 1]]), "position_ids": torch.tensor([[0, 0, 1]])}
    given |= {"next_sequence_length": 1, "past_key_values": caches.get(kind), **changes}

    def is_found() -> bool:
        mask = model.prepare_inputs_for_generation(torch.tensor([[11, 12, SOP]]), **given).get("attention_mask")
        return mask is not None and mask.dtype == torch.bool and mask.tolist() == [[[[False, True, True]]]]

    assert is_found() is is_laid_out
    model.set_attn_implementation("eager")
    assert not is_found()


def test_prompts_and_their_masks_are_of_one_width():
    language, ids, cache = PrefixLlama(LlamaConfig()), torch.tensor([[11, 12, SOP]]), DynamicCache()
    layout = language.prompt_layout(ids, {})
    assert [layout[name].tolist() for name in ("position_ids", "token_type_ids")] == [[[0, 1, 2]], [[0, 0, 1]]]
    with pytest.raises(ValueError, match="attention_mask has 2 columns, input_ids 3$"):
        language.prompt_layout(ids, {"attention_mask": torch.ones(1, 2)})
    cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    with pytest.raises(ValueError, match="input_ids 3: with past_key_values give the whole sequence"):
        language.prompt_layout(ids, {"attention_mask": torch.ones(1, 2), "past_key_values": cache})
    assert "position_ids" in language.prompt_layout(ids, {"past_key_values": cache})  # the cache holds the prefix
    with pytest.raises(ValueError, match="past_key_values holds 2 tokens but the prompt's bidirectional prefix is"):
        language.prompt_layout(torch.tensor([[11, 12, 13, SOP]]), {"past_key_values": cache})
    masked = torch.tensor([[1, 1, 0, 1]])  # what is not attended is no prefix
    assert language.prompt_layout(
        torch.tensor([[11, 12, 13, SOP]]), {"attention_mask": masked, "past_key_values": cache}
    )


def test_a_note_of_a_cache_is_cropped_with_it():
    cache = DynamicCache()
    assert CacheNote.read(cache, "note") is None
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    cache.note = CacheNote([torch.tensor([[1, 2, 3, 4]])])
    assert CacheNote.read(cache, "note").tolist() == [[1, 2, 3]]
    cache.crop(-1)
    assert CacheNote.read(cache, "note").tolist() == [[1, 2]]
    cache.update(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4), 0)
    assert CacheNote.read(cache, "note").tolist() == [[1, 2]]  # not of what is new


def test_tokens_are_told_by_their_embeddings_and_ids_by_their_range():
    embedding = torch.nn.Embedding(4, 3)
    embedding.weight.data[2, :2] = embedding.weight.data[3, :2]  # nearly the same
    embeds = embedding(torch.tensor([[0, 3, 1], [3, 2, 3]]))
    assert find_tokens(embeds, embedding, [3, 1, 4, 9]).tolist() == [[-1, 3, 1], [3, -1, 3]]
    assert embed_tokens(embedding, torch.tensor([[0, 3]])).shape == (1, 2, 3)
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=r"input_ids must lie in 0..3, got"):
            embed_tokens(embedding, torch.tensor([[0, wrong]]))
    with pytest.raises(IndexError):  # single tokens are not looked at before
        embed_tokens(embedding, torch.tensor([[4]]))

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Properties of `generate` with media, over both kinds of language model.

The suite that holds transformers' own (`GenerationTesterMixin`) is not part of its source distribution, and not run
everywhere.
"""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import (
    FRAMES,
    IMAGE,
    PIXELS,
    QUERIES,
    SPEECH,
    VIDEO,
    VOCAB,
    assert_equal_whatever_is_made_by_default,
    left_pad,
    prompt,
    speech,
    tiny_model,
)
from transformers import Cache, DynamicCache, StaticCache, SuppressTokensLogitsProcessor, cache_utils
from transformers.generation import utils as generation_utils
from transformers.utils import is_hqq_available, is_optimum_quanto_available

from xllm.modeling_xllm.generation_xllm import InVocabulary, SuppressPlaceholders, XLLMGenerationMixin
from xllm.modeling_xllm.language_models import CacheNote, float8_saturates


NEW = 7
GREEDY = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": -1}


@pytest.fixture(params=["chatglm", "llama"])
def model(request):
    return tiny_model(request.param)


def media_batch() -> dict:
    """A row with an image and a clip, and a longer one with a video; words that repeat, for look-ups to find."""
    words = [11, 12, 13, 11, 12]
    rows = [
        prompt([IMAGE] * QUERIES, words, [SPEECH] * 3),
        prompt(words, words, [VIDEO] * QUERIES * FRAMES, words),
    ]
    return {
        **left_pad(rows),
        "pixel_values": torch.randn(1, 3, PIXELS, PIXELS),
        "pixel_values_videos": torch.randn(1, FRAMES, 3, PIXELS, PIXELS),
        **speech(23),
    }


def one_row() -> dict:
    """The first row of `media_batch`, unpadded."""
    batch = media_batch()
    names = ("pixel_values", "input_features", "input_features_mask")
    keep = batch["attention_mask"][0].bool()
    return {"input_ids": batch["input_ids"][:1, keep], **{name: batch[name] for name in names}}


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"do_sample": True, "top_k": 1},
        {"num_beams": 1, "num_return_sequences": 1, "output_scores": True, "return_dict_in_generate": True},
        {"logits_to_keep": 1},
    ],
    ids=str,
)
def test_ways_to_the_same_greedy_answer(model, options):
    batch = media_batch()
    expected = model.generate(**batch, **GREEDY)
    got = model.generate(**batch, **{**GREEDY, **options})
    assert torch.equal(got if isinstance(got, torch.Tensor) else got.sequences, expected)


@pytest.mark.parametrize("kind", ["lookup", "assistant"])
def test_drafted_tokens_change_nothing(model, kind):
    inputs = one_row()
    expected = model.generate(**inputs, **GREEDY)
    draft = {"prompt_lookup_num_tokens": 2}
    if kind == "assistant":
        draft = {
            "assistant_model": tiny_model(
                "llama" if model.config.text_config.model_type == "llama" else "chatglm", seed=1
            )
        }
    assert torch.equal(model.generate(**inputs, **GREEDY, **draft), expected)


def test_scores_hidden_states_and_attentions_of_each_step(model):
    model.set_attn_implementation("eager")
    inputs = one_row()
    length = inputs["input_ids"].shape[1]
    output = model.generate(
        **inputs,
        **GREEDY,
        return_dict_in_generate=True,
        output_logits=True,
        output_hidden_states=True,
        output_attentions=True,
    )
    assert output.sequences.shape == (1, length + NEW)
    assert len(output.logits) == len(output.hidden_states) == len(output.attentions) == NEW
    for step in range(NEW):
        queries = length if step == 0 else 1
        assert [tuple(states.shape) for states in output.hidden_states[step]] == [(1, queries, 32)] * 3
        assert {tuple(weights.shape) for weights in output.attentions[step]} == {(1, 4, queries, length + step)}
    # The first step's logits are the forward pass's.
    torch.testing.assert_close(output.logits[0][0], model(**inputs).logits[0, -1], atol=1e-5, rtol=1e-4)


def test_beams_hold_the_best_of_all_continuations(model):
    """With as many beams as words, two steps are an exhaustive search."""
    inputs = one_row()
    vocab = model.config.text_config.vocab_size
    found = model.generate(**inputs, max_new_tokens=2, num_beams=vocab, do_sample=False, eos_token_id=-1)[0, -2:]
    ids = inputs.pop("input_ids")
    words = torch.tensor([word for word in range(vocab) if word not in model.model.placeholder_ids()])
    longer = torch.cat([ids.expand(len(words), -1), words[:, None]], dim=1)
    repeated = {name: value.repeat(len(words), *[1] * (value.dim() - 1)) for name, value in inputs.items()}
    with torch.no_grad():
        first = model(input_ids=ids, **inputs).logits[0, -1].log_softmax(-1)[words]
        second = model(input_ids=longer, **repeated).logits[:, -1].log_softmax(-1)[:, words]
    best = divmod(int((first[:, None] + second).argmax()), len(words))
    assert words[list(best)].tolist() == found.tolist()


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_answer_goes_on_from_its_cache(model, kind):
    inputs = one_row()
    whole = model.generate(**inputs, **GREEDY)
    length = inputs["input_ids"].shape[1]
    cache = (
        DynamicCache()
        if kind == "dynamic"
        else StaticCache(config=model.config.text_config, max_cache_len=length + NEW)
    )
    some = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 3}, past_key_values=cache)
    more = {**inputs, "input_ids": some}
    assert torch.equal(model.generate(**more, **{**GREEDY, "max_new_tokens": NEW - 3}, past_key_values=cache), whole)


QUANTISERS = {  # the library that each takes, whether it is there, and what is lost of a deviation
    "fp8": ("--upgrade torch", float8_saturates, 0.1),
    "quanto": ("optimum-quanto", is_optimum_quanto_available, 0.6),
    "hqq": ("hqq", is_hqq_available, 0.6),
}


@pytest.mark.parametrize("backend", QUANTISERS)
def test_a_quantised_cache_is_near_the_plain_one(model, backend):
    library, is_there, most = QUANTISERS[backend]
    if not is_there():
        pytest.skip(f"NOT TESTED: caches quantised by {backend}; pip install {library}")
    inputs = one_row()
    options = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
    plain = model.generate(**inputs, **options)
    groups = {} if backend == "fp8" else {"nbits": 4, "q_group_size": 8, "residual_length": 4}
    config = {"backend": backend, **groups, **({"axis_key": 1, "axis_value": 1} if backend == "hqq" else {})}
    outputs = model.generate(**inputs, **options, cache_implementation="quantized", cache_config=config)
    assert type(outputs.past_key_values).__name__ == "QuantizedCache"
    assert not CacheNote.read(outputs.past_key_values, "attended").all()
    first, second = (torch.stack(one.logits[:2]) for one in (outputs, plain))  # before the answers may part
    assert 0 < (first[1] - second[1]).abs().max() < most * second[1].std()


@pytest.mark.parametrize("backend", ["quanto", "hqq"])
def test_a_quantised_cache_names_the_library_that_it_lacks(model, backend, monkeypatch):
    """In one line, before the language model computes anything."""
    for module in (cache_utils, generation_utils):
        for name in ("is_optimum_quanto_available", "is_hqq_available"):
            monkeypatch.setattr(module, name, lambda: False, raising=False)
    monkeypatch.setattr(type(model.model.language_model), "forward", None)
    how = {"cache_implementation": "quantized", "cache_config": {"backend": backend}}
    with pytest.raises(ImportError, match=rf"pip install {QUANTISERS[backend][0]}") as caught:
        model.generate(**one_row(), **GREEDY, **how)
    assert "\n" not in str(caught.value)


class NoStream(contextlib.nullcontext):
    """Stands for a CUDA stream, so that the moves of offloaded caches can be followed without a GPU."""

    def wait_stream(self, other) -> None:
        pass


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("kind", ["offloaded", "offloaded_static"])
def test_offloaded_caches_give_the_same_answer(model, monkeypatch, kind, beams):
    monkeypatch.setattr(torch, "Stream", NoStream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: NoStream())
    offloaded = []
    monkeypatch.setattr(Cache, "offload", lambda cache, layer, *args: offloaded.append(layer))
    batch, options = media_batch(), {**GREEDY, "num_beams": beams}
    got = model.generate(**batch, **options, cache_implementation=kind)
    assert torch.equal(got, model.generate(**batch, **options))
    assert offloaded[:2] == [0, 1]


def test_a_later_turn_needs_only_the_media_that_are_not_cached(model):
    """Features of one modality, whose placeholders are all given again; the others' are in the cache."""
    inputs = one_row()
    cache = DynamicCache()
    some = model.generate(**inputs, **{**GREEDY, "max_new_tokens": 3}, past_key_values=cache)
    features = {"image": model.encode_media({"pixel_values": inputs["pixel_values"]})["image"]}
    options = {**GREEDY, "max_new_tokens": NEW - 3, "past_key_values": cache}
    more = model.generate(some, modality_features=features, **options)
    assert torch.equal(more, model.generate(**inputs, **GREEDY))
    with pytest.raises(ValueError, match="hold 3 placeholder tokens of a modality that no media is given for"):
        model.generate(some, modality_features=features, **GREEDY)


def test_an_answer_holds_no_placeholder_and_ones_own_processors_are_asked_too(model):
    inputs = one_row()
    length = inputs["input_ids"].shape[1]
    answer = model.generate(**inputs, **GREEDY)[0, length:].tolist()
    likely = {"sequence_bias": [[[token], 1e4] for token in model.model.placeholder_ids()]}
    assert model.generate(**inputs, **GREEDY, **likely)[0, length:].tolist() == answer
    forbidden = SuppressTokensLogitsProcessor(answer[:1])
    assert answer[0] not in model.generate(**inputs, **GREEDY, logits_processor=[forbidden])[0, length:]


def test_processors_look_up_no_token_behind_the_vocabulary():
    seen = []
    InVocabulary([lambda ids, scores: seen.append(ids.tolist())])(torch.tensor([[3, 4, 5]]), torch.zeros(1, 4))
    assert seen == [[[3, 0, 0]]]
    scores = SuppressPlaceholders([1, 3], torch.device("cpu"))(None, torch.zeros(2, 4))
    assert scores.isneginf().tolist() == [[False, True, False, True]] * 2
    assert not SuppressPlaceholders([], torch.device("cpu"))(None, torch.zeros(2, 4)).any()


def test_a_prompt_may_hold_placeholders_behind_the_vocabulary(model):
    """Penalties look up what was said before, where these have no place."""
    batch = {"input_ids": torch.tensor([prompt([IMAGE] * QUERIES, 11, 12)])}
    batch["pixel_values"] = torch.randn(1, 3, PIXELS, PIXELS)
    expected = model.generate(**batch, **GREEDY)[:, -NEW:]
    model.config.modalities["image"].token_id = VOCAB + 2
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, VOCAB + 2)
    assert torch.equal(model.generate(**batch, **GREEDY, suppress_tokens=[IMAGE])[:, -NEW:], expected)
    penalised = model.generate(**batch, **GREEDY, suppress_tokens=[IMAGE], repetition_penalty=50.0)[0, -NEW:]
    assert len(set(penalised.tolist())) == NEW


@pytest.mark.parametrize(
    ("changes", "is_short"),
    [
        ({}, True),
        ({"max_new_tokens": None, "generation_config": SimpleNamespace(max_new_tokens=3)}, False),
        ({"generation_config": SimpleNamespace(return_dict_in_generate=True)}, False),
        ({"return_dict_in_generate": False, "generation_config": SimpleNamespace(return_dict_in_generate=True)}, True),
        ({"min_length": 3}, False),
        ({"no_repeat_ngram_size": 2}, False),
        ({"custom_generate": "mine"}, False),
        ({"custom_generate": SimpleNamespace(reads_shortened=True)}, True),
        ({"past_key_values": 0}, False),
        ({"position_ids": 0}, False),
        ({"token_type_ids": 0}, False),
        ({"stopping_criteria": []}, False),
        ({"prefix_allowed_tokens_fn": 0}, False),
        ({"position_ids": None, "streamer": None}, True),
        ({"streamer": SimpleNamespace()}, False),
        ({"streamer": SimpleNamespace(skip_prompt=False)}, False),
        ({"streamer": SimpleNamespace(skip_prompt=True)}, True),
        ({"logits_processor": [1, 2]}, False),
    ],
    ids=str,
)
def test_when_a_prompt_may_be_shortened(changes, is_short):
    """Where nobody can tell."""
    model = SimpleNamespace(generation_config=SimpleNamespace(max_new_tokens=None))
    kwargs = {"max_new_tokens": 4, "logits_processor": [1], **changes}
    assert XLLMGenerationMixin._may_shorten(model, kwargs) is is_short


def test_a_placeholder_behind_the_vocabulary_cannot_be_said(model):
    assert model._sayable([0, 119, 120, 121]) == [0, 119]


def test_the_first_token_of_a_prompt_is_looked_at_too(model):
    ids = torch.tensor([[VIDEO, *prompt([IMAGE] * QUERIES)]])
    with pytest.raises(ValueError, match="hold 1 placeholder tokens of a modality that no media is given for"):
        model.generate(ids, pixel_values=torch.randn(1, 3, PIXELS, PIXELS), **GREEDY)


def test_media_whose_place_is_not_known_are_an_error(model):
    batch = media_batch()
    with pytest.raises(ValueError, match="media need input_ids or inputs_embeds: nothing else says where"):
        model.generate(pixel_values=batch["pixel_values"], **GREEDY)
    features = {"image": model.encode_media(batch)["image"]}
    with pytest.raises(ValueError, match="image: got modality_features and new items for 2 rows"):
        model.generate(**batch, modality_features=features, **GREEDY)


@pytest.mark.parametrize("size", [None, 1, 4])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_prompt_is_read_in_parts(kind, size):
    """Media stand in the part that holds their placeholders; so they do behind a cache, given with what it holds or
    alone."""
    model, batch = tiny_model(kind), media_batch()
    parts = {"prefill_chunk_size": size}
    assert torch.equal(model.generate(**batch, **GREEDY, **parts), model.generate(**batch, **GREEDY))
    first, second, cache = one_row(), one_row(), DynamicCache(config=model.config.text_config)
    said = model.generate(**first, **{**GREEDY, "max_new_tokens": 3}, past_key_values=cache)
    whole = torch.cat([said, second.pop("input_ids")], dim=1)
    media = {name: torch.cat([first[name], second[name]]) for name in second}
    expected = model.generate(whole, **media, **GREEDY)[:, -NEW:]
    features = {"modality_features": model.encode_media(first), "past_key_values": copy.deepcopy(cache)}
    assert torch.equal(model.generate(whole, **features, **second, **GREEDY, **parts)[:, -NEW:], expected)
    alone = {"attention_mask": torch.ones_like(whole), "past_key_values": cache}
    ids = whole[:, cache.get_seq_length() :]
    with pytest.raises(ValueError, match="hold 2 placeholder tokens of a modality that no media is given for"):
        model.generate(ids, **alone, **{name: second[name] for name in second if name != "pixel_values"}, **GREEDY)
    assert torch.equal(model.generate(ids, **alone, **second, **GREEDY, **parts)[:, -NEW:], expected)


def test_a_cache_that_ends_in_a_picture_is_gone_on_from_without_a_mask():
    """Only the media behind it are given; the next placeholder of a kind that is not is an error."""
    model, clip, pixels = tiny_model("llama"), speech(23), torch.randn(1, 3, PIXELS, PIXELS)
    begun, cache = torch.tensor([[12, *[IMAGE] * QUERIES]]), DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        model(input_ids=begun, pixel_values=pixels, past_key_values=cache, use_cache=True)
    whole = torch.cat([begun, torch.tensor([prompt([SPEECH] * 3, 13)])], 1)
    expected = model.generate(whole, pixel_values=pixels, **clip, **GREEDY)
    for mask in (None, torch.ones_like(whole)):
        given = {**clip, "past_key_values": copy.deepcopy(cache), "attention_mask": mask}
        assert torch.equal(model.generate(whole, **given, **GREEDY), expected)
    other = torch.cat([begun, torch.tensor([prompt(IMAGE, [SPEECH] * 3)])], 1)
    with pytest.raises(ValueError, match="input_ids hold 1 placeholder tokens of a modality that no media is given"):
        model.generate(other, **clip, past_key_values=cache, **GREEDY)


def contrastive_search(model, input_ids, logits_processor, stopping_criteria, generation_config, **model_kwargs):
    """As the authors of transformers' repository of that name do it, for one row: of the likeliest words the one that
    is least like what stands before, each tried on the cache."""
    k, alpha = generation_config.top_k, generation_config.penalty_alpha
    model_kwargs["output_hidden_states"] = True
    inputs = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **model_kwargs)
    outputs = model(**inputs)
    before, logits = outputs.hidden_states[-1], outputs.logits[:, -1]
    for _ in range(NEW):
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
        likely, words = logits_processor(input_ids, logits).softmax(-1).topk(k)
        cache = model_kwargs["past_key_values"]
        cache.batch_repeat_interleave(k)
        tried, tried_kwargs = model._expand_inputs_for_generation(k, False, input_ids, **model_kwargs)
        tried = torch.cat([tried, words.T], dim=1)
        outputs = model(**model.prepare_inputs_for_generation(tried, next_sequence_length=1, **tried_kwargs))
        state = outputs.hidden_states[-1]  # (k, 1, D)
        likeness = torch.nn.functional.cosine_similarity(state, before.expand(k, -1, -1), dim=-1).amax(1)
        best = ((1 - alpha) * likely[0] - alpha * likeness).argmax()[None]
        cache.batch_select_indices(best)
        outputs.past_key_values = cache
        input_ids, before = tried[best], torch.cat([before, state[best]], dim=1)
        logits = outputs.logits[best, -1]
    return input_ids


def test_a_model_whose_first_part_is_on_the_disk_answers(model, monkeypatch):
    inputs = one_row()
    expected = model.generate(**inputs, **GREEDY)
    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    assert torch.equal(model.generate(**inputs, **GREEDY), expected)


def test_what_a_loop_of_ones_own_says_is_kept(model):
    """Also of a loop that reads the prompt without its empty placeholders, and gives no ids."""

    def width(model, input_ids, **kwargs):
        return {"width": input_ids.shape[1]}

    inputs = one_row()
    fired = int(model.encode_media(inputs)["speech"].mask.sum())
    whole = inputs["input_ids"].shape[1]
    assert model.generate(**inputs, **GREEDY, custom_generate=width) == {"width": whole}
    width.reads_shortened = True
    assert model.generate(**inputs, **GREEDY, custom_generate=width) == {"width": whole - 3 + fired}
    assert fired < 3


def test_media_are_given_to_the_step_that_reads_the_prompt_alone(model):
    inputs, widths = one_row(), []

    def note(module, args, kwargs):
        widths.append(None if (media := kwargs.get("media_embeds")) is None else media.shape[1])

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.generate(**inputs, **GREEDY, return_dict_in_generate=True)  # of the whole prompt
    assert widths == [inputs["input_ids"].shape[1], *[None] * (NEW - 1)]


def test_a_process_that_makes_other_tensors_by_default_goes_on_the_same(model):
    inputs = one_row()
    cache = DynamicCache()
    some = model.generate(**inputs, **GREEDY, past_key_values=cache)

    def numbers() -> dict:
        kept = {"past_key_values": copy.deepcopy(cache)}
        return {"first": model.generate(**inputs, **GREEDY), "more": model.generate(some, **GREEDY, **kept)}

    assert_equal_whatever_is_made_by_default(numbers)


@torch.no_grad()
def test_contrastive_search_by_a_function_of_ones_own(model):
    """The same as recomputing every candidate with its media; by transformers' own name it needs their repository."""
    inputs, k, alpha = one_row(), 4, 0.6
    options = {"penalty_alpha": alpha, "top_k": k, "do_sample": False, "max_new_tokens": NEW}
    said = inputs.pop("input_ids")
    found = model.generate(said, **inputs, **options, custom_generate=contrastive_search)
    greedy = model.generate(said, **inputs, **GREEDY)
    suppressed = torch.tensor(model.model.placeholder_ids())
    for _ in range(NEW):
        scores = model(input_ids=said, **inputs).logits[:, -1].index_fill(1, suppressed, -torch.inf)
        likely, words = scores.softmax(-1).topk(k)
        states = [
            model(input_ids=torch.cat([said, word[None, None]], 1), **inputs, output_hidden_states=True)
            for word in words[0]
        ]
        states = torch.cat([output.hidden_states[-1] for output in states])
        likeness = torch.nn.functional.cosine_similarity(states[:, -1:], states[:, :-1], dim=-1)
        best = ((1 - alpha) * likely[0] - alpha * likeness.amax(1)).argmax()
        said = torch.cat([said, words[:, best][:, None]], 1)
    assert torch.equal(found, said)
    assert not torch.equal(found, greedy)
    with pytest.raises(ValueError, match="transformers-community/contrastive-search"):
        model.generate(greedy, **inputs, **options)

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Placeholders that no token fills take no room in the windows and states of a language model, in any mode."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import (
    EOP,
    IMAGE,
    PAD,
    SOP,
    SPEECH,
    TEXT,
    VIDEO,
    VOCAB,
    assert_equal_whatever_is_made_by_default,
    batch_of,
    prompt,
    speech,
    tiny_model,
)
from transformers import (
    DynamicCache,
    Gemma3TextConfig,
    GenerationConfig,
    MistralConfig,
    Qwen3NextConfig,
    StaticCache,
    StoppingCriteria,
)
from transformers.utils import logging

from xllm.modeling_xllm.gaps import hide_gaps, left_padded, remember_gaps
from xllm.modeling_xllm.language_models import CacheNote, LanguageModel


SIZES = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2, "pad_token_id": PAD, "bos_token_id": SOP,
    "eos_token_id": EOP,
}  # fmt: skip
WINDOW = 6
CONFIGS = {
    "windows": MistralConfig(**SIZES, sliding_window=WINDOW),
    "windows of some layers": Gemma3TextConfig(
        **SIZES, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]
    ),
    "states": Qwen3NextConfig(
        **SIZES, layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
    ),
}  # fmt: skip
KINDS = ["full_attention", "sliding_attention", "chunked_attention"]
GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}
BEFORE, BEHIND = [15, 16, 17, 18], [19, 20]


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request):
    return tiny_model(text_config=CONFIGS[request.param])


def rows() -> list[tuple[list[int], dict]]:
    """Clips that own many more placeholders than they fire."""
    torch.manual_seed(3)
    return [
        (prompt(BEFORE, [SPEECH] * 12, BEHIND), speech(96)),
        (prompt([SPEECH] * 5, TEXT, BEFORE, TEXT), speech(40)),
    ]


def batches() -> list[dict]:
    return [batch_of([row]) for row in rows()] + [batch_of(rows())]


def answer(model, batch, **kwargs):
    with torch.no_grad():
        said = model.generate(**batch, **{**GREEDY, **kwargs})
    return (said if isinstance(said, torch.Tensor) else said.sequences).tolist()


@torch.no_grad()
def test_the_language_model_reads_what_it_would_read_without_them(model):
    """Word by word, over the embeddings of the tokens that there are."""
    for ids, media in rows():
        ids = torch.tensor([ids])
        embeds, mask = model.model.place_features(ids, None, model.encode_media({"input_ids": ids, **media}))
        assert not mask.all()
        words = model.get_input_embeddings()(ids)
        embeds = torch.where((ids == SPEECH)[..., None], embeds, words)[mask.bool()][None]
        said: list[int] = []
        for _ in range(GREEDY["max_new_tokens"]):
            states = model.model.language_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            scores = model.lm_head(states[0, -1]).index_fill(0, torch.tensor([IMAGE, VIDEO, SPEECH]), -torch.inf)
            said.append(int(scores.argmax()))
            embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([said[-1:]]))], dim=1)
        assert answer(model, {"input_ids": ids, **media}) == [ids[0].tolist() + said]


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


class Listener:
    """A streamer that wants the prompt too."""

    def put(self, value):
        """Nothing is done with it."""

    def end(self):
        """Nor at the end."""


MODES = {
    "scores": lambda model, length: {"return_dict_in_generate": True, "output_scores": True},
    "a cache": lambda model, length: {"past_key_values": DynamicCache(config=model.config.text_config)},
    "a static cache": lambda model, length: {
        "past_key_values": StaticCache(config=model.config.text_config, max_cache_len=64)
    },
    "stopping criteria": lambda model, length: {"stopping_criteria": [Never()]},
    "max_length": lambda model, length: {"max_new_tokens": None, "max_length": length + GREEDY["max_new_tokens"]},
    "min_length": lambda model, length: {"min_length": length + 2},
    "no cache": lambda model, length: {"use_cache": False},
    "a streamer": lambda model, length: {"streamer": Listener()},
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_says_the_same(model, mode):
    for batch in batches():
        length, alone = batch["input_ids"].shape[1], len(batch["input_ids"]) == 1
        if alone or mode != "a streamer":
            assert answer(model, batch, **MODES[mode](model, length)) == answer(model, batch), mode


@pytest.mark.parametrize("name", ["max_length", "min_length"])
def test_lengths_count_the_whole_prompt_wherever_they_stand(model, name):
    """In the model's own settings, or in settings that are given: the end of the answer is said there already."""
    batch = batches()[0]
    length, settings = batch["input_ids"].shape[1], copy.deepcopy(model.generation_config)
    says = {"do_sample": False, "eos_token_id": -1 if name == "max_length" else answer(model, batch)[0][length]}
    lengths = {"max_new_tokens": 6, name: length + 5} if name == "min_length" else {"max_length": length + 2}
    try:
        for config in (GenerationConfig(**says, **lengths), None):
            model.generation_config = GenerationConfig(**says, **(lengths if config is None else {"max_length": 99}))
            said = model.generate(**batch, generation_config=config, return_dict_in_generate=True).sequences
            assert said.shape[1] - length in ((2,) if name == "max_length" else (5, 6))
    finally:
        model.generation_config = settings


def test_embeddings_and_positions_may_be_given(model):
    for batch in batches():
        ids, expected = batch["input_ids"], answer(model, batch)
        embeds, rest = model.get_input_embeddings()(ids), {k: v for k, v in batch.items() if k != "input_ids"}
        assert answer(model, {**rest, "inputs_embeds": embeds}) == [row[ids.shape[1] :] for row in expected]
        assert answer(model, batch, inputs_embeds=embeds) == expected
        kept = model.encode_media(batch)
        _, mask = model.model.place_features(ids, batch["attention_mask"], kept)
        assert answer(model, batch, position_ids=(mask.cumsum(1) - 1).clamp(min=0)) == expected


def test_an_answer_goes_on_from_its_cache(model):
    for batch in batches():
        length, expected = batch["input_ids"].shape[1], answer(model, batch)
        half = {**GREEDY, "max_new_tokens": 3}
        begun = model.generate(**batch, **half, return_dict_in_generate=True)
        ids, cache = begun.sequences, begun.past_key_values
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, 3), value=1)
        assert answer(model, {"input_ids": ids, "attention_mask": mask}, **half, past_key_values=cache) == expected
        by_hand = model.generate(**batch, **half, return_dict_in_generate=True).past_key_values
        for place in range(length + 2, length + 5):  # the last word that was said is in no cache yet
            with torch.no_grad():
                step = {"input_ids": ids[:, place : place + 1], "attention_mask": mask[:, : place + 1]}
                scores = model(**step, past_key_values=by_hand).logits[:, -1]
            word = scores.index_fill(1, torch.tensor([IMAGE, VIDEO, SPEECH]), -torch.inf).argmax(1)
            ids, mask = torch.cat([ids, word[:, None]], 1), torch.nn.functional.pad(mask, (0, 1), value=1)
        assert ids.tolist() == expected


def test_a_further_turn_has_media_of_its_own(model):
    (first, clip), (second, _) = rows()
    cache = DynamicCache(config=model.config.text_config)
    said = model.generate(torch.tensor([first]), **clip, **GREEDY, past_key_values=cache)
    torch.manual_seed(4)
    both = {name: torch.cat([value, value.flip(1) if value.dim() == 3 else value]) for name, value in clip.items()}
    whole = torch.cat([said, torch.tensor([second[:5] + [SPEECH] * 7 + second[5:]])], 1)
    expected = answer(model, {"input_ids": whole, **both})
    assert answer(model, {"input_ids": whole, **both}, past_key_values=cache) == expected
    longer = torch.cat([torch.tensor(expected), torch.tensor([prompt(TEXT)])], 1)
    new = longer[:, len(expected[0]) - 1 :]  # what the cache does not hold, alone
    (got,) = answer(model, {"input_ids": new, "attention_mask": torch.ones_like(longer)}, past_key_values=cache)
    assert [longer[0].tolist() + got[new.shape[1] :]] == answer(model, {"input_ids": longer, **both})


def test_a_picture_that_is_cached_behind_a_gap_need_not_be_given_again(model):
    (clip_ids, clip), _ = rows()
    picture = {"pixel_values": torch.randn(1, 3, 28, 28)}
    cache, first = DynamicCache(config=model.config.text_config), torch.tensor([[*clip_ids, IMAGE, IMAGE]])
    said = model.generate(first, **clip, **picture, **{**GREEDY, "max_new_tokens": 1}, past_key_values=cache)
    assert cache.get_seq_length() < first.shape[1]
    batch = {"input_ids": torch.cat([said, torch.tensor([clip_ids])], 1)}
    batch |= {name: torch.cat([value] * 2) for name, value in clip.items()}
    assert answer(model, batch, past_key_values=cache) == answer(model, {**batch, **picture})


@pytest.mark.parametrize("ends_in_a_picture", [False, True])
def test_a_turn_with_gaps_goes_on_from_one_without(model, ends_in_a_picture):
    """Also where the cache ends with the picture itself, of which nothing was said yet."""
    (clip_ids, clip), _ = rows()
    first, media = prompt(BEFORE, TEXT), {}
    if ends_in_a_picture:
        first, media = prompt(BEFORE, [IMAGE] * 2), {"pixel_values": torch.randn(1, 3, 28, 28)}
    cache = DynamicCache(config=model.config.text_config)
    said = model.generate(torch.tensor([first]), **media, **{**GREEDY, "max_new_tokens": 1}, past_key_values=cache)
    assert cache.get_seq_length() == len(first)
    batch = {"input_ids": torch.cat([said, torch.tensor([clip_ids])], 1), **media, **clip}
    assert answer(model, batch, past_key_values=cache) == answer(model, batch)


@torch.no_grad()
def test_text_alone_is_computed_as_it_stands(model):
    """Padding included, with labels or without."""
    batch = batch_of([(prompt(BEFORE), {}), (prompt(BEHIND, BEFORE, BEHIND), {})])
    for mask in (batch["attention_mask"], batch["attention_mask"].flip(1)):
        given = {"input_ids": batch["input_ids"], "attention_mask": mask, "use_cache": False}
        assert torch.equal(model(**given, labels=given["input_ids"]).logits, model(**given).logits)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        alone = model.model.language_model(**given, position_ids=positions).last_hidden_state
        torch.testing.assert_close(model.model(**given).last_hidden_state, alone)


def test_the_loss_of_an_evaluation_is_that_of_training(model):
    """Also of a word right behind an empty placeholder: it is predicted from the token before."""
    for batch in batches():
        kept = model.encode_media(batch)  # no dropout of interfaces
        given = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"modality_features": kept}
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        with torch.no_grad():
            evaluated = model(**given, labels=labels)
            trained = model.train()(**given, labels=labels).loss
            model.eval()
        torch.testing.assert_close(evaluated.loss, trained, atol=1e-5, rtol=1e-5)
        assert evaluated.past_key_values is None


def test_they_are_named_where_they_do_take_room(model, caplog):
    logging.get_logger("transformers").warning_once.__func__.cache_clear()
    batch = batches()[0]
    model(**batch, use_cache=False)
    model(input_ids=batch["input_ids"][:, :4])
    picture = {"pixel_values": torch.randn(1, 3, 28, 28)}
    model(**batch_of([(prompt(BEFORE, [IMAGE] * 2, BEFORE), picture), (prompt([IMAGE] * 2), picture)]))  # padding
    assert not any("placeholders" in message for message in caplog.messages)
    model(**batch)  # a cache holds all of a text
    (message,) = (message for message in caplog.messages if "placeholders" in message)
    assert f"{model.config.text_config.model_type} counts them in its windows or states" in message


def test_they_are_named_where_several_rows_go_on(model, caplog):
    """What comes behind a cache stays in place: rows leave out unequal parts of it."""
    logging.get_logger("transformers").warning_once.__func__.cache_clear()
    clip_ids, clip = rows()[0]
    for ids, media, is_named in ((TEXT * 2, {}, False), (clip_ids, clip, True)):
        cache = DynamicCache(config=model.config.text_config)
        said = model.generate(torch.tensor([prompt(BEFORE)] * 2), **GREEDY, past_key_values=cache)
        both = {name: torch.cat([value] * 2) for name, value in media.items()}
        model.generate(torch.cat([said, torch.tensor([ids] * 2)], 1), **both, **GREEDY, past_key_values=cache)
        assert any("counts them in" in message for message in caplog.messages) == is_named


@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_nobody_is_warned_where_they_take_none(text, caplog):
    logging.get_logger("transformers").warning_once.__func__.cache_clear()
    tiny_model(text)(**batches()[0])
    assert not any("placeholders" in message for message in caplog.messages)


def test_columns_are_made_where_the_text_is():
    """Not over windows: transformers' own caches of them are made on the default device."""
    (first, clip), _ = rows()
    model = tiny_model(text_config=CONFIGS["states"])

    def numbers():
        found = {}
        for name, ids, media in (("gap", first, clip), ("none", prompt(BEFORE, TEXT), {})):
            cache = DynamicCache(config=model.config.text_config)
            said = model.generate(torch.tensor([ids], device="cpu"), **media, **GREEDY, past_key_values=cache)
            turn = torch.cat([said, torch.tensor([first], device="cpu")], 1)
            both = {key: torch.cat([value] * (2 if media else 1)) for key, value in clip.items()}
            found[name] = model.generate(turn, **both, **GREEDY, past_key_values=cache)
        return found

    assert_equal_whatever_is_made_by_default(numbers)


@pytest.mark.parametrize(
    ("config", "length", "counts"),
    [
        (CONFIGS["windows"], None, True),
        (CONFIGS["windows"], WINDOW, False),
        (CONFIGS["windows"], WINDOW + 1, True),
        (CONFIGS["windows of some layers"], WINDOW + 1, True),
        (CONFIGS["states"], 2, True),
        (MistralConfig(**SIZES, sliding_window=None), None, False),
        (Gemma3TextConfig(**SIZES, layer_types=["full_attention"] * 2, sliding_window=None), None, False),
        (
            SimpleNamespace(model_type="x", layer_types=KINDS, sliding_window=9, attention_chunk_size=WINDOW),
            WINDOW,
            False,
        ),
    ],
)
def test_who_counts_columns(config, length, counts):
    assert LanguageModel(config).counts_columns(length) is counts


class Cached(SimpleNamespace):
    """A cache of so many tokens."""

    def get_seq_length(self) -> int:
        return self.length


def test_gaps_of_a_cache_by_hand():
    held = CacheNote([torch.tensor([[1, 0, 1], [1, 1, 1]])])
    cache, mask = Cached(length=3, attended=held), torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])
    assert hide_gaps(cache, mask).tolist() == [[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    cache.length = 2  # it was cropped
    assert hide_gaps(cache, mask).tolist() == [[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    for other in (mask[:1], mask.repeat(2, 1)):
        with pytest.raises(ValueError, match=f"past_key_values hold 2 rows, got a text of {len(other)}"):
            hide_gaps(cache, other)
    cache.attended = CacheNote([torch.tensor([[1, 0]])])  # one row, of which several answers are asked for
    assert hide_gaps(cache, mask).tolist() == [[1, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    for four in (torch.ones(2, 1, 5, 5), None):
        assert hide_gaps(Cached(length=2), mask if four is None else four) is (mask if four is None else four)


@pytest.mark.parametrize(("rows", "beams"), [(2, 1), (6, 3), (1, 1)])
def test_gaps_are_kept_for_each_beam(rows, beams):
    layers = [SimpleNamespace(keys=None), SimpleNamespace(), SimpleNamespace(keys=torch.zeros(rows, 1, 3, 4))]
    cache, mask = Cached(length=3, layers=layers), torch.tensor([[True, False, True], [True] * 3])
    remember_gaps(cache, mask)
    assert CacheNote.read(cache, "attended").tolist() == [[1, 0, 1]] * beams + [[1, 1, 1]] * beams
    remember_gaps(cache, mask[:, :2], torch.tensor([[0, 3], [1, 4]]))  # the third token was said
    assert CacheNote.read(cache, "columns").tolist() == [[0, 3, 4]] * beams + [[1, 4, 5]] * beams
    empty = Cached(length=0, layers=layers)
    remember_gaps(empty, mask)
    assert not hasattr(empty, "attended")
    no_keys = Cached(length=1, layers=layers[:2])
    remember_gaps(no_keys, mask[:, :1])
    assert CacheNote.read(no_keys, "attended").tolist() == [[1], [1]]


def test_columns_that_a_padded_text_needs():
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 1]])
    assert left_padded(mask).tolist() == [[0, 2], [2, 3]]
    assert left_padded(torch.tensor([[1, 1], [0, 1]])) is None
    assert left_padded(torch.tensor([[1, 1], [1, 0]])).tolist() == [[0, 1], [1, 0]]
    assert left_padded(torch.zeros(1, 3)).tolist() == [[2]]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Every way to generate, over interleaved media and language models of three families."""

import copy
from threading import Thread

import pytest
import torch
from tiny import (
    FRAMES,
    GMASK,
    IMAGE,
    PIXELS,
    QUERIES,
    SOP,
    SPEECH,
    TEXT,
    VIDEO,
    batch_of,
    left_pad,
    mixed_rows,
    prompt,
    speech,
    tiny_model,
    tiny_text_config,
)
from transformers import (
    AutoModelForCausalLM,
    CompileConfig,
    DynamicCache,
    StaticCache,
    StoppingCriteria,
    TextIteratorStreamer,
)

from xllm.modeling_xllm.language_models import CacheNote


GREEDY = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1}


@pytest.fixture(scope="module", params=["chatglm", "llama", "qwen3"])
def model(request):
    return tiny_model(request.param)


def interleaved() -> tuple[torch.Tensor, dict]:
    """Speech, image, text, video, image, speech, text in one row."""
    torch.manual_seed(5)
    image, video = [IMAGE] * QUERIES, [VIDEO] * QUERIES * FRAMES
    ids = prompt([SPEECH] * 4, image, 20, video, 21, image, [SPEECH] * 2, TEXT)
    media = {
        "pixel_values": torch.randn(2, 3, PIXELS, PIXELS),
        "pixel_values_videos": torch.randn(1, FRAMES, 3, PIXELS, PIXELS),
        "video_frame_mask": torch.ones(1, FRAMES),
        **speech(30, 12),
    }
    return torch.tensor([ids]), media


def answer(model, ids, **kwargs) -> list[list[int]]:
    return model.generate(input_ids=ids, **{**GREEDY, **kwargs})[:, ids.shape[1] :].tolist()


@pytest.mark.parametrize(
    "mode",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_modes_that_must_not_change_a_greedy_answer(model, mode):
    ids, media = interleaved()
    assert answer(model, ids, **media, **mode) == answer(model, ids, **media)


def test_the_order_of_interleaved_media_is_the_order_of_the_text(model):
    """Swapping two items together with their placeholders' order changes the scores; swapping both ways not."""
    ids, media = interleaved()
    scores = model(input_ids=ids, **media).logits[:, -1]
    swapped = {**media, "pixel_values": media["pixel_values"].flip(0)}
    assert not torch.allclose(model(input_ids=ids, **swapped).logits[:, -1], scores, atol=1e-4)
    # An image before or behind a video: each modality has its own list, so only the text says which comes first.
    image, video = [IMAGE] * QUERIES, [VIDEO] * QUERIES * FRAMES
    media = {
        "pixel_values": media["pixel_values"][:1],
        **{name: media[name] for name in media if "video" in name},
    }
    first = model(input_ids=torch.tensor([prompt(image, video, TEXT)]), **media).logits[:, -1]
    second = model(input_ids=torch.tensor([prompt(video, image, TEXT)]), **media).logits[:, -1]
    assert not torch.allclose(first, second, atol=1e-4)


def test_a_row_is_answered_the_same_alone_and_in_a_batch_by_qwen3():
    """The other two families: test_modeling_xllm.py."""
    model, rows = tiny_model("qwen3"), mixed_rows()
    together = model.generate(**batch_of(rows), **GREEDY)[:, -6:].tolist()
    assert together == [answer(model, torch.tensor([ids]), **media)[0] for ids, media in rows]


def test_sampling_follows_the_seed_and_the_distribution(model):
    ids, media = interleaved()
    sampling = {"do_sample": True, "temperature": 0.9, "num_return_sequences": 4}
    torch.manual_seed(1)
    first = answer(model, ids, **media, **sampling)
    torch.manual_seed(1)
    assert answer(model, ids, **media, **sampling) == first
    assert len({tuple(row) for row in first}) > 1
    # With one candidate left, sampling is greedy search.
    assert answer(model, ids, **media, **{**sampling, "top_k": 1}) == answer(model, ids, **media) * 4


def test_a_beam_search_of_all_continuations_finds_the_most_likely_pair(model):
    """Two steps with as many beams as there are words: the oracle is the table of all pairs."""
    ids, media = interleaved()
    words = torch.tensor([i for i in range(120) if i not in (IMAGE, VIDEO, SPEECH)])
    banned = torch.tensor([IMAGE, VIDEO, SPEECH])
    scores = model(input_ids=ids, **media).logits[0, -1].index_fill(0, banned, -torch.inf).log_softmax(-1)
    continued = torch.cat([ids.expand(len(words), -1), words[:, None]], dim=1)
    features = model.encode_media(media)
    many = {
        name: type(items)(
            embeddings=items.embeddings.repeat(len(words), 1, 1),
            mask=items.mask.repeat(len(words), 1),
            num_placeholders=items.num_placeholders.repeat(len(words)),
        )
        for name, items in features.items()
    }
    second = model(input_ids=continued, modality_features=many, logits_to_keep=1).logits[:, -1]
    second = second.index_fill(1, banned, -torch.inf).log_softmax(-1)
    total = scores[words][:, None] + second
    best = total.flatten().argmax()
    expected = [[int(words[best // 120]), int(best % 120)]]
    assert answer(model, ids, **media, num_beams=len(words), max_new_tokens=2) == expected


def test_an_assistant_drafts_and_the_answer_stays_the_same(model):
    ids, media = interleaved()
    greedy = answer(model, ids, **media)
    kind = model.config.text_config.model_type
    assert answer(model, ids, **media, assistant_model=tiny_model(kind, seed=1)) == greedy
    # A plain language model of the same vocabulary reads the text alone.
    drafter = AutoModelForCausalLM.from_config(tiny_text_config(kind)).eval()
    calls = []
    hook = drafter.register_forward_hook(lambda *_: calls.append(1))
    assert answer(model, ids, **media, assistant_model=drafter) == greedy
    hook.remove()
    assert calls


def test_a_streamer_gives_the_answer_word_by_word(model):
    class Tokenizer:
        def decode(self, ids, **kwargs):
            return "".join(f"{int(i)} " for i in ids)

    ids, media = interleaved()
    streamer = TextIteratorStreamer(Tokenizer(), skip_prompt=True, timeout=60)
    thread = Thread(target=lambda: answer(model, ids, **media, streamer=streamer))
    thread.start()
    pieces = [piece for piece in streamer if piece]
    thread.join()
    assert [[int(word) for word in "".join(pieces).split()]] == answer(model, ids, **media)
    assert len(pieces) == 6


def test_stopping_criteria_and_end_tokens_end_each_row(model):
    ids, media = interleaved()
    greedy = answer(model, ids, **media)[0]

    class AfterThree(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), input_ids.shape[1] >= ids.shape[1] + 3)

    assert answer(model, ids, **media, stopping_criteria=[AfterThree()])[0] == greedy[:3]
    end = greedy.index(greedy[2])  # the first time that this token is said
    assert answer(model, ids, **media, eos_token_id=greedy[2])[0] == greedy[: end + 1]


def test_a_strong_repetition_penalty_says_nothing_twice(model):
    ids, media = interleaved()
    said = answer(model, ids, **media, repetition_penalty=1e6)[0]
    assert len(set(said)) == 6
    assert not set(said) & set(ids[0].tolist())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chatglm", "llama"])
def test_the_compiled_step_says_the_same(kind):
    """One graph per step, as `generate` compiles it by itself on a GPU."""
    model = tiny_model(kind)
    ids, media = interleaved()
    greedy = answer(model, ids, **media)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    config = CompileConfig(fullgraph=True, backend=backend, mode=None)
    config._compile_all_devices = True  # transformers' switch for tests on the CPU
    assert answer(model, ids, **media, cache_implementation="static", compile_config=config) == greedy
    assert len(graphs) == 1


# ---- conversations


class EncoderCalls:
    """Counts the items that each tower reads."""

    def __init__(self, model):
        self.items = {"vision": 0, "audio": 0}
        self.hooks = [
            getattr(model.model, f"{name}_tower").register_forward_pre_hook(
                lambda module, args, name=name: self.items.__setitem__(name, self.items[name] + len(args[0]))
            )
            for name in self.items
        ]

    def __enter__(self):
        return self.items

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


def two_turns() -> tuple[list[int], dict, list[int], dict]:
    """First question (image, speech), and what a second one (speech, image) appends to the text."""
    torch.manual_seed(9)
    pictures, clips = torch.randn(2, 3, PIXELS, PIXELS), speech(30, 45)
    first = {"pixel_values": pictures[:1], **{name: clip[:1] for name, clip in clips.items()}}
    second = {"pixel_values": pictures[1:], **{name: clip[1:] for name, clip in clips.items()}}
    return [*[IMAGE] * QUERIES, *[SPEECH] * 4, 20], first, [*[SPEECH] * 6, *[IMAGE] * QUERIES, 21], second


def test_media_of_earlier_turns_are_not_encoded_again(model):
    first_ids, first, second_ids, second = two_turns()
    whole = torch.tensor([prompt(first_ids, 30, 31, second_ids)])
    media = {name: torch.cat([first[name], second[name]]) for name in first}
    expected = answer(model, whole, **media)
    with EncoderCalls(model) as items:
        features = model.encode_media(first)
        answer(model, torch.tensor([prompt(first_ids)]), modality_features=features)
        assert items == {"vision": 1, "audio": 1}
        assert answer(model, whole, modality_features=features, **second) == expected
        assert items == {"vision": 2, "audio": 2}
        both = model.encode_media(second, earlier=features)
        assert answer(model, whole, modality_features=both) == expected
    torch.testing.assert_close(
        model(input_ids=whole, modality_features=both).logits, model(input_ids=whole, **media).logits
    )


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_causal_model_goes_on_from_a_kept_cache(kind):
    model = tiny_model(kind)
    first_ids, first, second_ids, second = two_turns()
    start = torch.tensor([first_ids])
    cache, features = DynamicCache(config=model.config.text_config), model.encode_media(first)
    said = model.generate(start, modality_features=features, past_key_values=cache, **GREEDY)
    whole = torch.cat([said, torch.tensor([second_ids])], dim=1)
    media = {name: torch.cat([first[name], second[name]]) for name in first}
    read = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    continued = answer(model, whole, modality_features=features, past_key_values=cache, **second)
    hook.remove()
    assert read[0] == 1 + len(second_ids)  # the last word of the answer was never read
    assert continued == answer(model, whole, **media)
    # By hand: a later part of a sequence, its media, and the attention mask of the whole.
    cache = DynamicCache(config=model.config.text_config)
    before = model(input_ids=start, **first, past_key_values=cache, use_cache=True)
    mask = torch.cat([model.model.place_features(start, None, before.modality_features)[1], torch.ones(1, 9)], dim=1)
    after = model(input_ids=torch.tensor([second_ids]), attention_mask=mask, past_key_values=cache, **second).logits
    full = model(input_ids=torch.tensor([first_ids + second_ids]), **media).logits
    torch.testing.assert_close(after[:, -1], full[:, -1], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_cache_hides_the_placeholders_that_no_token_filled(model):
    """Also from calls that say nothing of the media, and in batches whose rows have other gaps."""
    torch.manual_seed(3)
    words, clips = torch.tensor([[30, 31, 32], [40, 41, 42]]), speech(60, 33)
    rows = left_pad([prompt([SPEECH] * 8, TEXT), prompt(TEXT, [SPEECH] * 5)])
    assert (model.get_audio_features(**clips).mask.sum(1) < torch.tensor([8, 5])).all()  # there are gaps
    mask = torch.cat([rows["attention_mask"], torch.ones_like(words)], dim=1)
    ids = torch.cat([rows["input_ids"], words], dim=1)
    expected = model(input_ids=ids, attention_mask=mask, **clips).logits[:, -3:]
    cache = model(**rows, **clips, use_cache=True).past_key_values
    kept = copy.deepcopy(cache)
    for given in ({}, {"attention_mask": mask}):
        got = model(input_ids=words, past_key_values=copy.deepcopy(cache), **given).logits
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
    one_by_one = [model(input_ids=words[:, i : i + 1], past_key_values=cache).logits for i in range(3)]
    torch.testing.assert_close(torch.cat(one_by_one, dim=1), expected, atol=1e-5, rtol=1e-4)
    whole = model.generate(input_ids=ids, attention_mask=mask, **clips, **GREEDY)
    assert model.generate(input_ids=ids, past_key_values=kept, **GREEDY).tolist() == whole.tolist()
    with pytest.raises(ValueError, match="past_key_values hold 2 rows, got a text of 3"):
        model(input_ids=words[:1].expand(3, -1), past_key_values=cache)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_an_answer_goes_on_without_its_media(model, kind):
    ids, media = interleaved()
    text = model.config.text_config
    room = ids.shape[1] + GREEDY["max_new_tokens"]
    cache = DynamicCache(config=text) if kind == "dynamic" else StaticCache(config=text, max_cache_len=room)
    half = {**GREEDY, "max_new_tokens": 3, "past_key_values": cache}
    some = model.generate(input_ids=ids, **media, **half)
    assert not CacheNote.read(cache, "attended").all()
    expected = answer(model, ids, **media)
    embedded = {"inputs_embeds": model.get_input_embeddings()(some), "past_key_values": copy.deepcopy(cache)}
    assert model.generate(**{**half, **embedded}).tolist() == [expected[0][3:]]
    assert model.generate(input_ids=some, **half)[:, ids.shape[1] :].tolist() == expected
    cache.reset()
    text_alone = torch.tensor([prompt(TEXT, TEXT, TEXT, TEXT)])
    again = model.generate(input_ids=text_alone, **half)
    assert again[:, text_alone.shape[1] :].tolist() == answer(model, text_alone, max_new_tokens=3)


@pytest.mark.parametrize("beams", [1, 3])
def test_embedded_prompts_take_media_too(model, beams):
    rows = mixed_rows()
    batch = batch_of(rows)
    ids = batch.pop("input_ids")
    options = {**batch, **GREEDY, "num_beams": beams}
    expected = model.generate(input_ids=ids, **options)
    embeds = model.get_input_embeddings()(ids)
    assert model.generate(inputs_embeds=embeds, **options).tolist() == expected[:, ids.shape[1] :].tolist()
    assert model.generate(input_ids=ids, inputs_embeds=embeds, **options).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="media need input_ids or inputs_embeds"):
        model.generate(pixel_values=batch["pixel_values"])


@torch.no_grad()
def test_guidance_weighs_the_media_against_a_text_without_them(model):
    (ids, media), scale = interleaved(), 2.0
    plain = [GMASK, SOP] if model.config.text_config.model_type == "chatglm" else [int(ids[0, -1])]
    said, guide = ids, torch.tensor([plain])
    for _ in range(4):
        with_media = model(input_ids=said, **media).logits[0, -1].log_softmax(-1)
        without = model(input_ids=guide).logits[0, -1].log_softmax(-1)
        scores = (scale * (with_media - without) + without).index_fill(
            0, torch.tensor([IMAGE, VIDEO, SPEECH]), -torch.inf
        )
        word = scores.argmax()[None, None]
        said, guide = torch.cat([said, word], dim=1), torch.cat([guide, word], dim=1)
    assert answer(model, ids, **media, guidance_scale=scale, max_new_tokens=4) == said[:, ids.shape[1] :].tolist()


def test_chatglm_refuses_a_cache_that_never_saw_the_later_turn():
    model = tiny_model("chatglm")
    first_ids, first, second_ids, second = two_turns()
    cache = DynamicCache(config=model.config.text_config)
    features = model.encode_media(first)
    model.generate(torch.tensor([prompt(first_ids)]), modality_features=features, past_key_values=cache, **GREEDY)
    whole = torch.tensor([prompt(first_ids, 30, 31, 32, 33, 34, second_ids)])
    with pytest.raises(ValueError, match="bidirectional prefix is longer"):
        model.generate(whole, modality_features=features, past_key_values=cache, **second, **GREEDY)


def test_kept_features_beside_new_media_need_one_row(model):
    first_ids, first, second_ids, second = two_turns()
    features = model.encode_media(first)
    rows = torch.tensor([prompt(first_ids, second_ids)] * 2)
    with pytest.raises(ValueError, match="image: got modality_features and new items for 2 rows"):
        model.generate(rows, modality_features=features, **second, **GREEDY)
    with pytest.raises(ValueError, match="hold 4 placeholder tokens of a modality that no media is given for"):
        answer(model, torch.tensor([prompt(first_ids)]), modality_features={"image": features["image"]})


def test_a_prompt_that_ends_in_an_empty_placeholder_is_not_answered_from_it():
    """Where the prompt cannot be shortened, its last place would be one that nobody attends to."""
    model, clip = tiny_model("llama"), speech(23)
    ids, asked = (
        torch.tensor([[*TEXT, *[SPEECH] * 3]]),
        {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None},
    )
    fired = int(model.encode_media(clip)["speech"].mask.sum())
    assert fired < 3
    plain = model.generate(ids, **clip, **asked)[0, ids.shape[1] :]
    short = model.generate(ids[:, : ids.shape[1] - 3 + fired], modality_features=trimmed(model, clip, fired), **asked)
    assert plain.tolist() == short[0, -3:].tolist()
    with pytest.raises(ValueError, match="1 prompts end in a placeholder that no token fills"):
        model.generate(ids, **clip, **asked, return_dict_in_generate=True)
    last = torch.tensor([[*TEXT, *[SPEECH] * 2, *TEXT, SPEECH]])  # behind a word
    with pytest.raises(ValueError, match="1 prompts end in a placeholder that no token fills"):
        model.generate(last, **clip, **asked, return_dict_in_generate=True)
    behind = torch.cat([ids, torch.tensor([TEXT])], 1)
    whole = model.generate(behind, **clip, **asked, return_dict_in_generate=True).sequences
    assert whole.tolist() == model.generate(behind, **clip, **asked).tolist()


def trimmed(model, clip, fired: int) -> dict:
    """The clip's embeddings with as many placeholders as fired."""
    features = model.encode_media(clip)
    features["speech"].num_placeholders = torch.tensor([fired])
    features["speech"].embeddings = features["speech"].embeddings[:, :fired]
    features["speech"].mask = features["speech"].mask[:, :fired]
    return features

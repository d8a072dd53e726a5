# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The composite model: which slots media fill, what a batch does to a row, generation, freezing."""

import pytest
import torch
from tiny import (
    FRAMES,
    IMAGE,
    PIXELS,
    QUERIES,
    SPEECH,
    STATUS,
    TEXT,
    VIDEO,
    assert_equal_whatever_is_made_by_default,
    batch_of,
    left_pad,
    mixed_rows,
    prompt,
    tiny_config,
    tiny_model,
    tiny_rows,
    tiny_text_config,
)
from transformers import GenerationConfig, LlamaForCausalLM
from transformers.models.blip_2.modeling_blip_2 import Blip2VisionModel

from xllm import X2LConfig, XLLMForConditionalGeneration, XLLMModel
from xllm.modeling_xllm.weight_files import StageCheckpointError
from xllm.modeling_xllm.x2l_interfaces import X2LOutput, place_media


@pytest.fixture(params=["chatglm", "llama"])
def model(request):
    return tiny_model(request.param)


def test_place_media_fills_the_slots_of_each_item_in_order():
    token_mask = torch.tensor([[0, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 0]]).bool()
    # Item 0 owns three placeholders and fills two, item 1 owns three and fills three.
    embeddings = torch.tensor([[[1.0], [2.0], [0.0]], [[3.0], [4.0], [5.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    features = X2LOutput(embeddings=embeddings, mask=mask, num_placeholders=torch.tensor([3, 3]))
    embeds, keep = place_media(token_mask, features)
    assert embeds[..., 0].tolist() == [[0, 1, 2, 0, 0, 0], [3, 4, 0, 0, 5, 0]]
    assert keep.int().tolist() == [[1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]]


def test_place_media_names_both_numbers_when_they_differ():
    features = X2LOutput(
        embeddings=torch.zeros(1, 2, 4), mask=torch.ones(1, 2).bool(), num_placeholders=torch.tensor([2])
    )
    with pytest.raises(ValueError, match=r"image: the text holds 3 placeholder tokens, .* need 2"):
        place_media(torch.ones(1, 3).bool(), features, "image")


def test_known_vectors_arrive_at_their_placeholders_and_nowhere_else(model, monkeypatch):
    """Interfaces that return known vectors, a language model that returns what it reads."""
    rows = mixed_rows()
    batch = batch_of(rows)
    values = {"image": 100.0, "video": 200.0, "speech": 300.0}

    def known(modality, inputs, mask=None, **kwargs):
        counts = {"image": QUERIES, "video": QUERIES * FRAMES, "speech": None}
        row = model.config.modalities[modality]
        owned = torch.full((len(inputs),), counts[modality] or 0)
        if modality == "speech":
            owned = -(-mask.sum(-1) // row.subsampling_factor)
        fired = owned if modality != "speech" else torch.tensor([2, 0])  # of 7 and of 3 placeholders
        width = int(owned.max())
        embeddings = values[modality] + torch.arange(width, dtype=torch.float).expand(len(inputs), -1)
        keep = torch.arange(width) < fired[:, None]
        embeddings = (embeddings * keep)[..., None].expand(-1, -1, 32)
        return X2LOutput(embeddings=embeddings, mask=keep, num_placeholders=owned)

    monkeypatch.setattr(model.model, "_features", known)
    seen = {}

    def record(module, args, kwargs):
        seen.update(kwargs)

    model.model.language_model.register_forward_pre_hook(record, with_kwargs=True)
    model(**batch)
    embeds, mask = seen["inputs_embeds"][..., 0], seen["attention_mask"]
    ids = batch["input_ids"]
    assert embeds[ids == IMAGE].tolist() == [100, 101] * 3
    assert embeds[ids == VIDEO].tolist() == [200.0 + i for i in range(QUERIES * FRAMES)]
    assert embeds[2][ids[2] == SPEECH].tolist() == [300, 301, 0, 0, 0, 0, 0]
    assert mask[2][ids[2] == SPEECH].tolist() == [1, 1, 0, 0, 0, 0, 0]
    assert mask[4][ids[4] == SPEECH].tolist() == [0, 0, 0]
    text = ~torch.isin(ids, torch.tensor([IMAGE, VIDEO, SPEECH]))
    torch.testing.assert_close(embeds[text], model.get_input_embeddings()(ids[text])[..., 0])


def test_a_row_gives_the_same_logits_alone_and_in_a_mixed_batch(model):
    rows = mixed_rows()
    together = model(**batch_of(rows)).logits
    for i, (ids, media) in enumerate(rows):
        alone = model(input_ids=torch.tensor([ids]), **media).logits[0]
        torch.testing.assert_close(together[i, -len(ids) :][-4:], alone[-4:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "mode",
    [
        {},
        {"num_beams": 3},
        {"num_beams": 2, "num_return_sequences": 2},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"repetition_penalty": 1.5},
    ],
    ids=str,
)
def test_a_row_is_answered_the_same_alone_and_in_a_batch(model, mode):
    rows = mixed_rows()
    batch = batch_of(rows)
    mode = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": -1, "repetition_penalty": 1.0, **mode}
    length = batch["input_ids"].shape[1]
    together = model.generate(**batch, **mode)[:, length:].view(len(rows), -1, 6)
    for i, (ids, media) in enumerate(rows):
        alone = model.generate(input_ids=torch.tensor([ids]), **media, **mode)[:, len(ids) :]
        assert together[i].tolist() == alone.tolist()


def test_generation_equals_uncached_recomputation(model):
    batch = batch_of(mixed_rows())
    output = model.generate(**batch, max_new_tokens=5, do_sample=False, eos_token_id=-1)
    media = {name: value for name, value in batch.items() if name not in ("input_ids", "attention_mask")}
    for step in range(1, 5):
        ids = output[:, : batch["input_ids"].shape[1] + step]
        mask = torch.nn.functional.pad(batch["attention_mask"], (0, step), value=1)
        logits = model(input_ids=ids, attention_mask=mask, **media).logits[:, -1]
        logits[:, [IMAGE, VIDEO, SPEECH]] = -torch.inf
        next_ids = output[:, ids.shape[1]]
        best = logits.max(-1).values
        torch.testing.assert_close(logits.gather(1, next_ids[:, None])[:, 0], best, atol=1e-4, rtol=0)


def test_unfired_speech_slots_count_for_nothing(model):
    """Deleting the placeholders that no token fills changes no logit."""
    ids, media = mixed_rows()[4]
    features = model.get_audio_features(**media)
    fired = int(features.mask.sum())
    assert 0 < fired < 3  # the clip owns three placeholders
    full = model(input_ids=torch.tensor([ids]), **media).logits[0, -3:]
    deleted = torch.tensor([[i for n, i in enumerate(ids) if not (i == SPEECH and n >= fired)]])
    embeds = torch.zeros(1, deleted.shape[1], 32)
    embeds[0, :fired] = features.pooler_output[0]
    torch.testing.assert_close(
        model(input_ids=deleted, media_embeds=embeds).logits[0, -3:], full, atol=1e-5, rtol=1e-4
    )


def test_missing_video_frames_are_neither_encoded_nor_read(model):
    torch.manual_seed(3)
    videos = torch.randn(1, FRAMES, 3, PIXELS, PIXELS)
    ids = torch.tensor([prompt([VIDEO] * QUERIES * 2, TEXT)])
    mask = torch.tensor([[1, 1, 0]])
    first = model(input_ids=ids, pixel_values_videos=videos, video_frame_mask=mask).logits
    videos[:, 2] = 9.0
    again = model(input_ids=ids, pixel_values_videos=videos, video_frame_mask=mask).logits
    short = model(input_ids=ids, pixel_values_videos=videos[:, :2], video_frame_mask=mask[:, :2]).logits
    torch.testing.assert_close(first, again)
    torch.testing.assert_close(first, short)


def test_every_modality_changes_the_answer(model):
    batch = batch_of(mixed_rows())
    before = model(**batch).logits[:, -1]
    for name, rows in (("pixel_values", [1, 3]), ("pixel_values_videos", [2]), ("input_features", [2, 4])):
        changed = {**batch, name: torch.randn_like(batch[name]) * 2}
        difference = (model(**changed).logits[:, -1] - before).abs().amax(-1)
        assert sorted(difference.topk(len(rows)).indices.tolist()) == rows
        assert difference[rows].min() > 1e-4


def test_wrong_counts_and_missing_media_are_errors(model):
    ids, media = mixed_rows()[1]
    with pytest.raises(ValueError, match="image: the text holds 1 placeholder tokens, but the 1 item.* need 2"):
        model(input_ids=torch.tensor([ids[1:]]), **media)
    with pytest.raises(ValueError, match="input_ids hold 2 placeholder tokens but no media is given"):
        model(input_ids=torch.tensor([ids]))
    with pytest.raises(ValueError, match="image: the text holds 0 placeholder"):
        model.generate(input_ids=torch.tensor([prompt(TEXT)]), **media, max_new_tokens=1)


def test_placeholders_are_never_part_of_an_answer(model):
    with torch.no_grad():
        model.lm_head.weight[:] = 0
    output = model.generate(torch.tensor([prompt(TEXT)]), max_new_tokens=3, eos_token_id=-1)
    assert output[0, -3:].tolist() == [0, 0, 0]
    with torch.no_grad():  # a model that wants nothing but to say "image"
        model.lm_head.weight[IMAGE] = model(torch.tensor([prompt(TEXT)]), output_hidden_states=True).hidden_states[-1][
            0, -1
        ]
    output = model.generate(torch.tensor([prompt(TEXT)]), max_new_tokens=3, eos_token_id=-1)
    assert IMAGE not in output.tolist()[0]


def test_encoders_run_once_per_generation(model):
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    ids, media = mixed_rows()[1]
    model.generate(input_ids=torch.tensor([ids]), **media, max_new_tokens=4, num_beams=2, eos_token_id=-1)
    assert len(calls) == 1


def test_frozen_parts_stay_in_eval_mode_and_get_no_gradient(model):
    model.requires_grad_(False)
    adapter = model.model.interfaces["image"].adapter.requires_grad_(True)
    model.train()
    frozen = [model.model.vision_tower, model.model.audio_tower, model.model.language_model, model.lm_head]
    frozen += [model.model.interfaces["image"].converter, model.model.interfaces["speech"].converter.bert]
    assert not any(module.training for part in frozen for module in part.modules())
    assert adapter.training
    batch = batch_of(mixed_rows())
    labels = batch["input_ids"].clone()
    first = model(**batch, labels=labels).loss
    assert first.item() == model(**batch, labels=labels).loss.item()  # no dropout anywhere
    first.backward()
    assert adapter.weight.grad.abs().sum() > 0
    assert [name for name, p in model.named_parameters() if p.grad is not None] == [
        "model.interfaces.image.adapter.weight",
        "model.interfaces.image.adapter.bias",
    ]


def test_train_follows_what_is_frozen_now(model):
    converter = model.model.interfaces["speech"].converter

    def training_modes() -> list[bool]:
        return [part.training for part in (converter, converter.cif, converter.cif.dropout, converter.bert)]

    model.requires_grad_(False).train()
    assert training_modes() == [False] * 4
    converter.bert.requires_grad_(True)
    model.train()
    assert training_modes() == [True, False, False, True]
    converter.bert.encoder.layer[1].attention.eval()
    model.train()
    assert all(module.training for module in converter.bert.modules())
    converter.cif.requires_grad_(True)
    model.train()
    assert training_modes() == [True] * 4
    assert not model.train(False).training
    assert not any(module.training for module in model.modules())


def test_a_text_only_batch_can_be_trained_on(model):
    model.requires_grad_(False)
    model.model.interfaces.requires_grad_(True)
    model.train()
    ids = torch.tensor([prompt(TEXT)])
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is None for parameter in model.parameters())  # an optimizer leaves them as they are
    model.requires_grad_(False)
    with pytest.raises(RuntimeError, match="does not require grad"):
        model(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize("wrong", [-1, 5000])
def test_ids_of_another_vocabulary_are_named(model, wrong):
    with pytest.raises(ValueError, match=rf"input_ids must lie in 0..119, got .*{wrong}.*tokenizer"):
        model(input_ids=torch.tensor([prompt([*TEXT, wrong])]))


def test_placeholders_are_no_targets(model):
    batch = batch_of(mixed_rows())
    ids = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    targets = ids.masked_fill(torch.isin(ids, torch.tensor([IMAGE, VIDEO, SPEECH])), -100)
    expected = model(**batch, labels=targets).loss
    assert model(**batch, labels=ids).loss.item() == expected.item()
    model.requires_grad_(False).train()  # no dropout, and only the supervised positions are projected
    assert model(**batch, labels=ids).loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_new_modality_is_a_config_entry():
    status = X2LConfig(
        encoder=None,
        encoder_hidden_size=6,
        input_name="status_values",
        mask_name="status_mask",
        converter="linear",
        placeholder_token="<StatusHere>",
        token_id=STATUS,
    )
    model = tiny_model(rows=tiny_rows(status=status))
    ids = torch.tensor([prompt([STATUS] * 4, TEXT), prompt([STATUS] * 4, TEXT)])
    values, mask = torch.randn(2, 4, 6), torch.ones(2, 4)
    first = model(input_ids=ids, status_values=values, status_mask=mask).logits
    assert not torch.allclose(first[0, -1], first[1, -1])
    output = model.generate(input_ids=ids, status_values=values, status_mask=mask, max_new_tokens=2, eos_token_id=-1)
    assert output[:, ids.shape[1]].tolist() == first[:, -1].argmax(-1).tolist()
    assert [tuple(item.shape) for item in model.get_features("status", values, mask).pooler_output] == [(4, 32)] * 2


def test_features_are_what_the_language_model_reads(model):
    ids, media = mixed_rows()[2]
    videos = model.get_video_features(media["pixel_values_videos"], media["video_frame_mask"])
    assert [tuple(item.shape) for item in videos.pooler_output] == [(QUERIES * FRAMES, 32)]
    clips = model.get_audio_features(media["input_features"], media["input_features_mask"])
    assert clips.pooler_output[0].shape[0] == int(clips.mask.sum()) <= int(clips.num_placeholders) == 7
    read = model(input_ids=torch.tensor([ids]), **media).modality_features
    assert list(read) == ["speech", "video"]
    for features, expected in zip(read.values(), (clips, videos)):
        torch.testing.assert_close(features.embeddings, expected.embeddings)
    with pytest.raises(ValueError, match="modality must be one of image, speech, video, got 'smell'"):
        model.get_features("smell", torch.zeros(1))


def pictures_of_one_token_of_two() -> dict[str, X2LOutput]:
    embeddings, mask = torch.ones(1, 2, 32), torch.tensor([[True, False]])
    return {"image": X2LOutput(embeddings=embeddings, mask=mask, num_placeholders=torch.tensor([2]))}


def test_media_over_a_text_behind_cached_tokens_by_hand():
    tree, features = tiny_model("llama").model, pictures_of_one_token_of_two()
    ids = torch.tensor([[7, IMAGE, IMAGE, 8]])
    for given, expected in ((None, [1, 1, 0, 1]), (torch.tensor([[0, 1, 1, 1, 1, 1]]), [0, 1, 1, 1, 0, 1])):
        embeds, mask = tree.place_features(ids, given, features)
        assert mask.tolist() == [expected]
        assert embeds.sum(-1).tolist() == [[0, 32, 0, 0]]
    assert_equal_whatever_is_made_by_default(lambda: dict(enumerate(tree.place_features(ids, None, features))))
    ids = torch.tensor([[VIDEO, IMAGE, IMAGE]])
    assert tree.place_features(ids, None, features, seen=1)[1].tolist() == [[1, 1, 0]]
    with pytest.raises(ValueError, match="hold 1 placeholder tokens of a modality that no media is given for"):
        tree.place_features(ids, None, features)
    assert tree.placeholder_ids(without=["image"]) == [SPEECH, VIDEO]
    tree.config.modalities["image"].token_id = None
    assert tree.placeholder_ids() == [SPEECH, VIDEO]
    with pytest.raises(ValueError, match=r"modalities\['image'\].token_id is not set"):
        tree.place_features(ids, None, features, seen=1)


def test_what_is_given_to_a_step_is_said_to_be_wrong_or_read(model):
    ids = torch.tensor([prompt(TEXT)])
    embeds = model.get_input_embeddings()(ids)
    for given in ({}, {"input_ids": ids, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="give exactly one of input_ids and inputs_embeds"):
            model(**given)
    pictures = tiny_model("llama", rows={"image": tiny_rows()["image"]})
    with pytest.raises(ValueError, match="input_features given, but no row of config.modalities reads it"):
        pictures(input_ids=ids, input_features=torch.randn(1, 9, 80))
    cache = model(input_ids=ids, use_cache=True).past_key_values
    model(input_ids=torch.tensor([[IMAGE]]), past_key_values=cache)  # behind a prompt a drafted step may read anything
    model.train()
    assert model(input_ids=ids).past_key_values is None
    assert model(input_ids=ids, use_cache=True).past_key_values is not None
    assert model.model(input_ids=ids).last_hidden_state.requires_grad
    with torch.no_grad():
        assert not model.model(input_ids=ids).last_hidden_state.requires_grad


@torch.no_grad()
def test_new_media_come_behind_those_encoded_before():
    """In one row; of several it is not known which holds which."""
    model, (ids, media) = tiny_model("llama"), mixed_rows()[3]
    first, second = ({"pixel_values": picture} for picture in media["pixel_values"].split(1))
    given = {"modality_features": model.encode_media(first), **second}
    expected = model(input_ids=torch.tensor([ids]), **media).logits
    torch.testing.assert_close(model(input_ids=torch.tensor([ids]), **given).logits, expected, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="image: got modality_features and new items for 2 rows"):
        model(input_ids=torch.tensor([ids] * 2), **given)


@torch.no_grad()
@pytest.mark.parametrize("by_embeddings", [False, True])
def test_a_text_that_goes_on_without_a_mask_sees_no_gaps_of_its_cache(by_embeddings):
    model = tiny_model("llama")
    ids, media = mixed_rows()[4]
    words = torch.tensor([[11, 12]])
    whole = model(input_ids=torch.tensor([[*ids, 11, 12]]), **media).logits[:, -2:]
    cache = model(input_ids=torch.tensor([ids]), **media, use_cache=True).past_key_values
    given = {"inputs_embeds": model.get_input_embeddings()(words)} if by_embeddings else {"input_ids": words}
    torch.testing.assert_close(model(**given, past_key_values=cache).logits, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_step_of_text_runs_what_other_processes_train(monkeypatch, processes):
    for module in ("modeling_xllm", "cformer"):
        monkeypatch.setattr(f"xllm.modeling_xllm.{module}.world_size", lambda: processes)
    model, ids = tiny_model("llama").requires_grad_(False), torch.tensor([prompt(TEXT)])
    adapter = model.model.interfaces["image"].adapter.requires_grad_(True)
    expected = model(input_ids=ids, labels=ids).loss
    loss = model.train()(input_ids=ids, labels=ids).loss
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert (adapter.weight.grad is None) == (processes == 1)
    assert adapter.weight.grad is None or not adapter.weight.grad.any()


@torch.no_grad()
@pytest.mark.parametrize(
    "given", [{"token_type_ids": torch.zeros(1, 6).long()}, {"position_ids": torch.arange(12).view(2, 1, 6)}], ids=list
)
def test_a_layout_that_is_given_is_the_language_models(given):
    model, ids = tiny_model(), torch.tensor([prompt(TEXT)])
    expected = model.lm_head(model.model.language_model(ids, **given).last_hidden_state)
    torch.testing.assert_close(model(input_ids=ids, **given).logits, expected)
    assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3)


@torch.no_grad()
def test_an_evaluation_computes_all_columns_of_a_text_without_media(model):
    batch = left_pad([prompt(TEXT), prompt(TEXT[:2])])
    cached = model(**batch, use_cache=True).logits
    torch.testing.assert_close(model(**batch, use_cache=False).logits, cached)  # those of padding too


@pytest.mark.parametrize("tied", [False, True])
def test_a_head_may_be_the_embedding(tied):
    model = tiny_model("llama", tie_word_embeddings=tied)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


def test_a_composed_model_is_its_towers_and_stops_where_they_do(tmp_path):
    config, causal = tiny_config("llama"), LlamaForCausalLM(tiny_text_config("llama"))
    causal.generation_config = GenerationConfig(eos_token_id=[7, 9])
    causal.half().save_pretrained(tmp_path / "llm")
    vision = Blip2VisionModel(config.vision_config).half()
    vision.save_pretrained(tmp_path / "vision")
    model = XLLMForConditionalGeneration.from_towers(
        str(tmp_path / "llm"),
        {"vision": str(tmp_path / "vision")},
        modalities={"image": config.modalities["image"]},
        dtype=torch.float32,
    )
    parts = ((model.model.language_model, causal.float().model), (model.model.vision_tower, vision.float()))
    for part, tower in parts:
        torch.testing.assert_close(part.state_dict(), tower.state_dict(), atol=0, rtol=0)
    assert torch.equal(model.lm_head.weight, causal.lm_head.weight)
    assert model.generation_config.eos_token_id == [7, 9]


def test_a_language_model_without_its_head_is_not_composed(tmp_path):
    whole, at = tiny_model("llama"), str(tmp_path)
    whole.save_pretrained(
        at, state_dict={k: value for k, value in whole.state_dict().items() if k != "lm_head.weight"}
    )
    with pytest.raises(StageCheckpointError, match="language_model: .* does not fit this model: 1 missing: lm_head"):
        XLLMForConditionalGeneration.from_towers(at, {"vision": at}, modalities={"image": tiny_rows()["image"]})


def test_a_model_without_its_head_begins_as_one_with_it():
    queries = XLLMModel(tiny_config()).interfaces["image"].converter.query_tokens
    assert 0 < queries.std() < 1


def test_series_are_encoded_last():
    """The number of their pictures is asked of the device before, and read when the rest is under way."""
    rows = tiny_rows()
    rows["video"].shares_converter_with, rows["video"].converter_config = None, rows["image"].converter_config
    model = tiny_model("llama", rows={"film": rows["video"], "speech": rows["speech"]})
    runs = []
    for name in ("vision_tower", "audio_tower"):
        model.model.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.append(name))
    media = mixed_rows()[2][1]
    assert list(model.encode_media(media)) == ["film", "speech"]
    assert runs == ["audio_tower", "vision_tower"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Batches: which tokens carry loss, what is cut when a sample is too long, and the batches of stage 1."""

import copy
import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from processor_parts import composed, small_processor
from transformers import GenerationConfig, LlamaConfig

from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.processing.media_sources import MediaError
from xllm.training.batches import collator
from xllm.training.batches.collator import TEACHER, XLLMDataCollator, chat_settings, on_one_day, text_ids
from xllm.training.batches.notes import NamedBatches
from xllm.training.data.augmentation import Augmentation
from xllm.training.data.dataset import ChatDataset, SampleError
from xllm.training.data.sources import load_source
from xllm.training.instructions.speech_synthesis import wav_bytes
from xllm.training.recipes.recipe import SourceSpec


def user(*parts):
    return {
        "role": "user",
        "content": [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts],
    }


def assistant(text):
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def picture(color="red"):
    return {"type": "image", "image": Image.new("RGB", (40, 30), color)}


def clip(seconds=0.4):
    return {"type": "audio", "audio": np.full(int(16_000 * seconds), 0.01, np.float32)}


def ids_of(processor, text):
    return processor.tokenizer(text, add_special_tokens=False)["input_ids"]


def labels_as_text(processor, row):
    return processor.tokenizer.convert_ids_to_tokens([token for token in row.tolist() if token != -100])


def test_loss_is_on_sop_answer_and_eop_alone(tiny_processor):
    tokenizer = tiny_processor.tokenizer
    question, answer = ids_of(tiny_processor, "What?"), ids_of(tiny_processor, "a dog")
    batch = XLLMDataCollator(tiny_processor)([{"messages": [user("What?"), assistant("a dog")]}])
    gmask, sop, eop = tokenizer.gmask_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    assert batch["input_ids"].tolist() == [[*question, gmask, sop, *answer, eop]]
    assert batch["labels"].tolist() == [[-100] * (len(question) + 1) + [sop, *answer, eop]]
    assert batch["attention_mask"].all()


def test_a_sound_longer_than_its_encoder_hears_names_its_row_and_what_a_run_does_about_it(tiny_processor):
    """By its place where it has one, else by its number in the batch; decoded before, or not yet."""
    processor = copy.deepcopy(tiny_processor)
    processor.rows["speech"].most_positions = 200  # two seconds
    way_out = "set data.max_seconds to no more than that, and data.long_audio to chunk or window"
    fine, long = ({"messages": [user(clip(seconds), "What?"), assistant("a")]} for seconds in (1, 3))
    decoded = {"type": "audio", "audio": processor.load("audio", clip(3)["audio"])}
    named = {"messages": [user(decoded, "What?"), assistant("a")], "where": "rows.jsonl:7"}
    for samples, place in (([fine, long], "sample 2 of the batch"), ([fine, named], "rows.jsonl:7")):
        for task, more in (("chat", {}), ("transcribe", {"modality": "speech"})):
            with pytest.raises(MediaError) as caught:
                XLLMDataCollator(processor, task=task, **more)(samples)
            assert str(caught.value).startswith(f"{place}: a sound of 3.0 s: the most that is heard as a whole is 2 s")
            assert str(caught.value).endswith(way_out)
    processor.rows["speech"].most_positions = 400
    assert len(XLLMDataCollator(processor)([fine, named])["input_ids"]) == 2


def test_an_error_that_is_of_no_one_medium_is_told_as_it_is(tiny_processor):
    processor, error = copy.copy(tiny_processor), MediaError("all of them", "too many")

    def encode(*args, **kwargs):
        raise error

    processor.encode_conversations = encode
    with pytest.raises(MediaError) as caught:
        XLLMDataCollator(processor)([{"messages": [user(picture(), "What?"), assistant("a")]}])
    assert caught.value is error


def test_a_run_names_the_row_of_such_a_sound_once(tiny_processor, tmp_path):
    processor = copy.deepcopy(tiny_processor)
    processor.rows["speech"].most_positions = 200
    for name, seconds in (("short", 1), ("long", 3)):
        (tmp_path / f"{name}.wav").write_bytes(wav_bytes(clip(seconds)["audio"], 16_000))
    rows = [{"messages": [user({"type": "audio", "path": f"{name}.wav"}, "What?"), assistant("a")]}
            for name in ("short", "long")]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ChatDataset([load_source(SourceSpec(path=str(tmp_path / "rows.jsonl")))], processor)
    with pytest.raises(SampleError) as caught:
        NamedBatches(XLLMDataCollator(processor))([data[0], data[1]])
    assert str(caught.value).startswith(f"{tmp_path / 'rows.jsonl'}:2: a sound of 3.0 s")
    assert str(caught.value).count("rows.jsonl") == 1
    assert str(caught.value).endswith("data.long_audio to chunk or window")


def test_the_prompt_is_what_generation_will_see(tiny_processor):
    messages = [user(picture(), "What?"), assistant("a dog")]
    prompt = tiny_processor.encode_conversations([messages[:-1]])["input_ids"]
    whole = XLLMDataCollator(tiny_processor)([{"messages": messages}])["input_ids"]
    assert torch.equal(whole[:, : prompt.shape[1]], prompt)


def test_mixed_batch_keeps_media_in_order_and_pads_behind(tiny_processor):
    samples = [
        {"messages": [user(clip(0.4), "Say it"), assistant("b")]},
        {"messages": [user("Only text?"), assistant("yes it is")]},
        {"messages": [user(picture("red"), picture("blue"), clip(0.2), "Both?"), assistant("c")]},
    ]
    batch = XLLMDataCollator(tiny_processor)(samples)
    assert batch["pixel_values"].shape[0] == 2
    assert batch["pixel_values"][0, 0].mean() > batch["pixel_values"][1, 0].mean()  # red, then blue
    assert batch["input_features_mask"].sum(1).tolist() == [38, 18]  # 1 + (samples - 400) // 160
    factor, queries = tiny_processor.subsampling_factor, tiny_processor.num_query_tokens
    ids = batch["input_ids"]
    assert (ids == tiny_processor.audio_token_id).sum(1).tolist() == [-(-38 // factor), 0, -(-18 // factor)]
    assert (ids == tiny_processor.image_token_id).sum(1).tolist() == [0, 0, 2 * queries]
    assert [labels_as_text(tiny_processor, row)[1:-1] for row in batch["labels"]] == [
        tiny_processor.tokenizer.tokenize(text) for text in ("b", "yes it is", "c")
    ]
    real = batch["attention_mask"].bool()
    assert (batch["labels"][~real] == -100).all()
    assert (batch["attention_mask"][:, 1:] <= batch["attention_mask"][:, :-1]).all()
    assert (batch["input_ids"][~real] == tiny_processor.tokenizer.pad_token_id).all()


def test_only_the_last_answer_or_one_row_per_answer(tiny_processor):
    messages = [user("one?"), assistant("a"), user("two?"), assistant("b")]
    last = XLLMDataCollator(tiny_processor)([{"messages": messages}])
    assert [labels_as_text(tiny_processor, row)[-2] for row in last["labels"]] == ["b"]
    both = XLLMDataCollator(tiny_processor, loss_on="all")([{"messages": messages}])
    assert [labels_as_text(tiny_processor, row)[-2] for row in both["labels"]] == ["a", "b"]
    alone = XLLMDataCollator(tiny_processor)([{"messages": messages[:2]}])["input_ids"][0]
    assert torch.equal(both["input_ids"][0, : len(alone)], alone)  # the first row does not see what follows


def test_too_long_loses_old_text_but_never_media_question_or_answer(tiny_processor):
    old = [user("an old question"), assistant("an old answer")]
    seen = [user(picture(), "seen?"), assistant("yes")]
    new = [user("the last question?"), assistant("the answer")]
    full = XLLMDataCollator(tiny_processor)([{"messages": [*old, *seen, *new]}])
    wanted = XLLMDataCollator(tiny_processor)([{"messages": [*seen, *new]}])
    limit = wanted["input_ids"].shape[1]
    cut = XLLMDataCollator(tiny_processor, max_length=limit)([{"messages": [*old, *seen, *new]}])
    assert full["input_ids"].shape[1] > limit
    assert torch.equal(cut["input_ids"], wanted["input_ids"])
    assert torch.equal(cut["labels"], wanted["labels"])
    with pytest.raises(ValueError, match=f"max_length is {limit - 1}, and there is no older turn of text"):
        XLLMDataCollator(tiny_processor, max_length=limit - 1)([{"messages": [*old, *seen, *new]}])


def test_a_datasets_table_with_none_columns(tiny_processor, media):
    table = Dataset.from_list(
        [
            {
                "messages": [user({"type": "image", "path": str(media / "red.png")}, "What?"), assistant("red")],
                "note": "x",
            },
            {
                "messages": [user({"type": "audio", "path": str(media / "low.wav")}, "What?"), assistant("low")],
                "note": None,
            },
        ]
    )
    assert table[1]["messages"][0]["content"][1]["path"] is None  # what datasets makes of it
    batch = XLLMDataCollator(tiny_processor)([table[0], table[1]])
    assert set(batch) == {
        "pixel_values",
        "input_features",
        "input_features_mask",
        "input_ids",
        "attention_mask",
        "labels",
    }


def test_transcripts(tiny_processor):
    samples = [
        {"messages": [user(clip(0.4), "Say it"), assistant("ab c")]},
        {"messages": [user(clip(0.2)), assistant("d")]},
    ]
    batch = XLLMDataCollator(tiny_processor, task="transcribe")(samples)
    long, short = ids_of(tiny_processor, "ab c"), ids_of(tiny_processor, "d")
    assert batch["labels"].tolist() == [long, short + [-100] * (len(long) - len(short))]
    assert batch["input_features_mask"].sum(1).tolist() == [38, 18]
    assert set(batch) == {"input_features", "input_features_mask", "labels"}
    silent = XLLMDataCollator(tiny_processor, task="transcribe")([{"messages": [user(clip()), assistant("")]}])
    assert (silent["labels"].shape, silent["labels"].dtype) == ((1, 0), torch.long)


def test_contrast_texts_open_with_cls_and_end_with_sep(tiny_processor):
    special = text_ids(tiny_processor.tokenizer)
    samples = [{"messages": [user(picture()), assistant("a dog")]}, {"messages": [user(picture()), assistant("a")]}]
    batch = XLLMDataCollator(tiny_processor, task="contrast", max_length=5)(samples)
    long, short = ids_of(tiny_processor, "a dog")[:3], ids_of(tiny_processor, "a")
    assert len(short) < len(long) == 3
    rows = [[special.cls, *long, special.sep], [special.cls, *short, special.sep]]
    rows[1] += [special.pad] * (3 - len(short))
    assert batch["input_ids"].tolist() == rows
    assert batch["attention_mask"].tolist() == [[1] * 5, [1] * (2 + len(short)) + [0] * (3 - len(short))]
    assert batch["pixel_values"].shape[0] == 2
    assert special.dec == len(tiny_processor.tokenizer)


@pytest.mark.parametrize(
    ("task", "messages", "message"),
    [
        ("chat", [], "has no messages"),
        ("chat", [user("a")], "the last message is the user's"),
        (
            "chat",
            [user("a"), {"role": "assistant", "content": user(picture(), "b")["content"]}],
            "the assistant's answer holds a medium",
        ),
        ("transcribe", [user("a"), assistant("b")], "takes one audio per sample, got none"),
        ("transcribe", [user(clip(), clip()), assistant("b")], "got audio, audio"),
        ("contrast", [user(clip()), assistant("b")], "takes one image or video per sample, got audio"),
        (
            "contrast",
            [user(picture(), picture()), assistant("b")],
            "takes one image or video per sample, got image, im",
        ),
    ],
)
def test_samples_of_the_wrong_kind(tiny_processor, task, messages, message):
    with pytest.raises(ValueError, match=message):
        XLLMDataCollator(tiny_processor, task=task)([{"messages": messages}])


def test_a_batch_of_stage_one_is_of_one_kind_and_of_the_row_that_is_trained(tiny_processor):
    film = {"type": "video", "video": "film.mp4"}
    samples = [{"messages": [user(medium), assistant("b")]} for medium in (picture(), film)]
    with pytest.raises(ValueError, match="takes batches of one kind, got image and video"):
        XLLMDataCollator(tiny_processor, task="contrast")(samples)
    with pytest.raises(ValueError, match="takes one video per sample, got image"):
        XLLMDataCollator(tiny_processor, task="contrast", modality="video")(samples[:1])


class Vocabulary:
    """A tokenizer of ten tokens that has only the special ones named."""

    def __init__(self, **ids):
        vars(self).update({f"{name}_token_id": value for name, value in ids.items()})

    def __len__(self):
        return 10


def test_ids_around_a_text_by_hand():
    assert text_ids(Vocabulary(cls=1, sep=2, pad=0, bos=8, eos=9)) == (1, 10, 2, 0, 11)
    assert text_ids(Vocabulary(cls=None, gmask=7, bos=8, eos=9, pad=3)) == (7, 10, 9, 3, 11)
    assert text_ids(Vocabulary(bos=8, eos=9)) == (8, 10, 9, 9, 11)
    with pytest.raises(ValueError, match="tokenizer Vocabulary has no token to be sep of a text"):
        text_ids(Vocabulary(cls=1))


def test_the_oldest_turn_goes_with_its_answer_and_no_more(tiny_processor):
    drop = XLLMDataCollator(tiny_processor)._drop_oldest_turn
    first, again, said, last, end = user("a"), user("b"), assistant("c"), user("d"), assistant("e")
    assert drop([first, again, said, last, end], 9, 1) == [again, said, last, end]
    rules = {"role": "system", "content": [{"type": "text", "text": "rules"}]}
    assert drop([rules, first, said, last, end], 9, 1) == [rules, last, end]
    seen = user(picture())
    assert drop([seen, said, first, last, end], 9, 1) == [seen, said, last, end]
    with pytest.raises(ValueError, match="a sample has 9 prompt and 1 answer tokens"):
        drop([last, end], 9, 1)


def test_text_may_be_given_as_a_string_and_packing_is_said(tiny_processor):
    plain = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "a dog"}]
    batch = XLLMDataCollator(tiny_processor, packing=True)([{"messages": plain}])
    assert batch.pop("packing") is True
    parts = XLLMDataCollator(tiny_processor)([{"messages": [user("What?"), assistant("a dog")]}])
    assert batch.keys() == parts.keys()
    assert all(torch.equal(batch[name], parts[name]) for name in parts)


def test_each_clip_is_augmented_by_its_sample_s_seed_and_its_place(tiny_processor):
    """Real frames alone; a clip beside others of its row is known by its row, one alone by what is said of it."""
    seen = []

    class Spy:
        def handles(self, kind):
            return kind == "features"

        def apply_to_features(self, clips, texts, rngs):
            seen.append(([len(one) for one in clips], texts, [rng and rng.random() for rng in rngs]))
            return [one + 1 for one in clips]

    samples = [
        {"messages": [user(clip(0.4), clip(0.2), "Both?"), assistant("c")], "seed": 3},
        {"messages": [user(clip(0.3), "One?"), assistant("a"), user("And?"), assistant("b")], "seed": 5},
        {"messages": [user(picture(), clip(0.2)), assistant("d")]},
    ]
    plain = XLLMDataCollator(tiny_processor, loss_on="all")(samples)
    batch = XLLMDataCollator(tiny_processor, loss_on="all", augmentation=Spy())(samples)
    ((lengths, texts, drawn),) = seen
    assert lengths == batch["input_features_mask"].sum(1).tolist() == [38, 18, 28, 28, 18]
    assert texts == ["\0" + "0", "\0" + "0", "a", "b", "d"]
    assert drawn == [*(np.random.default_rng(seed).random() for seed in ([3, 0], [3, 1], [5, 0], [5, 0])), None]
    added = batch["input_features"] - plain["input_features"]
    torch.testing.assert_close(added, batch["input_features_mask"][..., None].float().expand_as(added))
    assert torch.equal(batch["pixel_values"], plain["pixel_values"])
    XLLMDataCollator(tiny_processor, augmentation=Spy())([{"messages": [user(picture()), assistant("a")]}])
    assert len(seen) == 1, "nothing is heard"


def test_unknown_switches(tiny_processor):
    with pytest.raises(ValueError, match="choose one of chat, transcribe, contrast"):
        XLLMDataCollator(tiny_processor, task="asr")
    with pytest.raises(ValueError, match="choose last or all"):
        XLLMDataCollator(tiny_processor, loss_on="first")


def test_features_are_augmented_from_the_sample_s_seed(tiny_processor):
    rng = np.random.default_rng(0)
    wave = {"type": "audio", "audio": rng.standard_normal(16_000).astype(np.float32) * 0.1}
    messages = [user(wave), assistant("b")]
    augmentation = Augmentation.from_spec([{"spec_augment": {"mel_masks": 1, "mel_width": 40, "time_masks": 0}}])
    collator = XLLMDataCollator(tiny_processor, augmentation=augmentation)

    def features(**extra):
        return collator([{"messages": messages, **extra}])["input_features"]

    plain = XLLMDataCollator(tiny_processor)([{"messages": messages}])["input_features"]
    assert torch.equal(features(), plain)  # no seed: an evaluation sample
    assert torch.equal(features(seed=3), features(seed=3))
    assert not torch.equal(features(seed=3), features(seed=4))
    masked = (features(seed=3) != plain).any(1)[0]  # one band of bins, all frames
    assert 0 < masked.sum() <= 40
    assert (features(seed=3)[0][:, masked] == 0).all()


def test_captions_that_are_cut_are_counted(tiny_processor, caplog):
    collate = XLLMDataCollator(tiny_processor, task="contrast", max_length=8)
    samples = [{"messages": [user(picture()), assistant(text)]} for text in ("a b", "a b c d e f g h i j k l m n")]
    batch = collate(samples)
    assert batch["attention_mask"].sum(1).max() == 8
    for cuts in ('{"texts": 1}', '{"texts": 2}'):  # whole numbers, in the log too
        assert json.dumps(collate.cuts()) == cuts
        assert caplog.text.count("texts: a sample is too long and was cut") == 1
        collate(samples)
    length = len(ids_of(tiny_processor, "a b c d e"))
    for room, cuts in ((length + 2, {}), (length + 1, {"texts": 1})):
        collate = XLLMDataCollator(tiny_processor, task="contrast", max_length=room)
        batch = collate([{"messages": [user(picture()), assistant("a b c d e")]}])
        assert batch["input_ids"].shape == (1, room)
        assert collate.cuts() == cuts
    batch = XLLMDataCollator(tiny_processor, task="contrast")(
        [{"messages": [user(picture()), assistant("a b " * 40)]}]
    )
    assert batch["input_ids"].shape == (1, 32)


@pytest.mark.parametrize(("ends", "stop_ids"), [(None, []), (2, [2]), ([2, 7], [2, 7])])
def test_settings_that_follow_from_a_model(ends, stop_ids):
    generation = GenerationConfig(eos_token_id=ends)
    assert chat_settings(XLLMConfig(), generation) == {"causal": False, "stop_ids": stop_ids}  # ChatGLM's prefix
    causal = XLLMConfig(text_config=LlamaConfig(hidden_size=16, num_attention_heads=2))
    assert chat_settings(causal, generation) == {"causal": True, "stop_ids": stop_ids}


@pytest.mark.parametrize("named", [False, True])
def test_today_is_one_day_in_every_template(tiny_processor, named, caplog):
    template = "{{ strftime_now('%d %B %Y') }}"
    processor = copy.copy(tiny_processor)
    processor.chat_template = {"default": template, "tools": f"{template}!"} if named else template
    fixed = on_one_day(processor)
    assert processor.chat_template != fixed.chat_template
    templates = fixed.chat_template.values() if named else [fixed.chat_template]
    written = {fixed.apply_chat_template([user("What?")], chat_template=one, tokenize=False) for one in templates}
    assert written == ({"26 July 2024", "26 July 2024!"} if named else {"26 July 2024"})
    assert on_one_day(tiny_processor) is tiny_processor
    dated = copy.copy(tiny_processor)
    dated.chat_template = "{{ strftime_now('%A %-d.%-m.%y, %F') }}"
    assert on_one_day(dated).apply_chat_template([user("What?")], tokenize=False) == "Friday 26.7.24, 2024-07-26"


def test_a_teacher_reads_what_the_media_say(tiny_processor):
    """Rows without such a text are marked: their answers are no lesson."""
    rows = [[user(clip(), "Say it"), assistant("b")]]
    rows.append([user("Only text?"), assistant("yes"), user("Sure?"), assistant("no")])
    samples = [{"messages": row, "equivalents": texts} for row, texts in zip(rows, (["one two"], None))]
    batch = XLLMDataCollator(tiny_processor, distills=True)(samples)[TEACHER]
    assert batch["rows"].tolist() == [True, False]
    said = [[user("one two", "Say it"), assistant("b")], rows[1]]
    plain = XLLMDataCollator(tiny_processor)([{"messages": row} for row in said])
    assert all(torch.equal(batch[name], plain[name]) for name in ("input_ids", "attention_mask", "labels"))
    # Its prompts have other lengths: no two answers share a row.
    assert XLLMDataCollator(tiny_processor, causal=True).causal
    assert not XLLMDataCollator(tiny_processor, causal=True, distills=True).causal


def test_answers_that_share_a_row_are_taken_apart_where_it_is_too_long():
    """Only those of that row of the batch; each is learnt once, behind the turns before it."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    processor = composed(template, ["<|im_end|>", "<|im_start|>"], "llama")[1]
    short = [user("What?"), assistant("a dog"), user("Which?"), assistant("red")]
    long = [*short, user("Is it one of many?"), assistant("yes")]
    samples = [{"messages": short}, {"messages": long}]

    def learnt(**limit):
        batch = XLLMDataCollator(processor, causal=True, loss_on="all", **limit)(samples)
        texts = [
            processor.tokenizer.decode([token for token in row if token != -100]) for row in batch["labels"].tolist()
        ]
        return batch, [text.split("<|im_end|>")[:-1] for text in texts]

    batch, answers = learnt()
    assert [[text.strip() for text in row] for row in answers] == [["a dog", "red"], ["a dog", "red", "yes"]]
    _, answers = learnt(max_length=int(batch["attention_mask"].sum(1).max()) - 1)
    apart = [[text.strip() for text in row] for row in answers]
    assert apart == [["a dog", "red"], ["a dog"], ["red"], ["yes"]]
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["input_ids"][padding] == processor.tokenizer.eos_token_id).all()  # it has no token to pad with
    with pytest.MonkeyPatch.context() as patch:  # tokens reach over the ends of answers
        patch.setattr(collator, "located", lambda batch, mask, spans: unlocated(batch, spans))
        assert [len(row) for row in learnt()[1]] == [1] * 5
    long[-1]["loss"] = False
    assert [[text.strip() for text in row] for row in learnt()[1]] == [["a dog", "red"]] * 2
    assert "yes" not in processor.tokenizer.decode(learnt()[0]["input_ids"][1])


def unlocated(batch, spans):
    for name in ("offset_mapping", "text_replacement_offsets"):
        batch.pop(name, None)
    return [None if places else [] for places in spans]


def test_a_first_token_is_learnt_at_the_end_of_a_prompt_of_chatglm_alone():
    processor = small_processor()
    processor.tokenizer.bos_token = "what"  # a token that no prompt of this template ends with
    (row,) = XLLMDataCollator(processor)([{"messages": [user(" is this "), assistant("a cat")]}])["labels"].tolist()
    first = next(place for place, token in enumerate(row) if token != -100)
    assert row[first:] == processor.encode_answers([[user(" is this "), assistant("a cat")]])[0]

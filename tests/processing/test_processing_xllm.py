# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The processor: exact ids and placeholder counts, mixed batches, conversations, files, and what it says to wrong
input.
"""

import base64
import pickle

import numpy as np
import pytest
import torch
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image
from processor_parts import (
    CAT,
    EOS,
    IMAGE,
    IS,
    PAD,
    SPEECH,
    THIS,
    VIDEO,
    WHAT,
    A,
    placeholder_tokenizer,
    small_processor,
    word_tokenizer,
)  # fmt: skip
from transformers import AutoProcessor

from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.processing_xllm import XLLMProcessor, add_placeholder_tokens


RED = Image.new("RGB", (20, 10), "red")


@pytest.fixture(scope="module")
def processor():
    return small_processor()


@pytest.fixture
def media(tmp_path):
    """One file of each kind: a picture, a film of 3 frames, a sound of 0.5 s (48 mel frames, 6 placeholders)."""
    RED.save(tmp_path / "red.png")
    write_video(tmp_path / "film.mp4", grey_frames(3))
    write_wav(tmp_path / "tone.wav", [sine()])
    return tmp_path


# ---- one call
# -------------------------------------------------------------------------------------------------------------------


def test_placeholders_are_written_out(processor, media):
    batch = processor(
        text="what <ImageHere> is <VideoHere> this <SpeechHere> a cat",
        images=RED,
        videos=[media / "film.mp4"],
        audio=media / "tone.wav",
        return_tensors="pt",
    )
    expected = [WHAT, *[IMAGE] * 2, IS, *[VIDEO] * 6, THIS, *[SPEECH] * 6, A, CAT]
    assert batch["input_ids"].tolist() == [expected]
    assert batch["attention_mask"].tolist() == [[1] * len(expected)]
    assert batch["pixel_values"].shape == (1, 3, 16, 16)
    assert batch["pixel_values_videos"].shape == (1, 3, 3, 16, 16)
    assert batch["video_frame_mask"].tolist() == [[1, 1, 1]]
    assert batch["input_features"].shape == (1, 48, 80)
    assert batch["input_features_mask"].shape == (1, 48)


def test_mixed_rows_are_padded_on_the_left(processor):
    batch = processor(
        text=["what", "<ImageHere><ImageHere> is", "<SpeechHere> <ImageHere>"],
        images=[[], [RED, RED], [RED]],
        audio=[sine(0.1)],
        return_tensors="pt",
    )
    assert batch["input_ids"].tolist() == [
        [PAD] * 4 + [WHAT],
        [IMAGE] * 4 + [IS],
        [PAD] * 2 + [SPEECH] + [IMAGE] * 2,
    ]
    assert batch["attention_mask"].tolist() == [[0] * 4 + [1], [1] * 5, [0] * 2 + [1] * 3]
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    right = processor(text=["what", "is a"], padding_side="right", return_tensors="pt")
    assert right["input_ids"].tolist() == [[WHAT, PAD], [IS, A]]


def test_text_only(processor):
    assert dict(processor(text="what is this")) == {"input_ids": [[WHAT, IS, THIS]], "attention_mask": [[1, 1, 1]]}


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (8, 1), (9, 2), (98, 13)])
def test_speech_takes_one_placeholder_per_encoder_frame(processor, frames, count):
    assert processor._get_num_multimodal_tokens(audio_lengths=[400 + 160 * (frames - 1)]).num_audio_tokens == [count]
    wave = np.zeros(400 + 160 * (frames - 1), np.float32)
    assert processor(text="<SpeechHere>", audio=wave, sampling_rate=16_000)["input_ids"] == [[SPEECH] * count]


def test_padded_clips_and_videos_take_only_their_own_placeholders(processor):
    batch = processor(
        text=["<SpeechHere>", "<SpeechHere>", "<VideoHere>", "<VideoHere>"],
        audio=[sine(0.5), sine(0.1)],
        videos=[grey_frames(2), grey_frames(1)],
        sampling_rate=16_000,
    )
    assert [row.count(SPEECH) for row in batch["input_ids"]] == [6, 1, 0, 0]
    assert [row.count(VIDEO) for row in batch["input_ids"]] == [0, 0, 4, 2]


def test_flat_text_arguments_leave_the_media_alone(processor):
    arguments = {"text": "<SpeechHere> what", "audio": sine(0.5), "videos": None, "sampling_rate": 16_000}
    plain = processor(**arguments, return_tensors="pt")
    for flat in (
        {"padding": "max_length", "max_length": 9},
        {"truncation": True, "max_length": 9},
        {"pad_to_multiple_of": 4},
    ):
        batch = processor(**arguments, **flat, return_tensors="pt")
        assert torch.equal(batch["input_features"], plain["input_features"])
        assert torch.equal(batch["input_features_mask"], plain["input_features_mask"])
    cut = processor(**arguments, audio_kwargs={"truncation": True, "max_length": 16}, return_tensors="pt")
    assert cut["input_features"].shape == (1, 16, 80)
    assert cut["input_ids"].tolist() == [[SPEECH, SPEECH, WHAT]]


def test_frames_can_be_chosen_per_call(processor, media):
    batch = processor(text="<VideoHere>", videos=str(media / "film.mp4"), num_frames=2)
    assert batch["input_ids"] == [[VIDEO] * 4]
    assert processor(text="<VideoHere>", videos=str(media / "film.mp4"), num_frames=32)["input_ids"] == [[VIDEO] * 6]


def test_counts_from_sizes_equal_real_counts(processor):
    counts = processor._get_num_multimodal_tokens(
        image_sizes=[(9, 9)], video_sizes=[(3, 9, 9), (20, 9, 9)], audio_lengths=[8_000, 1]
    )
    assert counts.num_image_tokens == [2]
    assert counts.num_video_tokens == [6, 40]
    assert counts.num_audio_tokens == [6, 1]


# ---- wrong input
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"text": "<ImageHere> <ImageHere>", "images": RED}, "Found total 2 <ImageHere> tokens and 1 images"),
        ({"text": "what", "images": RED}, "Found total 0 <ImageHere> tokens and 1 images"),
        ({"text": "<ImageHere>"}, "Found 1 <ImageHere> tokens in the text but no images"),
        ({"text": "<VideoHere>", "videos": [b"1", b"2"]}, "Found total 1 <VideoHere> tokens and 2 videos"),
        ({"text": "<SpeechHere>", "audio": [sine(), sine()]}, "Found total 1 <SpeechHere> tokens and 2 audio"),
        ({"text": ["what", "<ImageHere>"], "images": [[RED], []]}, "row 0: its text names 0 images .*, 1 are given"),
        (
            {"text": "<ImageHere> what", "images": RED, "truncation": True, "max_length": 1},
            r"ids=\[1\] and text=\[2\]",
        ),
        ({"text": "<SpeechHere>", "audio": sine(), "sampling_rate": 8_000}, "got 8000 Hz, expected 16000 Hz"),
        ({"text": "<ImageHere>", "images": "gone.png"}, "gone.png: no such file"),
        ({}, "at least one input"),
    ],
)
def test_wrong_calls(processor, arguments, reason):
    with pytest.raises(ValueError, match=reason):
        processor(**arguments)


def test_a_processor_without_a_kind_of_media_says_so():
    speech_only = XLLMProcessor(feature_extractor=XLLMFeatureExtractor(), tokenizer=placeholder_tokenizer())
    assert speech_only(text="<SpeechHere>", audio=sine(0.1))["input_ids"] == [[SPEECH]]
    with pytest.raises(ValueError, match="images were given, but this processor has no image_processor"):
        speech_only(text="<ImageHere>", images=RED)
    with pytest.raises(ValueError, match="no images were passed"):
        speech_only(text="<ImageHere>")
    text_only = XLLMProcessor(tokenizer=placeholder_tokenizer())
    messages = [{"role": "user", "content": [{"type": "audio", "audio": sine()}]}]
    with pytest.raises(ValueError, match="no feature_extractor"):
        text_only.apply_chat_template(messages, tokenize=True)


def test_wrong_construction():
    with pytest.raises(ValueError, match="tokenizer: got None"):
        XLLMProcessor(feature_extractor=XLLMFeatureExtractor())
    with pytest.raises(ValueError, match="has no audio_token, which the feature_extractor needs"):
        XLLMProcessor(feature_extractor=XLLMFeatureExtractor(), tokenizer=word_tokenizer())
    with pytest.raises(ValueError, match="num_query_tokens: got 0"):
        XLLMProcessor(tokenizer=placeholder_tokenizer(), num_query_tokens=0)
    with pytest.raises(TypeError, match="feature_extractor"):
        XLLMProcessor(feature_extractor=placeholder_tokenizer(), tokenizer=placeholder_tokenizer())


# ---- conversations
# --------------------------------------------------------------------------------------------------------------


def talk(*parts):
    return [{"role": "user", "content": list(parts)}]


def test_the_default_template_writes_the_papers_wrappers(processor):
    messages = [
        *talk({"type": "image"}, {"type": "video"}, {"type": "audio"}, {"type": "text", "text": "what is this"}),
        {"role": "assistant", "content": "a cat"},
    ]
    assert processor.apply_chat_template(messages) == (
        "user: <Image><ImageHere></Image><Video><VideoHere></Video><Speech><SpeechHere></Speech>what is this\n"
        "assistant: a cat<eos>\n"
    )
    assert processor.apply_chat_template([{"role": "user", "content": "what"}], add_generation_prompt=True) == (
        "user: what\nassistant: "
    )


def test_media_of_a_conversation_reach_the_model(processor, media):
    data = (media / "red.png").read_bytes()
    image_forms = [
        {"path": str(media / "red.png")}, {"image": str(media / "red.png")}, {"url": (media / "red.png").as_uri()},
        {"url": "data:image/png;base64," + base64.b64encode(data).decode()},
        {"base64": base64.b64encode(data).decode()},
        {"bytes": data, "path": None}, {"image": RED}, {"image": np.asarray(RED)},
        {"image": {"bytes": data, "path": None}},
    ]  # fmt: skip
    expected = processor(images=RED, return_tensors="pt")["pixel_values"]
    for form in image_forms:
        messages = talk({"type": "image", "text": None, **form})
        batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        assert torch.equal(batch["pixel_values"], expected)
        assert batch["input_ids"][0].tolist().count(IMAGE) == 2


def test_sound_and_film_in_every_form(processor, media):
    sound, film = media / "tone.wav", media / "film.mp4"
    encoded = base64.b64encode(sound.read_bytes()).decode()
    for part in (
        {"type": "audio", "path": str(sound)}, {"type": "speech", "speech": str(sound)},
        {"type": "audio", "bytes": sound.read_bytes()},
        {"type": "audio", "audio": sine()}, {"type": "audio", "array": sine(rate=8_000), "sampling_rate": 8_000},
        {"type": "audio", "audio": {"array": sine(), "sampling_rate": 16_000}},
        {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": sound.as_uri()}},
    ):  # fmt: skip
        batch = processor.apply_chat_template(talk(part), tokenize=True, return_dict=True, return_tensors="pt")
        assert batch["input_features"].shape == (1, 48, 80)
        assert batch["input_ids"][0].tolist().count(SPEECH) == 6
    for part in (
        {"type": "video", "path": str(film)}, {"type": "video", "bytes": film.read_bytes()},
        {"type": "video", "video": grey_frames(3)},
        {"type": "video", "video": [RED, RED, RED]}, {"type": "video_url", "video_url": {"url": str(film)}},
    ):  # fmt: skip
        batch = processor.apply_chat_template(talk(part), tokenize=True, return_dict=True, return_tensors="pt")
        assert batch["pixel_values_videos"].shape == (1, 3, 3, 16, 16)
        assert batch["input_ids"][0].tolist().count(VIDEO) == 6


def test_rate_of_waveforms_in_a_conversation(processor):
    batch = processor.apply_chat_template(
        talk({"type": "audio", "audio": sine(rate=8_000)}),
        tokenize=True, return_dict=True, return_tensors="pt", processor_kwargs={"sampling_rate": 8_000},
    )  # fmt: skip
    assert batch["input_features"].shape == (1, 48, 80)


def test_a_batch_of_conversations(processor, media):
    conversations = [
        talk({"type": "audio", "path": str(media / "tone.wav")}, {"type": "image", "image": RED}),
        talk({"type": "text", "text": "what"}),
        [
            *talk({"type": "image", "image": RED}),
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            *talk("what"),
        ],
    ]
    batch = processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        load_audio_from_video=True,
        processor_kwargs={"num_frames": 32, "padding": True},
    )  # fmt: skip
    assert [row.tolist().count(IMAGE) for row in batch["input_ids"]] == [2, 0, 2]
    assert [row.tolist().count(SPEECH) for row in batch["input_ids"]] == [6, 0, 0]
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert set(batch) == {"input_ids", "attention_mask", "pixel_values", "input_features", "input_features_mask"}
    assert (batch["attention_mask"][:, -1] == 1).all()


def test_assistant_masks_stay_on_the_answer(processor):
    messages = [
        *talk({"type": "image", "image": RED}, {"type": "text", "text": " what "}),
        {"role": "assistant", "content": "a cat"},
    ]
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    answer = [token for token, mask in zip(batch["input_ids"][0], batch["assistant_masks"][0]) if mask]
    assert answer == [A, CAT, EOS]


def test_a_conversation_is_not_changed(processor):
    messages = talk({"type": "speech", "speech": sine(), "path": None})
    processor.apply_chat_template(messages, tokenize=True)
    assert sorted(messages[0]["content"][0]) == ["path", "speech", "type"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "expected a list of messages"),
        (talk({"type": "image"}), r"message 0 \(user\): a content part of type 'image' holds no image"),
        (talk({"type": "audio", "path": None}), "holds no audio"),
        (talk({"type": "smell"}), "content part of type 'smell': expected one of"),
        (talk({"text": "what"}), "expected a dict with a 'type'"),
        (talk({"type": "text", "image": "a.png"}), "expected a string under 'text'"),
        (talk({"type": "video", "path": "gone.mp4"}), "gone.mp4: no such file"),
        (talk("<ImageHere>"), "no images were passed"),
    ],
)
def test_wrong_conversations(processor, messages, reason):
    with pytest.raises(ValueError, match=reason):
        processor.apply_chat_template(messages, tokenize=True, return_dict=True)


def test_a_text_only_template_learns_to_write_media():
    tokenizer = placeholder_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}|{{ m['content'] }}]{% endfor %}"
    processor = XLLMProcessor(feature_extractor=XLLMFeatureExtractor(), tokenizer=tokenizer)
    messages = [*talk({"type": "audio"}, "what"), {"role": "assistant", "content": "a"}]
    assert processor.apply_chat_template(messages) == "[user|<Speech><SpeechHere></Speech>what][assistant|a]"
    tokenizer.chat_template = "{{ messages[0]['content'][0]['type'] }}<SpeechHere>"  # writes the placeholder by itself
    processor = XLLMProcessor(feature_extractor=XLLMFeatureExtractor(), tokenizer=tokenizer)
    assert processor.apply_chat_template(messages) == "audio<SpeechHere>"


def test_decoding(processor):
    ids = torch.tensor([[WHAT, EOS, PAD], [IS, A, CAT]])
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["what", "is a cat"]
    assert processor.decode(ids[1]) == "is a cat"
    assert processor.post_process_image_text_to_text(ids) == ["what", "is a cat"]


# ---- files
# ---------------------------------------------------------------------------------------------------------------------


def test_time_stamps(processor):
    """8 mel frames of 10 ms to an encoder frame: a token that is complete at frame 2.5 ends at 0.2 s."""
    assert processor.seconds_per_frame == pytest.approx(0.08)
    ids, frames = [[A, CAT, EOS], [], [IS]], [[2.5, 10.0, 12.0], [], [1.0]]
    texts, stamps = processor.batch_decode(ids, fire_frames=frames, skip_special_tokens=True)
    assert texts == ["a cat", "", "is"]
    assert [[stamp["token"] for stamp in row] for row in stamps] == [["a", "cat"], [], ["is"]]
    assert [(stamp["start"], stamp["end"]) for row in stamps for stamp in row] == [
        (0.0, pytest.approx(0.2)),
        (pytest.approx(0.2), pytest.approx(0.8)),
        (0.0, pytest.approx(0.08)),
    ]
    text, stamps = processor.decode(torch.tensor(ids[0]), fire_frames=torch.tensor(frames[0]))
    assert text == "a cat <eos>"
    assert stamps[-1] == {"token": "<eos>", "start": pytest.approx(0.8), "end": pytest.approx(0.96)}
    assert processor.decode(ids[0]) == text
    with pytest.raises(ValueError, match=r"fire_frames: got rows of \[3\] numbers beside rows of \[2\] ids"):
        processor.batch_decode([[A, CAT]], fire_frames=[[1.0, 2.0, 3.0]])


def test_time_stamps_join_bytes(processor, monkeypatch):
    pieces = {0: "\ufffd", 1: "\ufffd", 2: "b"}
    monkeypatch.setattr(
        processor.tokenizer, "decode", lambda ids, **_: "é" if ids == [0, 1] else "".join(pieces[i] for i in ids)
    )
    monkeypatch.setattr(processor.tokenizer, "batch_decode", lambda rows, **_: ["éb"])
    _, ((first, second),) = processor.batch_decode([[0, 1, 2]], fire_frames=[[1, 2, 3]])
    assert (first["token"], first["start"], first["end"]) == ("é", 0.0, pytest.approx(0.16))
    assert (second["token"], second["start"]) == ("b", pytest.approx(0.16))


def test_save_and_load(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is XLLMProcessor
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.num_query_tokens, loaded.audio_token_id, loaded.chat_template) == (
        2,
        SPEECH,
        processor.chat_template,
    )
    messages = talk(
        {"type": "image", "image": RED}, {"type": "audio", "audio": sine()}, {"type": "video", "video": grey_frames(9)}
    )
    both = [
        p.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
        for p in (processor, loaded)
    ]
    assert set(both[0]) == set(processor.model_input_names)
    for name in both[0]:
        assert torch.equal(both[0][name], both[1][name])


def test_a_part_that_was_left_out_stays_out(tmp_path):
    XLLMProcessor(feature_extractor=XLLMFeatureExtractor(), tokenizer=placeholder_tokenizer()).save_pretrained(
        tmp_path
    )
    loaded = XLLMProcessor.from_pretrained(tmp_path)
    assert (loaded.image_processor, loaded.video_processor) == (None, None)
    assert loaded.model_input_names[:2] == ["input_features", "input_features_mask"]


def test_a_processor_can_be_sent_to_a_worker(processor):
    copy = pickle.loads(pickle.dumps(processor))
    assert copy(text="<SpeechHere>", audio=sine(0.1), sampling_rate=16_000)["input_ids"] == [[SPEECH]]


# ---- placeholders for any tokenizer
# ---------------------------------------------------------------------------------------------


def test_placeholders_take_spare_rows():
    tokenizer = word_tokenizer()
    assert add_placeholder_tokens(tokenizer, vocab_size=13) == {
        "image_token": IMAGE,
        "video_token": VIDEO,
        "audio_token": SPEECH,
    }
    assert (tokenizer.image_token, tokenizer.video_token_id) == ("<ImageHere>", VIDEO)
    assert add_placeholder_tokens(tokenizer, vocab_size=13)["image_token"] == IMAGE  # again: nothing more is added
    assert len(tokenizer) == 13


def test_placeholders_can_be_tokens_of_the_vocabulary(tmp_path):
    tokenizer = word_tokenizer()
    reserved = {"image_token": "this", "video_token": "is", "audio_token": "a"}
    assert add_placeholder_tokens(tokenizer, vocab_size=10, reserved=reserved) == {
        "image_token": THIS, "video_token": IS, "audio_token": A,
    }  # fmt: skip
    assert len(tokenizer) == 10
    tokenizer.save_pretrained(tmp_path)
    assert type(tokenizer).from_pretrained(tmp_path).audio_token == "a"


@pytest.mark.parametrize(
    ("vocab_size", "reserved", "reason"),
    [
        (12, None, "the tokenizer uses 10 ids and the model's vocab_size is 12"),
        (16, {"image_token": "dog"}, r"\['dog'\] are not in the tokenizer's vocabulary"),
        (16, {"picture": "cat"}, r"got the keys \['picture'\]"),
        (16, {"image_token": "cat", "video_token": "cat"}, "a different token"),
    ],
)
def test_placeholders_without_room(vocab_size, reserved, reason):
    with pytest.raises(ValueError, match=reason):
        add_placeholder_tokens(word_tokenizer(), vocab_size, reserved)

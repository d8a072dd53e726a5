# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The table of kinds and the processor's rows: a kind of the user's, rows of any name, media decoded once."""

import builtins
import dataclasses
import json
import re
from collections import Counter

import av
import numpy as np
import pytest
import torch
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image, ImageFile
from processor_parts import IMAGE, SPEECH, VIDEO, placeholder_tokenizer, small_processor, word_tokenizer
from transformers import AutoProcessor, BlipImageProcessor

from xllm.processing import audio_decoding, media_kinds, media_sources
from xllm.processing.audio_decoding import Waveform
from xllm.processing.feature_extraction_xllm import FiredTokens, XLLMCIFFeatureExtractor, XLLMFeatureExtractor
from xllm.processing.media_kinds import MEDIA_KINDS, PAPER_KINDS, MediaKind, media_kind, register_media_kind
from xllm.processing.media_rows import add_placeholder_tokens
from xllm.processing.media_sources import MediaError, open_media
from xllm.processing.processing_xllm import XLLMProcessor
from xllm.processing.tokenization_chatglm import CHATGLM_CHAT_TEMPLATE, PLACEHOLDERS
from xllm.processing.video_decoding import Frames
from xllm.processing.video_processing_xllm import XLLMVideoProcessor


# ---- what a user writes ---------------------------------------------------------------------------------------------


class StatusReader:
    """Files `{"values": [[...], ...]}` of a robot's state to vectors `(items, U, 2)` and their mask `(items, U)`."""

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    @classmethod
    def from_pretrained(cls, folder):
        with open(f"{folder}/status.json", encoding="utf-8") as file:
            return cls(**json.load(file))

    def save_pretrained(self, folder):
        with open(f"{folder}/status.json", "w", encoding="utf-8") as file:
            json.dump({"scale": self.scale}, file)

    def _vectors(self, source):
        if isinstance(source, dict) and "values" in source:
            return torch.tensor(source["values"]) * self.scale
        with open_media(source) as (file, _):
            return self._vectors(json.load(file))

    def __call__(self, items, return_tensors="pt"):
        rows = [self._vectors(item) for item in items]
        pad = torch.nn.utils.rnn.pad_sequence
        masks = [torch.ones(len(row), dtype=torch.long) for row in rows]
        return {"status_values": pad(rows, batch_first=True), "status_mask": pad(masks, batch_first=True)}


ROW = {"converter": "linear", "encoder": None, "mask_name": "status_mask"}


@pytest.fixture
def status_kind(monkeypatch):
    monkeypatch.setattr(media_kinds, "MEDIA_KINDS", MEDIA_KINDS)
    yield register_media_kind(MediaKind("status", reader_class=StatusReader, row=ROW))
    del MEDIA_KINDS["status"]


# ---------------------------------------------------------------------------------------------------------------------

STATUS = 13
STATE = {"values": [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]}
ROWS = {
    "image": {"tokens_per_item": 2},
    "video": {"tokens_per_item": 3},
    "voice": {"input_name": "input_features", "mask_name": "input_features_mask", "subsampling_factor": 8},
    "status": {},
}


def talk(*parts):
    return [{"role": "user", "content": list(parts)}]


def status_processor(tokenizer=None, **kwargs):
    if tokenizer is None:
        tokenizer = word_tokenizer()
        add_placeholder_tokens(tokenizer, vocab_size=16, modalities=ROWS)
    size = {"height": 16, "width": 16}
    return XLLMProcessor(
        image_processor=BlipImageProcessor(size=size),
        video_processor=XLLMVideoProcessor(size=size),
        feature_extractor=XLLMFeatureExtractor(),
        tokenizer=tokenizer,
        readers={"status": StatusReader(scale=2.0)},
        modalities=ROWS,
        **kwargs,
    )


def test_a_kind_of_ones_own_goes_all_the_way(status_kind, tmp_path):
    """Call, template, tokens, saved and opened again: one class and one entry above are all there is."""
    (tmp_path / "state.json").write_text(json.dumps(STATE))
    processor = status_processor()
    assert (processor.image_token_id, processor.video_token_id, processor.audio_token_id) == (IMAGE, VIDEO, SPEECH)
    assert (processor.status_token, processor.status_token_id) == ("<StatusHere>", STATUS)

    called = processor(text="what <StatusHere> <ImageHere>", status=STATE, images=np.zeros((9, 9, 3), np.uint8))
    assert called["input_ids"] == [[3, *[STATUS] * 3, IMAGE, IMAGE]]
    assert called["status_values"].tolist() == [[[2.0, 4.0], [6.0, 8.0], [10.0, 12.0]]]

    processor.save_pretrained(tmp_path / "saved")
    opened = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert isinstance(opened.readers["status"], StatusReader)
    assert (tmp_path / "saved/status/status.json").is_file()
    messages = talk({"type": "status", "path": str(tmp_path / "state.json")}, {"type": "text", "text": "what"})
    for each in (processor, opened):
        assert each.apply_chat_template(messages) == "user: <Status><StatusHere></Status>what\n"
        batch = each.encode_conversations([messages, talk({"type": "status", "status": {"values": [[0.5, 0.5]]}})])
        assert [row.count(STATUS) for row in batch["input_ids"].tolist()] == [3, 1]
        assert batch["status_values"].shape == (2, 3, 2)
        assert batch["status_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert opened.to_dict() == processor.to_dict()
    assert {"status_values", "status_mask"} <= set(opened.model_input_names)
    types = processor(text="what <StatusHere>", status=STATE, return_mm_token_type_ids=True)["mm_token_type_ids"]
    assert types == [[0, 4, 4, 4]]


def test_counts_of_ones_own_kind_are_checked(status_kind):
    processor = status_processor()
    with pytest.raises(ValueError, match="Found total 2 <StatusHere> tokens and 1 status"):
        processor(text="<StatusHere> <StatusHere>", status=STATE)
    with pytest.raises(ValueError, match="no status were passed"):
        processor(text="<StatusHere>")
    with pytest.raises(ValueError, match="row 0: its text names 0 status .*, 1 are given"):
        processor(text=["what", "<StatusHere>"], status=[[STATE], []])
    with pytest.raises(ValueError, match=r"message 0 \(user\): .* holds no status"):
        processor.encode_conversations([talk({"type": "status"})])
    plain = small_processor()
    with pytest.raises(ValueError, match="'status': this processor has no row that reads it"):
        plain.apply_chat_template(talk({"type": "status", "status": STATE}))


def test_a_folder_whose_kind_is_not_registered_says_what_to_import(tmp_path):
    kind = register_media_kind(MediaKind("status", reader_class=StatusReader, row=ROW))
    status_processor().save_pretrained(tmp_path)
    del MEDIA_KINDS[kind.type]
    with pytest.raises(
        ValueError, match=r"a reader of status parts \(StatusReader\), a kind that is not registered.*--module"
    ):
        XLLMProcessor.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'status': expected one of 'text', 'image', .*--module FILE"):
        small_processor().apply_chat_template(talk({"type": "status", "status": STATE}))


def test_chatglms_template_writes_every_kind(status_kind):
    tokenizer = word_tokenizer()
    add_placeholder_tokens(tokenizer, vocab_size=16, modalities=ROWS)
    tokenizer.chat_template = CHATGLM_CHAT_TEMPLATE
    processor = status_processor(tokenizer)
    parts = talk({"type": "text", "text": "what"}, {"type": "status"}, {"type": "image"})
    assert processor.apply_chat_template(parts) == "<Status><StatusHere></Status><Image><ImageHere></Image>what"


def test_a_template_that_knows_some_kinds_gets_the_others_as_text(status_kind):
    tokenizer = word_tokenizer()
    add_placeholder_tokens(tokenizer, vocab_size=16, modalities=ROWS)
    tokenizer.chat_template = (
        "{% for m in messages %}{% for p in m['content'] %}"
        "{{ '[' ~ image_token ~ ']' if p['type'] == 'image' else p['text'] }}{% endfor %}{% endfor %}"
    )
    processor = status_processor(tokenizer)
    parts = talk({"type": "image"}, {"type": "status"}, {"type": "text", "text": "what"})
    assert processor.apply_chat_template(parts) == "[<ImageHere>]<Status><StatusHere></Status>what"


# ---- rows -----------------------------------------------------------------------------------------------------------


def test_rows_have_their_own_numbers_and_names(tmp_path):
    """Two tokens per picture, three per frame, and sound read by a row called voice."""
    rows = {name: row for name, row in ROWS.items() if name != "status"}
    processor = small_processor(modalities=rows)
    batch = processor(
        text="<ImageHere> <VideoHere> <SpeechHere>",
        images=np.zeros((9, 9, 3), np.uint8),
        videos=grey_frames(2),
        audio=sine(0.5),
    )
    ids = batch["input_ids"][0]
    assert [ids.count(token) for token in (IMAGE, VIDEO, SPEECH)] == [2, 6, 6]
    assert processor.seconds_per_frame == pytest.approx(0.08)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert list(saved["modalities"]) == ["image", "video", "voice"]
    assert "num_query_tokens" not in saved
    assert AutoProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_several_rows_read_one_part():
    """Each clip becomes one wrapped run per row, in the rows' order; rows share tensors or name them."""
    rows = {
        "sound": {"part": "audio", "tokens_per_item": 4, "input_name": "sound_features", "mask_name": "sound_mask"},
        "speech": {"part": "audio", "subsampling_factor": 8},
    }
    tokenizer = word_tokenizer()
    assert add_placeholder_tokens(tokenizer, vocab_size=12, modalities=rows) == {"sound_token": 10, "audio_token": 11}
    processor = XLLMProcessor(feature_extractor=XLLMFeatureExtractor(), tokenizer=tokenizer, modalities=rows)
    messages = talk({"type": "audio", "audio": sine(0.5)}, {"type": "text", "text": " what"})
    assert processor.apply_chat_template(messages) == "user: <SpeechHere> what\n"
    batch = processor.encode_conversations([messages, talk({"type": "audio", "audio": sine(0.1)})])
    assert [[row.count(token) for token in (10, 11)] for row in batch["input_ids"].tolist()] == [[4, 6], [4, 1]]
    assert torch.equal(batch["input_features"], batch["sound_features"])
    assert torch.equal(batch["input_features_mask"], batch["sound_mask"])
    written = processor.replace_audio_token({"sound_features": [0], **batch}, 1)
    assert written == "<Sound>" + "<SoundHere>" * 4 + "</Sound><Speech><SpeechHere></Speech>"


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ({"image": {"tokens_per_item": 0}}, r"modalities\['image'\].tokens_per_item: got 0"),
        ({"image": {"token_per_item": 3}}, r"modalities\['image'\]: .*token_per_item"),
        (
            {"smell": {}},
            r"modalities\['smell'\]: no kind of media is called 'smell'; the kinds are image, video, audio",
        ),
        ({"image": {"token": "<gone>"}}, "vocabulary has no <gone>"),
        ({"image": {}, "video": {"token": "<ImageHere>"}}, "token of another row"),
        (
            {"a": {"part": "audio"}, "image": {"part": "audio"}, "i": {"part": "image"}},
            "image_token belongs to another",
        ),
    ],
)
def test_wrong_rows(rows, reason):
    with pytest.raises(ValueError, match=reason):
        small_processor(modalities=rows)


def test_a_row_needs_its_reader():
    with pytest.raises(ValueError, match=r"modalities\['image'\] reads image parts, but there is no image_processor"):
        XLLMProcessor(tokenizer=placeholder_tokenizer(), modalities={"image": {"tokens_per_item": 2}})


def test_a_kind_does_not_change_once_it_is_registered():
    kind = media_kind("image")
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.fixed = False
    assert len({kind, dataclasses.replace(kind), dataclasses.replace(kind)}) == 3, "a kind is itself alone"


def test_names_of_kinds():
    assert media_kind("speech") is media_kind("audio") is media_kind("input_audio")
    with pytest.raises(ValueError, match="'other': type 'speech' belongs to 'audio' already"):
        register_media_kind(MediaKind("other", aliases=("speech",)))
    with pytest.raises(ValueError, match="'image': type 'image' belongs to 'image' already"):
        register_media_kind(MediaKind("image", reader_class=StatusReader, row=ROW))
    with pytest.raises(ValueError, match="letters, digits and _"):
        register_media_kind(MediaKind("my kind"))
    with pytest.raises(ValueError, match="'text' is taken"):
        register_media_kind(MediaKind("text"))
    assert {kind.token_name: kind.placeholder for kind in PAPER_KINDS} == PLACEHOLDERS


# ---- decoded once ---------------------------------------------------------------------------------------------------


@pytest.fixture
def work(monkeypatch):
    """Counts opened files, decoded pictures and sounds, opened containers, and checks of samples."""
    done = Counter()

    def counted(name, function):
        def call(*args, **kwargs):
            done[name] += 1
            return function(*args, **kwargs)

        return call

    def opened(path, *args, **kwargs):
        done[str(path).rpartition(".")[2]] += 1
        return plain_open(path, *args, **kwargs)

    plain_open = builtins.open
    monkeypatch.setattr(builtins, "open", opened)
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", counted("pictures", ImageFile.ImageFile.load_prepare))
    monkeypatch.setattr(audio_decoding, "_decode_audio", counted("sounds", audio_decoding._decode_audio))
    monkeypatch.setattr(audio_decoding, "_convert_array", counted("waves", audio_decoding._convert_array))
    monkeypatch.setattr(np, "isfinite", counted("checks", np.isfinite))
    containers = counted("containers", av.open)
    monkeypatch.setattr(av, "open", containers)
    return done


@pytest.fixture
def files(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.png")
    write_video(tmp_path / "a.mp4", grey_frames(20))
    write_wav(tmp_path / "a.wav", [sine()])
    return {"image": tmp_path / "a.png", "video": tmp_path / "a.mp4", "audio": tmp_path / "a.wav"}


def test_conversations_open_and_decode_each_medium_once(files, work):
    processor = small_processor()
    messages = talk(*({"type": kind, "path": str(path)} for kind, path in files.items()))
    work.clear()
    batch = processor.encode_conversations([messages])
    assert set(batch) == set(processor.model_input_names)
    once = {
        "png": 1,
        "mp4": 1,
        "wav": 1,
        "pictures": 1,
        "sounds": 1,
        "checks": 1,
        "containers": 3,
    }  # a film: list, then decode
    assert {name: work[name] for name in once} == once
    assert work["waves"] == 0


def test_what_load_gave_is_not_decoded_again(files, work):
    processor = small_processor()
    loaded = {kind: processor.load(kind, str(path)) for kind, path in files.items()}
    assert [type(medium) for medium in loaded.values()] == [Image.Image, Frames, Waveform]
    expected = processor.encode_conversations([talk(*({"type": kind, "path": str(p)} for kind, p in files.items()))])
    work.clear()
    assert all(processor.load(kind, medium) is medium for kind, medium in loaded.items())
    talked = processor.encode_conversations([talk(*({"type": kind, kind: medium} for kind, medium in loaded.items()))])
    called = processor(images=loaded["image"], videos=[loaded["video"]], audio=loaded["audio"], return_tensors="pt")
    assert not work, dict(work)
    for name in called:
        assert torch.equal(called[name], expected[name])
    assert all(torch.equal(talked[name], expected[name]) for name in expected)


def test_arrays_of_frames_are_sampled_and_frames_are_not():
    processor = small_processor()
    film = grey_frames(40)
    for video in (film, list(film), processor.load("video", film)):
        assert processor(videos=[video], return_tensors="pt")["pixel_values_videos"].shape[1] == 5
    assert processor(videos=[Frames(film)], return_tensors="pt")["pixel_values_videos"].shape[1] == 40


def test_a_waveform_of_another_rate_is_resampled():
    processor = small_processor()
    batch = processor(audio=Waveform(sine(0.5, rate=8_000), 8_000), return_tensors="pt")
    assert batch["input_features"].shape == (1, 48, 80)
    features = XLLMFeatureExtractor()(Waveform(sine(0.5), 16_000), sampling_rate=16_000, return_tensors="pt")
    assert torch.equal(features["input_features"], processor(audio=sine(0.5), return_tensors="pt")["input_features"])


def test_features_of_speech_are_read_once():
    processor = small_processor()
    processor.feature_extractor = XLLMCIFFeatureExtractor(feature_size=4)
    tokens = processor.load("audio", np.ones((3, 4), np.float32))
    assert isinstance(tokens, FiredTokens)
    assert processor(audio=[tokens], return_tensors="pt")["input_features"].shape == (1, 3, 4)


def test_one_budget_of_memory_for_media_of_every_kind(tmp_path, monkeypatch):
    pixels = grey_frames(20, 64, 96)
    Image.fromarray(pixels[0]).resize((400, 300)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((300, 400), np.uint16)).save(tmp_path / "deep.png")
    deep = Image.open(tmp_path / "deep.png").mode  # "I" with Pillow 10.1
    write_wav(tmp_path / "a.wav", [sine(9)])
    write_video(tmp_path / "a.mp4", pixels)
    frames = [Image.fromarray(one) for one in pixels]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    processor = small_processor()
    processor.video_processor.num_frames = 18
    taken = {
        "a.png": ("image", 8 * 400 * 300, "400 x 300 pixels of mode RGB"),
        "deep.png": ("image", 16 * 400 * 300, f"400 x 300 pixels of mode {deep}"),  # floats on the way
        "a.wav": ("audio", 8 * 9 * 16_000, "the first 9 s of a sound, which are not all,"),  # and once more, joined
        "a.mp4": ("video", 19 * 3 * 96 * 64, "18 frames of 96 x 64 pixels"),  # and the one that is being decoded
        "a.webp": ("video", 20 * 8 * 96 * 64, "20 frames of 96 x 64 pixels"),
    }
    for name, (kind, size, what) in taken.items():
        monkeypatch.setattr(media_sources, "MAX_BYTES", size)
        processor.load(kind, str(tmp_path / name))
        monkeypatch.setattr(media_sources, "MAX_BYTES", size - 1)
        with pytest.raises(MediaError, match=f"{name}: {re.escape(what)} take .* GiB of memory, more than the limit"):
            processor.load(kind, str(tmp_path / name))

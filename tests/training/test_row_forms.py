# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Rows as the field writes them: media stand where the texts name them, and nothing is lost without a word."""

import io
import json
import logging

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.sources import DataError, load_source
from xllm.training.recipes.recipe import SourceSpec


def turns(sample):
    """[(role, [text, or type:file])]."""
    return [
        (
            message["role"],
            [
                part["text"] if part["type"] == "text" else f"{part['type']}:{_name(part)}"
                for part in message["content"]
            ],
        )
        for message in sample.conversation(lambda n: 0)
    ]


def _name(part):
    source = part.get("path") or part.get("url") or part[part["type"]]
    source = source["path"] if isinstance(source, dict) else source
    return str(getattr(source, "name", source)).rpartition("/")[2]


def read(media, *rows, **spec):
    path = media / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_source(SourceSpec(path=str(path), **spec))


def said(question, answer="grey", **fields):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **fields}


WANTED = [("user", ["image:red.png", "What?"]), ("assistant", ["grey"])]
FORMS = {
    "ms-swift": said("<image>What?", images=["red.png"]),
    "LLaMA-Factory's column": said("<image>What?", image="red.png"),
    "a struct": said("<image>\nWhat?", images=[{"path": "red.png", "bytes": None}]),
    "ShareGPT": {
        "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "grey"}],
        "images": ["red.png"],
    },
    "LLaVA without a tag": {
        "id": "1",
        "image": "red.png",
        "conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "grey"}],
    },
    "Alpaca": {"instruction": "<image>What?", "input": "", "output": "grey", "images": ["red.png"]},
    "query and response": {"query": "What?", "response": "grey", "images": ["red.png"], "history": []},
    "bare parts": said([{"type": "image"}, {"type": "text", "text": "What?"}], images=["red.png"]),
    "OpenAI": said([{"type": "image_url", "image_url": {"url": "red.png"}}, {"type": "text", "text": "What?"}]),
    "Qwen-VL": said([{"type": "image", "image": "red.png"}, {"type": "text", "text": "What?"}]),
    "filled with None": said(
        [{"type": "image", "image": "red.png", "text": None}, {"type": "text", "text": "What?", "image": None}, None]
    ),
    "a question about a picture": {"image": "red.png", "question": "What?", "answers": ["grey"], "question_id": 5},
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form(media, name):
    (sample,) = read(media, FORMS[name])
    assert turns(sample) == WANTED


def test_messages_as_a_json_string(media):
    row = said("<image>What?")
    (sample,) = read(media, {"messages": json.dumps(row["messages"]), "images": '["red.png"]'})
    assert turns(sample) == WANTED
    with pytest.raises(DataError, match=r"rows\.jsonl:1: messages: not JSON"):
        read(media, {"messages": '[{"role": "user"'})


def test_media_of_three_kinds_stand_in_the_order_of_their_tags(media):
    row = said(
        "Look <image> and <video>, hear <audio>, then <image>.", images=["red.png", "blue.png"], audios="low.wav"
    )
    (sample,) = read(media, {**row, "videos": ["clip.mp4"]})
    parts = [
        "Look",
        "image:red.png",
        "and",
        "video:clip.mp4",
        ", hear",
        "audio:low.wav",
        ", then",
        "image:blue.png",
        ".",
    ]
    assert turns(sample)[0] == ("user", parts)


def test_input_audio_of_openai_is_data(media):
    part = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
    (sample,) = read(media, said([part, {"type": "text", "text": "?"}]))
    assert sample.messages[0]["content"][0] == {"type": "audio", "base64": "UklGRg=="}


def test_history_and_system_are_turns(media):
    row = {"system": "Be brief.", "history": [["Hello", "Hi"]], "instruction": "Say", "input": "it", "output": "it"}
    (sample,) = read(media, row)
    assert turns(sample) == [
        ("system", ["Be brief."]), ("user", ["Hello"]), ("assistant", ["Hi"]), ("user", ["Say\nit"]),
        ("assistant", ["it"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (said("<image>What?"), r"messages\[0\]: the text names more <image> than the row holds: 0 in .*image, images"),
        (said("<image><image>?", images=["red.png"]), "names more <image> than the row holds: 1"),
        (
            said("What?", images=["red.png"]),
            "image, images hold 1, the texts name 0: write <image> where each belongs",
        ),
        (said("<image>?", images=["red.png", "blue.png"]), "hold 2, the texts name 1"),
        (said("<|image_pad|>What?", images=["red.png"]), r"holds <\|image_pad\|>, a mark by which programs"),
        (said([{"type": "image"}], images=[]), "names more parts of type 'image' than the row holds: 0"),
        (said("<image>", videos=["clip.mp4"]), "names more <image>"),
        ({"instruction": "?", "output": "a", "images": ["red.png"]}, "write <image> where each belongs"),
        (said("?", "<image>", images=["red.png"]), "message 1: the assistant's answer holds a medium"),
        (said("<video>", videos=[["red.png", "blue.png"]]), "got a list, expected one video file per part"),
        (said("<image>", images=["gone.png"]), r"rows\.jsonl:1: no such file: .*gone\.png"),
        (said("<image>", images=["a\0b"]), r"rows\.jsonl:1: no such file: .*a\\x00b'"),
        (said("<image>", images=["x" * 900]), r"rows\.jsonl:1: .*no such file"),
        (said(3), r"messages\[0\]: it has 3 as content"),
        (said(None), r"messages\[0\]: it has no content"),
        ({"messages": ["a"]}, r"messages\[0\]: expected a mapping with role and content, got str"),
        ({"messages": [{"role": "narrator", "content": "a"}]}, "its role is 'narrator', expected one of system, user"),
        (said("\ud800"), r"messages\[0\]: half of a surrogate pair"),
        ({"history": ["a"], "instruction": "b", "output": "c"}, r"history\[0\]: expected a question and its answer"),
        (
            {"file_name": "red.png", "path": "x", "text": "a"},
            "the medium may be in file_name or path; set `file_column`",
        ),
        (
            {"file_name": "red.png", "caption": "a", "sentence": "b"},
            "may be in sentence or caption; set `text_column`",
        ),
        ({"file": "red.png", "text": 7}, "column 'text' holds 7, expected a text"),
        ({"file": "low.wav", "text": "a", "offset": "soon"}, "offset is 'soon', expected seconds"),
    ],
)
def test_what_does_not_match_is_an_error(media, row, message):
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*"):
        read(media, row)
    with pytest.raises(DataError, match=message):
        read(media, row)


def test_arrays_are_media_too(tiny_processor):
    wave = np.sin(np.arange(6400, dtype=np.float32))
    rows = [{"audio": wave, "text": "a"}, {"audio": {"array": wave, "sampling_rate": 16_000}, "text": "b"}]
    rows.append({"audio": wave.tolist(), "text": "c"})
    data = ChatDataset([load_source(SourceSpec(dataset=rows, modality="speech"))], tiny_processor)
    assert [len(data[n]["messages"][0]["content"][0]["audio"].samples) for n in range(3)] == [6400] * 3


def test_a_tag_in_a_text_source_is_a_word(media):
    (sample,) = read(media, said("How do I write <video> in HTML?"), modality="text")
    assert turns(sample)[0] == ("user", ["How do I write <video> in HTML?"])


def test_what_nobody_reads_is_named_once(media, caplog):
    rows = [
        said(
            "<image>",
            images=["red.png"],
            id=n,
            objects={"bbox": [1]},
            tools="[]",
            empty=None,
            channel="x" if n else "",
        )
        for n in range(2)
    ]
    rows[0]["messages"][1] |= {"loss_scale": 2, "reasoning_content": None}
    rows[1]["messages"][0]["content"] = [{"type": "image", "image": "red.png", "max_pixels": 9}]
    rows[1]["images"] = []
    with caplog.at_level(logging.WARNING):
        read(media, *rows)
    (record,) = [record for record in caplog.records if "nothing reads" in record.message]
    named = "objects (2), tools (2), messages.loss_scale (1), channel (1), messages.content.max_pixels (1)"
    assert sorted(record.message.partition("columns ")[2].split(", ")) == sorted(named.split(", "))
    assert "of 2 rows" in record.message


def test_an_answer_says_whether_it_carries_loss(media):
    row = said("a", "b")
    row["messages"] = [*row["messages"], *row["messages"]]
    row["messages"][1] = {**row["messages"][1], "loss": False}
    row["messages"][3] = {**row["messages"][3], "weight": 1}
    (sample,) = read(media, row)
    assert [message.get("loss") for message in sample.messages] == [None, False, None, True]
    row["messages"][3]["weight"] = 0.5
    with pytest.raises(DataError, match=r"messages\[3\]\.weight is 0\.5: an answer carries loss or does not, 1 or 0"):
        read(media, row)
    row["messages"][0] = {"role": "user", "content": "a", "loss": True}
    with pytest.raises(DataError, match=r"messages\[0\]\.loss is True, but only answers"):
        read(media, row)


def encoded(color):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": f"{color}.png"}


def test_bytes_inside_parquet_stay_there_until_they_are_read(tmp_path, tiny_processor):
    rows = [
        said("<image> or <image>?", "red", images=[encoded("red"), encoded("blue")]),
        said("<image>?", "green", images=[encoded("green")]),
    ]
    path = tmp_path / "train.parquet"
    Dataset.from_list(rows).to_parquet(str(path))
    samples = load_source(SourceSpec(path=str(path)))
    assert turns(samples[0])[0] == ("user", ["image:red.png", "or", "image:blue.png", "?"])
    data = ChatDataset([samples], tiny_processor)
    colors = [part["image"].getpixel((0, 0)) for part in data[0]["messages"][0]["content"] if part["type"] == "image"]
    assert colors == [(255, 0, 0), (0, 0, 255)]
    batch = XLLMDataCollator(tiny_processor)([data[0], data[1]])
    assert batch["pixel_values"].shape[0] == 3


def test_structs_beside_a_path_need_no_column_names(tmp_path, media, tiny_processor):
    """As audio sets on the Hub are: the sound as bytes, its origin as a path that nobody has."""
    sound = {"bytes": (media / "low.wav").read_bytes(), "path": "low.wav"}
    row = {"file": "/data/of/somebody/low.flac", "audio": sound, "text": "low", "speaker_id": 3}
    Dataset.from_list([row]).to_parquet(str(tmp_path / "a.parquet"))
    (sample,) = load_source(SourceSpec(path=str(tmp_path / "a.parquet")))
    assert turns(sample) == [("user", ["audio:low.wav", "请忠实地识别该语音"]), ("assistant", ["low"])]
    data = ChatDataset([[sample]], tiny_processor)
    assert data[0]["messages"][0]["content"][0]["audio"].samples.shape == (6400,)

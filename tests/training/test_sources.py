# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Every accepted data format becomes the same kind of sample; what is wrong is named with file and line."""

import json

import numpy as np
import pytest
from datasets import Dataset

from xllm.training.data.media_rows import MediaRows
from xllm.training.data.sources import DataError, load_source
from xllm.training.recipes.recipe import SourceSpec


ANSWER = {"role": "assistant", "content": "grey"}


def write(path, rows, kind="jsonl"):
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        names = list(rows[0])
        path.write_text(
            "\n".join([",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]) + "\n"
        )
    return str(path)


def first_choice(n):
    return 0


def turns(sample, draw=first_choice):
    """[(role, [part type or text])] with media as type:file."""
    return [
        (
            message["role"],
            [
                part["text"]
                if part["type"] == "text"
                else f"{part['type']}:{str(part.get('path') or part[part['type']])[-8:]}"
                for part in message["content"]
            ],
        )
        for message in sample.conversation(draw)
    ]


def test_csv_table_relative_to_its_folder(media):
    path = write(
        media / "table.csv", [{"file": "low.wav", "text": "low"}, {"file": "high.wav", "text": "high"}], "csv"
    )
    samples = load_source(SourceSpec(path=path, prompts=["Say it."]), MediaRows(trained=("speech",)))
    assert [turns(sample) for sample in samples] == [
        [("user", ["audio:/low.wav", "Say it."]), ("assistant", ["low"])],
        [("user", ["audio:high.wav", "Say it."]), ("assistant", ["high"])],
    ]
    assert samples[1].where == f"{path}:3"
    assert samples[0].source == "table"


def test_modality_of_a_table(media):
    path = write(media / "any.jsonl", [{"file": "red.png", "text": "a"}, {"file": "clip.mp4", "text": "b"}])
    samples = load_source(SourceSpec(path=path))
    assert [turns(sample)[0][1] for sample in samples] == [
        ["image:/red.png"],
        ["video:clip.mp4"],
    ]  # empty caption prompt
    path = write(media / "odd.jsonl", [{"file": "red.bin", "text": "a"}])
    with pytest.raises(DataError, match="cannot tell the modality of 'red.bin' by its name; set `modality`"):
        load_source(SourceSpec(path=path))


def test_rows_are_called_what_the_model_calls_them(media):
    """A row `voice` is named by a table and by a tag; its part is audio, whatever data called it before."""
    voices = MediaRows({"voice": "audio", "picture": "image"})
    path = write(media / "voices.jsonl", [{"file": "low.wav", "text": "low"}])
    for name in ("voice", "speech", "audio", None):
        (sample,) = load_source(SourceSpec(path=path, modality=name), voices)
        assert turns(sample)[0][1] == ["audio:/low.wav", "请忠实地识别该语音"]  # the kind's own prompt
    row = {
        "voice": "low.wav",
        "conversations": [{"from": "human", "value": "<voice> ?"}, {"from": "gpt", "value": "low"}],
    }
    (sample,) = load_source(SourceSpec(path=write(media / "l.json", [row], "json")), voices)
    assert turns(sample)[0][1] == ["audio:/low.wav", "?"]


@pytest.mark.parametrize(
    "row",
    [
        {"file": "clip.mp4", "text": "grey", "modality": "video"},
        {"messages": [{"role": "user", "content": [{"type": "video", "path": "clip.mp4"}]}, ANSWER]},
        {"video": "clip.mp4", "conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "grey"}]},
        {"image_id": "clip", "caption_zh": "grey", "modality": "video"},
    ],
)
def test_a_medium_that_the_model_does_not_read_is_an_error_that_names_its_rows(media, row):
    path = write(media / "unread.jsonl", [row])
    spec = SourceSpec(path=path, modality=row.get("modality"))
    with pytest.raises(
        DataError, match=r"unread\.jsonl:1: .*no row of the model reads.*; its rows are voice, picture"
    ):
        load_source(spec, MediaRows({"voice": "audio", "picture": "image"}))
    assert len(load_source(spec)) == 1


def test_columns_prompts_and_answers_are_templates(media):
    rows = [{"wav": "low.wav", "words": "so low", "speaker": "ann"}]
    path = write(media / "named.jsonl", rows)
    spec = SourceSpec(
        path=path, modality="speech", file_column="wav", text_column="words",
        prompts=["Who says it?", "{speaker} says?"], answer="{speaker}: {words}",
    )  # fmt: skip
    (sample,) = load_source(spec)
    assert turns(sample, lambda n: n - 1) == [
        ("user", ["audio:/low.wav", "ann says?"]),
        ("assistant", ["ann: so low"]),
    ]


def test_text_rows_have_no_media(media):
    path = write(media / "text.jsonl", [{"text": "one"}])
    (sample,) = load_source(SourceSpec(path=path, modality="text", prompts=["repeat: {text}"]))
    assert turns(sample) == [("user", ["repeat: one"]), ("assistant", ["one"])]


def test_where_exclude_and_limit(media):
    rows = [
        {"file": "low.wav", "text": str(take), "speaker": who, "take": take} for who in ("a", "b") for take in range(3)
    ]
    path = write(media / "many.jsonl", rows)

    def texts(**kwargs):
        return [sample.answers[0] for sample in load_source(SourceSpec(path=path, modality="speech", **kwargs))]

    assert texts(where={"speaker": "a"}) == ["0", "1", "2"]
    assert texts(where={"speaker": ["a", "b"], "take": [0, 2]}, exclude={"speaker": "b"}) == ["0", "2"]
    assert texts(exclude={"take": [1]}, limit=3) == ["0", "2", "0"]
    assert texts(exclude={"not there": 1}) == [row["text"] for row in rows]
    with pytest.raises(
        DataError, match="many.jsonl:1: no column 'speker' to choose by; the columns are file, text, speaker"
    ):
        texts(where={"speker": "a"})
    with pytest.raises(DataError, match="no row is left"):
        texts(where={"speaker": "c"})
    with pytest.raises(DataError, match="limit is 0, expected a number of rows, at least 1"):
        texts(limit=0)


def test_messages_in_json_parquet_and_datasets(media):
    content = [{"type": "image", "path": "red.png"}, {"type": "text", "text": "What?"}]
    row = {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]}
    wanted = [("user", ["image:/red.png", "What?"]), ("assistant", ["red"])]
    json_path = write(media / "m.json", [row], "json")
    parquet = media / "m.parquet"
    Dataset.from_list(
        [{"messages": [row["messages"][0], {"role": "assistant", "content": [{"type": "text", "text": "red"}]}]}]
    ).to_parquet(str(parquet))
    for spec in (
        SourceSpec(path=json_path),
        SourceSpec(path=str(parquet)),
        SourceSpec(dataset=[row], media_root=str(media)),
    ):
        (sample,) = load_source(spec)
        assert turns(sample) == wanted


def test_llava_tags_take_the_media_in_order(media):
    row = {
        "image": ["red.png", "blue.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this, and <image> this?"},
            {"from": "gpt", "value": "red, blue"},
        ],
    }
    (sample,) = load_source(SourceSpec(path=write(media / "l.json", [row], "json")))
    assert turns(sample) == [
        ("user", ["image:/red.png", "What is this, and", "image:blue.png", "this?"]),
        ("assistant", ["red, blue"]),
    ]
    row["image"] = "red.png"
    with pytest.raises(
        DataError, match=r"l\.json\[0\]: conversations\[0\]: the text names more <image> than the row holds"
    ):
        load_source(SourceSpec(path=write(media / "l.json", [row], "json")))


def test_the_authors_captions(media):
    rows = [{"image": "red.png", "caption": ["red", "very red"], "image_id": 1, "dataset": "coco_zh"}]
    (sample,) = load_source(SourceSpec(path=write(media / "c.json", rows, "json")))
    assert turns(sample, lambda n: n - 1) == [("user", ["image:/red.png"]), ("assistant", ["very red"])]
    rows = [{"image_id": "clip", "caption_zh": "灰"}]
    (sample,) = load_source(SourceSpec(path=write(media / "v.json", rows, "json"), modality="video"))
    assert turns(sample) == [("user", ["video:clip.mp4"]), ("assistant", ["灰"])]
    rows = [{"image": "red.png", "caption": []}]
    with pytest.raises(DataError, match="column 'caption' is empty"):
        load_source(SourceSpec(path=write(media / "s.json", rows, "json")))


def test_the_authors_speech_features(media):
    np.save(media / "clip.npy", np.ones((3, 512), np.float32))
    features = {"utterance_id": "a", "speech_feats_path": "clip.npy", "length": 3}
    rows = [
        {**features, "target_text": "你好"},
        {**features, "target_text": "你好", "image": "red.png"},
        {**features, "image_path": "red.png", "question_text": "几", "answer_text": "三", "history_text": ""},
    ]
    path = write(media / "speech.json", rows, "json")
    assert [turns(sample) for sample in load_source(SourceSpec(path=path))] == [
        [("user", ["audio:clip.npy", "请忠实地识别该语音"]), ("assistant", ["你好"])],
        [("user", ["image:/red.png", "audio:clip.npy", "根据图片请忠实地识别该语音"]), ("assistant", ["你好"])],
        [("user", ["image:/red.png", "audio:clip.npy", "请根据图像回答语音中的问题"]), ("assistant", ["三"])],
    ]
    asked = write(media / "asked.json", rows[2:], "json")
    (sample,) = load_source(SourceSpec(path=asked, answer="{question_text}", prompts=["?"]))
    assert turns(sample) == [("user", ["image:/red.png", "audio:clip.npy", "?"]), ("assistant", ["几"])]
    path = write(media / "table.jsonl", [{"file": "clip.npy", "text": "x"}])
    assert turns(load_source(SourceSpec(path=path))[0])[0][1][0] == "audio:clip.npy"
    for changes, message in (
        ({"history_text": "问题：.."}, "history_text is not read"),
        ({"speech_feats_path": "none.npy"}, "no such file: .*none.npy"),
        ({"answer_text": ""}, "column 'answer_text' is empty"),
    ):
        path = write(media / "bad.json", [{**rows[2], **changes}], "json")
        with pytest.raises(DataError, match=message):
            load_source(SourceSpec(path=path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"file": "gone.wav", "text": "a"}], r"bad\.jsonl:1: no such file: .*gone\.wav"),
        ([{"file": "low.wav", "text": ""}], r"bad\.jsonl:1: column 'text' is empty"),
        ([{"text": "a"}], r"bad\.jsonl:1: cannot tell the format from the columns text; .* .set `file_column`"),
        ([{"words": "a"}], r"bad\.jsonl:1: cannot tell the format from the columns words"),
        ([["low.wav"]], r"bad\.jsonl:1: a JSON list where an object per line is expected"),
        ([{"messages": [{"role": "user", "content": "a"}]}], "the last message must be the assistant's"),
        ([{"messages": [{"role": "user", "content": [{"type": "smell"}]}]}], "content part of type 'smell'"),
    ],
)
def test_bad_rows_are_named(media, rows, message):
    with pytest.raises(DataError, match=message):
        load_source(SourceSpec(path=write(media / "bad.jsonl", rows)), MediaRows(trained=("speech",)))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such data file"):
        load_source(SourceSpec(path=str(tmp_path / "none.jsonl")))
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text"')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        load_source(SourceSpec(path=str(path), modality="text"))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(DataError, match=r"use \.jsonl, .*\.csv, \.tsv, \.parquet"):
        load_source(SourceSpec(path=str(tmp_path / "a.txt")))
    with pytest.raises(DataError, match="format is 'xml'"):
        load_source(SourceSpec(path=str(path), format="xml"))
    with pytest.raises(DataError, match="either a `path` or"):
        load_source(SourceSpec())


def test_bad_rows_do_not_end_the_reading_where_they_are_asked_for(media):
    path = media / "mixed.jsonl"
    lines = [{"file": "low.wav", "text": "a"}, 7, {"file": "gone.wav", "text": "b"}, {"file": "high.wav", "text": "c"}]
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "{broken\n" + json.dumps(lines[0]))
    found = []
    samples = load_source(SourceSpec(path=str(path)), on_bad=lambda where, error: found.append((where, str(error))))
    assert [sample.where for sample in samples] == [f"{path}:1", f"{path}:4", f"{path}:6"]
    assert [where for where, _ in found] == [f"{path}:{line}" for line in (2, 3, 5)]
    for (where, message), wanted in zip(found, ("expected a mapping", "no such file", "not JSON")):
        assert message.startswith(f"{where}: {wanted}")
    with pytest.raises(DataError, match="mixed.jsonl:2: expected a mapping"):
        load_source(SourceSpec(path=str(path)))

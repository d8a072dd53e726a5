# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Data as peers' users have it: their tags, their lists of data sets, their rows of conversations, their folders."""

import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from datasets import Dataset
from media_files import write_wav

from xllm.cli import main
from xllm.processing import audio_decoding
from xllm.processing.audio_decoding import load_audio
from xllm.training.data import dataset
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.sources import DataError, load_source
from xllm.training.recipes.recipe import SourceSpec
from xllm.training.streams.stream_files import StreamSource
from xllm.training.streams.stream_order import Work


@pytest.fixture
def folder(media, tmp_path):
    """A folder of its own with the media in it."""
    for name in ("low.wav", "high.wav", "red.png", "blue.png", "clip.mp4"):
        shutil.copy(media / name, tmp_path / name)
    return tmp_path


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def ask(question, answer="ok", role="role", content="content", names=("user", "assistant")):
    return [{role: name, content: text} for name, text in zip(names, (question, answer))]


def shown(sample):
    """The conversation in a line: [file] for a medium."""
    turns = sample.conversation(lambda n: 0)
    return " | ".join("".join(_shown(part) for part in turn["content"]) for turn in turns)


def _shown(part):
    if part["type"] == "text":
        return part["text"]
    source = part.get("path") or part[part["type"]]
    name = source["path"] if isinstance(source, dict) else getattr(source, "name", source)
    return f"[{part['type']} {str(name).rpartition('/')[2]}]"


def read(path, **spec):
    return [shown(sample) for sample in load_source(SourceSpec(path=str(path), **spec))]


# ---- texts that name media in other ways ----------------------------------------------------------------------------


def test_files_between_tags_are_media(folder):
    path = write(
        folder / "a.jsonl",
        {"messages": ask("<img>red.png</img>And <image>blue.png</image> differ?")},
        {"messages": ask("<audio> low.wav </audio>\nWrite it down")},
        {"query": "<video>clip.mp4</video>", "response": "grey"},
    )
    assert read(path) == [
        "[image red.png]And[image blue.png]differ? | ok", "[audio low.wav]Write it down | ok",
        "[video clip.mp4] | grey",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "mark",
    ["<ImageHere>", "<IMAGE>", "<Image>", "<image_1>", "<image 2>", "<img>", "</image>", "<image_placeholder>",
     "<start_of_image>", "<image_soft_token>", "<IMG_CONTEXT>", "<im_patch>", "<SpeechHere>", "[IMG]",
     "<|image_pad|>", "<ref-object>", "<bbox>"],
)  # fmt: skip
def test_marks_of_others_are_no_words(folder, mark):
    path = write(folder / "a.jsonl", {"messages": ask(f"{mark}What is it?")})
    with pytest.raises(DataError, match=r"a\.jsonl:1: messages\[0\]: holds .*a mark by which programs"):
        read(path)
    with pytest.raises(DataError, match=r"messages\[1\]: holds"):
        read(write(folder / "b.jsonl", {"messages": ask("What?", f"It is {mark}")}))
    assert read(path, modality="text") == [f"{mark}What is it? | ok"]


@pytest.mark.parametrize("word", ["<img src='a.png'>", "<video controls>", "<imageUrl>", "a < image > b", "[image]"])
def test_words_stay_words(folder, word):
    assert read(write(folder / "a.jsonl", {"messages": ask(word)})) == [f"{word} | ok"]


def test_llava_writes_image_for_a_video(folder):
    rows = [
        {
            "id": 1,
            "video": "clip.mp4",
            "conversations": ask("<image>\nWhat?", "grey", "from", "value", ("human", "gpt")),
        }
    ]
    assert read(write(folder / "a.json", json.dumps(rows))) == ["[video clip.mp4]What? | grey"]
    strict = {"messages": ask("<image>What?"), "videos": ["clip.mp4"]}
    with pytest.raises(DataError, match="names more <image> than the row holds"):
        read(write(folder / "b.jsonl", strict))


def test_conversations_of_other_collections(folder):
    pairs = [{"user": "What?", "assistant": "red", "source": "x"}, {"user": "Sure?", "assistant": "yes"}]
    path = write(folder / "a.jsonl", {"images": ["red.png"], "texts": pairs})
    assert read(path) == ["[image red.png]What? | red | Sure? | yes"]
    with pytest.raises(DataError, match=r"texts\[1\]: expected a user's text and the assistant's"):
        read(write(folder / "b.jsonl", {"images": ["red.png"], "texts": [*pairs[:1], {"user": "?"}]}))
    row = {"image": "red.png", "question": "Which?", "answers": [{"answer": "red", "answer_id": 1}]}
    assert read(write(folder / "c.jsonl", row)) == ["[image red.png]Which? | red"]


# ---- LLaMA-Factory's list of data sets ------------------------------------------------------------------------------


@pytest.fixture
def factory(folder):
    """A folder as LLaMA-Factory has it: three data sets and their list."""
    mine = {
        "dialog": ask("<image>Who?", "me", "who", "says", ("person", "bot")),
        "pics": ["red.png"],
        "about": "Be short.",
    }
    write(folder / "mine.json", json.dumps([mine]))
    write(folder / "alpaca.jsonl", {"a": "Add", "b": "1 and 2", "c": "3", "h": [["Hi", "Hello"]]})
    columns = {"messages": "dialog", "images": "pics", "system": "about"}
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "person", "assistant_tag": "bot"}
    alpaca = {"prompt": "a", "query": "b", "response": "c", "history": "h"}
    info = {
        "mine": {"file_name": "mine.json", "formatting": "sharegpt", "columns": columns, "tags": tags},
        "alpaca": {"file_name": "alpaca.jsonl", "columns": alpaca},
        "far": {"hf_hub_url": "someone/data"},
        "ranked": {"file_name": "ranked.json", "ranking": True},
    }
    write(folder / "dataset_info.json", json.dumps(info))
    return folder


def test_a_list_of_data_sets_names_columns_and_roles(factory):
    mine, alpaca = ["Be short. | [image red.png]Who? | me"], ["Hi | Hello | Add\n1 and 2 | 3"]
    for path in (factory, factory / "dataset_info.json"):
        assert read(path, config="mine") == mine
        assert read(path, config="alpaca") == alpaca
    assert read(factory / "mine.json") == mine  # the list lies beside
    source = StreamSource(SourceSpec(path=str(factory / "alpaca.jsonl")))
    samples = [source.sample(value) for _, value in source.read(Work(0, 0, 0, source.sizes[0]))]
    assert [shown(sample) for sample in samples] == alpaca


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "set `config` of the source to one of mine, alpaca, far, ranked"),
        ("other", "set `config` .* got 'other'"),
        ("far", "far: not in a local file; give someone/data as `path`"),
        ("ranked", r"ranked: pairs of better and worse answers \(ranking\) are not trained on"),
    ],
)
def test_what_a_list_cannot_give_is_said(factory, name, message):
    with pytest.raises(DataError, match=message):
        read(factory / "dataset_info.json", config=name)


# ---- members of tars ------------------------------------------------------------------------------------------------


def tar(path, **members):
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            data = data if isinstance(data, bytes) else json.dumps(data).encode()
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_what_a_json_member_names_is_found_in_the_tar(folder, tiny_processor):
    red, blue = ((folder / f"{name}.png").read_bytes() for name in ("red", "blue"))
    about = {"caption": "red", "url": "http://x/y.jpg", "key": "0", "status": "success", "width": 40}
    one = tar(folder / "a.tar", **{"0__png": red, "0__json": about, "0__txt": b"red", "._0__png": b"a Mac's"})
    assert read(one) == ["[image 0.png] | red"]  # as img2dataset writes it
    data = ChatDataset([load_source(SourceSpec(path=str(one)))], tiny_processor)
    assert data[0]["messages"][0]["content"][0]["image"].getpixel((0, 0)) == (255, 0, 0)
    turned = {"messages": ask("<image><image>?"), "images": ["0.b.png", "0.a.png"]}
    two = tar(folder / "b.tar", **{"0__a__png": red, "0__b__png": blue, "0__json": turned})
    assert read(two) == ["[image 0.b.png][image 0.a.png]? | ok"]
    turns = ask("<image>\nWhat?", "red", "from", "value", ("human", "gpt"))
    assert read(tar(folder / "c.tar", **{"0__png": red, "0__json": turns})) == ["[image 0.png]What? | red"]
    with pytest.raises(DataError, match=r"d\.tar/0: .*\(of the members png; .* one name up to its first dot, and lie"):
        read(tar(folder / "d.tar", **{"0__png": red, "1__png": red, "0__txt": b"red"}))


# ---- folders and tables ---------------------------------------------------------------------------------------------


def test_corpora_are_found_from_several_ends(folder):
    coco = {"images": [{"id": 1, "file_name": "red.png"}], "annotations": [{"image_id": 1, "caption": "red"}]}
    (folder / "coco" / "train2017").mkdir(parents=True)
    shutil.copy(folder / "red.png", folder / "coco" / "train2017" / "red.png")
    path = write(folder / "coco" / "annotations" / "captions_train2017.json", json.dumps(coco, indent=1))
    for place in (path, path.parent, folder / "coco"):
        assert read(place) == ["[image red.png] | red"]
    kaldi = folder / "egs" / "data" / "train"
    shutil.copy(write(folder / "egs" / "wavs" / "x").parents[2] / "low.wav", folder / "egs" / "wavs" / "low.wav")
    write(kaldi / "wav.scp", "u wavs/low.wav")  # from where Kaldi's scripts are run
    write(kaldi / "text", "u1 A", "u2 B")
    write(kaldi / "segments", "u1 u 0.0 0.1", "u2 u 0.1 -1")
    for place in (kaldi, kaldi / "wav.scp", kaldi / "text"):
        samples = load_source(SourceSpec(path=str(place)))
        assert [(one.answers[0], one.media[0]["offset"], one.media[0].get("duration")) for one in samples] == [
            ("A", 0.0, 0.1), ("B", 0.1, None),
        ]  # fmt: skip
    (folder / "parent").mkdir()
    shutil.copytree(kaldi, folder / "parent" / "sets" / "train")
    with pytest.raises(DataError, match="without data files; name .*parent/sets/train"):
        read(folder / "parent")


def visdial(path, **changes):
    """A file of VisDial v1.0 as it is published: lists of questions and answers, and their numbers."""
    words = {"questions": ["what is it", "is it red?", "how many"], "answers": ["a square", "yes", "no"]}
    turns = [{"question": 0, "answer": 0}, {"question": 1, "answer": 1, "answer_options": [2, 1], "gt_index": 1}]
    dialogues = [
        {"image_id": 378466, "caption": "a red square", "dialog": turns},
        {"image_id": 57, "caption": "blue", "dialog": [{"question": 2, "answer": 2}, {"question": 0}]},
    ]
    data = {**words, "dialogs": dialogues, **changes}
    return write(path, json.dumps({"version": "1.0", "split": "train", "data": data}))


def test_visdial_is_read_as_published(folder, caplog):
    """Images by their number, in the folders of COCO 2014 or beside the file; the test split ends with a question."""
    (folder / "train2014").mkdir()
    shutil.copy(folder / "red.png", folder / "train2014" / "COCO_train2014_000000378466.jpg")
    shutil.copy(folder / "blue.png", folder / "VisualDialog_val2018_000000000057.jpg")
    path = visdial(folder / "visdial_1.0_train.json")
    assert read(path) == [
        "[image COCO_train2014_000000378466.jpg]what is it? | a square | is it red? | yes",
        "[image VisualDialog_val2018_000000000057.jpg]how many? | no",
    ]
    assert "the last question of 1 dialogues has no answer and is left out" in caplog.text
    assert "nothing reads the columns caption (2)" in caplog.text
    (folder / "train2014" / "COCO_train2014_000000378466.jpg").rename(folder / "000000378466.jpg")
    assert read(path)[0].startswith("[image 000000378466.jpg]")
    (folder / "000000378466.jpg").unlink()
    with pytest.raises(DataError, match=r"data\.dialogs\[0\]: no such file: .*000000378466\.jpg"):
        read(path)
    for change in ({"questions": []}, {"dialogs": [{"image_id": 57, "dialog": [{"question": -1, "answer": 0}]}]}):
        with pytest.raises(DataError, match=r"data\.dialogs\[0\]: not a dialogue of VisDial v1\.0"):
            read(visdial(folder / "broken.json", **change))


def test_segments_of_a_recording_decode_it_once(folder, tiny_processor, monkeypatch, capsys):
    """In the order of the file, in one batch, and in `xllm check`; a recording too many is decoded again."""
    kaldi, names, rng = folder / "kaldi", [f"u{number}" for number in range(3)], np.random.default_rng(0)
    write(kaldi / "wav.scp", *(f"{name} {folder / name}.wav" for name in names))
    for name in names:
        write_wav(folder / f"{name}.wav", [rng.uniform(-0.5, 0.5, 6400)])
    spans = [(f"{name}-{part}", name, part / 10) for part in range(4) for name in names]
    write(kaldi / "segments", *(f"{key} {name} {begin} {begin + 0.1:.1f}" for key, name, begin in spans))
    write(kaldi / "text", *(f"{key} low" for key, *_ in spans))
    decoded, decode = [], audio_decoding._decode_audio
    monkeypatch.setattr(audio_decoding, "_decode_audio", lambda *args: decoded.append(args[1]) or decode(*args))
    data = ChatDataset.from_specs([SourceSpec(path=str(kaldi))], tiny_processor)
    items = [data[index] for index in range(12)]
    assert len(decoded) == 3
    cut = items[3]["messages"][0]["content"][0]["audio"].samples
    assert (cut == load_audio(str(folder / "u0.wav"))[1600:3200]).all()
    decoded.clear()
    assert main(["check", str(kaldi), "--workers", "0"]) == 0
    assert len(decoded) == 3
    monkeypatch.setattr(dataset, "MOST_KEPT", 2 * 6400 * 4)
    data = ChatDataset.from_specs([SourceSpec(path=str(kaldi))], tiny_processor)
    decoded.clear()
    assert len([data[index] for index in range(12)]) == len(decoded) == 12
    assert len(data._recordings) == 2


def test_splits_in_the_names_of_folders(folder):
    for split in ("train", "test"):
        (folder / "hive" / f"split={split}").mkdir(parents=True)
        table = Dataset.from_dict({"image": [str(folder / "red.png")], "text": [split]})
        table.to_parquet(str(folder / "hive" / f"split={split}" / "0.parquet"))
    assert read(folder / "hive") == ["[image red.png] | train"]
    assert read(folder / "hive", split="test") == ["[image red.png] | test"]


@pytest.mark.parametrize(
    "lines",
    [("File,Text", "red.png,x"), ("Image, Caption", "red.png, x"), (",file,text", "0,red.png,x"),
     ("image_name| comment_number| caption", "red.png| 0| x"), ('"file_name";"text"', '"red.png";"x"')],
)  # fmt: skip
def test_tables_as_people_export_them(folder, lines):
    assert read(write(folder / "a.csv", *lines)) == ["[image red.png] | x"]


def test_lists_of_files_and_what_links_lead_to(folder):
    path = write(folder / "metadata.jsonl", {"file_names": ["red.png", "blue.png"], "text": "two"})
    assert read(path) == ["[image red.png][image blue.png] | two"]
    (folder / "links").mkdir()
    (folder / "links" / "data.jsonl").symlink_to(path)
    assert read(folder / "links" / "data.jsonl") == ["[image red.png][image blue.png] | two"]
    rows = [{"file": "red.png", "text": text} for text in ("x", "y")]
    assert read(write(folder / "blank.json", "", *rows)) == ["[image red.png] | x", "[image red.png] | y"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "file,text\nred.png,x\n".encode("utf-16"), r"a\.csv: not UTF-8, save it as UTF-8"),
        ("a.jsonl", b'[{"file": "red.png", "text": "x"}]', r"a\.jsonl:1: a JSON list .*name such a file \.json"),
        (
            "a.json",
            b'{"train":\n[{"file": "red.png"}]}',
            "expected a JSON list of samples, .* got an object with train",
        ),
        ("a.csv", b"file,text\nsub,x\n", r"a\.csv:2: \w+: expected a file, got the folder .*sub"),
        ("a.csv", b"question,answer\nx,y\n", "or `modality: text` where there are no media"),
    ],
)
def test_the_line_says_what_to_do(folder, name, content, message):
    (folder / "sub").mkdir()
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read(folder / name, modality="speech" if b"sub" in content else None)
    assert "\n" not in str(caught.value)

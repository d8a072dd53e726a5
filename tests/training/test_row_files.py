# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Files, folders and corpora as they are published, opened without naming a column."""

import gzip
import io
import json
import logging
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.media_rows import MediaRows
from xllm.training.data.sources import DataError, load_source
from xllm.training.recipes.recipe import SourceSpec


LOW = [("audio", "low.wav", "low"), ("audio", "high.wav", "high")]


def found(path, **spec):
    """[(type, file, answer or answers)] of a source."""
    samples = load_source(SourceSpec(path=str(path), **spec))
    return [_seen(sample) for sample in samples]


def _seen(sample):
    (part,) = [part for part in sample.parts() if part["type"] != "text"]
    source = part.get("path") or part[part["type"]]
    name = source["path"] if isinstance(source, dict) else getattr(source, "name", source)
    answer = sample.messages[-1]["content"][0]["text"] if sample.messages else sample.answers
    return part["type"], str(name).rpartition("/")[2], answer[0] if len(answer) == 1 else answer


def text(path, *lines, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return path


@pytest.fixture
def folder(media, tmp_path):
    """A folder of its own with the media in it."""
    for name in ("low.wav", "high.wav", "red.png", "blue.png"):
        shutil.copy(media / name, tmp_path / name)
    return tmp_path


# ---- text files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_tables_with_any_separator(folder, mark, ending):
    path = text(folder / f"a{ending}", f"file{mark}text", f"low.wav{mark}low", f"high.wav{mark}high")
    assert found(path) == LOW


def test_byte_order_marks_windows_lines_and_compression(folder):
    lines = ["file;text\r", "low.wav;low\r", "high.wav;high\r"]
    assert found(text(folder / "a.csv", *lines, encoding="utf-8-sig")) == LOW
    rows = [json.dumps({"file": name, "text": name[:-4]}) + "\r" for name in ("low.wav", "high.wav")]
    path = text(folder / "a.jsonl", *rows, encoding="utf-8-sig")
    assert found(path) == LOW
    for name in ("a.csv", "a.jsonl"):
        with gzip.open(folder / f"{name}.gz", "wb") as file:
            file.write((folder / name).read_bytes())
        assert found(folder / f"{name}.gz") == LOW
    assert [sample.where for sample in load_source(SourceSpec(path=str(path)))] == [f"{path}:1", f"{path}:2"]
    damaged = folder / "b.jsonl.gz"
    damaged.write_bytes((folder / "a.jsonl.gz").read_bytes()[:-12])
    with pytest.raises(DataError, match=r"b\.jsonl\.gz.*: damaged or cut off"):
        found(damaged)


def test_quotes_between_tabs_are_letters_unless_they_close_a_cell(folder):
    path = text(folder / "a.tsv", "file\ttext", 'low.wav\t"Yes," he said', 'high.wav\t"he said ""no"""')
    assert [answer for *_, answer in found(path)] == ['"Yes," he said', 'he said "no"']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv: no row is left"),
        ("a.csv", b"file,text\nlow.wav,a,b\n", r"a\.csv:2: 3 cells, but 2 columns: file, text"),
        ("a.tsv", b"file\ttext\nlow.wav\n", r"a\.tsv:2: 1 cells, but 2 columns"),
        ("a.csv", b'file,text\nlow.wav,"a\n', r"a\.csv:\d: not csv: unexpected end of data"),
        ("a.csv", b"file,file\nlow.wav,a\n", r"a\.csv:1: expected a line of column names, all different"),
        ("a.csv", b"low.wav,hello\nhigh.wav,you\n", "cannot tell .* columns low.wav, hello; .* begins with a line"),
        ("a.csv", b"file,text\nlow.wav,\x00\n", r"a\.csv:2: text: a NUL character"),
        ("a.jsonl", b'{"file": "low.wav", "text": "a"}\n{"file"\n', r"a\.jsonl:2: not JSON"),
        ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}\n", r"a\.jsonl:1: not JSON: .*4300 digits"),
        ("a.jsonl", b'{"n":' + b"[" * 100_000, r"a\.jsonl:1: not JSON"),
        ("a.jsonl", '{"text": "ä"}'.encode("latin-1"), r"a\.jsonl.*: not UTF-8, save it as UTF-8: 'utf-8' codec"),
        ("a.json", b"7", "expected a JSON list of samples, .* got int"),
        ("a.json", b"", r"a\.json: not JSON"),
        ("a.json", b'{"a": {"b": 1}}', "cannot tell the format from the columns a"),
        ("a.parquet", b"PAR1 and no more", r"a\.parquet: not parquet"),
        ("a.arrow", b"ARROW1", r"a\.arrow: cannot be opened"),
        ("a.tar", b"no tar", r"a\.tar: damaged or cut off"),
        ("a.tar.gz", b"", r"a\.tar\.gz: unknown kind of data file"),
    ],
)  # fmt: skip
def test_bad_files_are_one_line(tmp_path, media, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        found(tmp_path / name, media_root=str(media), modality="speech")
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


# ---- corpora --------------------------------------------------------------------------------------------------------


def test_nemo_manifest(folder, tiny_processor):
    """An object per line under .json, with an offset into the recording."""
    row = {"audio_filepath": "low.wav", "duration": 0.1, "offset": 0.2, "text": "low"}
    path = text(folder / "train_manifest.json", json.dumps(row), json.dumps({**row, "audio_filepath": "high.wav"}))
    assert [seen[:2] for seen in found(path)] == [seen[:2] for seen in LOW]
    data = ChatDataset([load_source(SourceSpec(path=str(path)))], tiny_processor)
    whole = ChatDataset(
        [load_source(SourceSpec(dataset=[{"file": str(folder / "low.wav"), "text": "a"}]))], tiny_processor
    )
    cut, wave = (one[0]["messages"][0]["content"][0]["audio"].samples for one in (data, whole))
    assert np.array_equal(cut, wave[3200:4800])
    rows = [{**row, "offset": 0.36}]
    data = ChatDataset([load_source(SourceSpec(dataset=rows, media_root=str(folder)))], tiny_processor)
    with pytest.raises(ValueError, match=r"low\.wav: holds 0\.40 s, not the span from 0\.36 to 0\.46 s"):
        data[0]


def test_funasr_jsonl(folder, caplog):
    row = {"key": "a", "source": "low.wav", "source_len": 40, "target": "low", "target_len": 3}
    other = {"key": "b", "source": "high.wav", "source_len": 40, "target": "high", "target_len": 4}
    assert found(text(folder / "train.jsonl", json.dumps(row), json.dumps(other))) == LOW
    assert "nothing reads" not in caplog.text


def test_common_voice(folder):
    (folder / "clips").mkdir()
    for name in ("low.wav", "high.wav"):
        shutil.move(folder / name, folder / "clips" / name)
    head = "client_id\tpath\tsentence_id\tsentence\tup_votes"
    text(folder / "train.tsv", head, "c\tlow.wav\t1\tlow\t2", "c\thigh.wav\t2\thigh\t2")
    text(folder / "dev.tsv", head, "c\thigh.wav\t2\thigh\t2")
    assert found(folder / "train.tsv") == LOW
    assert found(folder) == LOW
    assert found(folder, split="dev") == LOW[1:]
    with pytest.raises(DataError, match="no split 'other'; set `split` to one of dev, train"):
        found(folder, split="other")


def kaldi(folder, **files):
    for name, lines in files.items():
        text(folder / name.replace("_", "."), *lines)


def test_kaldi(folder, caplog):
    kaldi(folder, wav_scp=["u1 low.wav", "u2 high.wav", "u3 red.png"], text=["u1 low", "u2 high"])
    with caplog.at_level(logging.WARNING):
        assert found(folder) == LOW
    assert "1 recordings of wav.scp have no transcript and are left out (u3 ...)" in caplog.text
    assert found(folder / "wav.scp") == LOW
    kaldi(folder, segments=["s1 u1 0.1 0.2", "s2 u2 0 0.4"], text=["s1 low", "s2 high"])
    samples = load_source(SourceSpec(path=str(folder)))
    spans = [(part["offset"], round(part["duration"], 6)) for sample in samples for part in sample.parts()]
    assert spans == [(0.1, 0.1), (0, 0.4)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"wav_scp": ["u1 touch hacked; cat a |"], "text": ["u1 a"]}, r"wav\.scp:1: a command \(touch.*never run"),
        ({"wav_scp": ["u1 raw.ark:15"], "text": ["u1 a"]}, r"wav\.scp:1: 'raw\.ark:15'.*archives are not read"),
        ({"wav_scp": ["u1 low.wav"], "text": ["u2 a"]}, r"text:1: u2 is not in wav\.scp"),
        ({"wav_scp": ["u1 low.wav", "u1 a.wav"], "text": ["u1 a"]}, r"wav\.scp:2: a second line of u1"),
        ({"wav_scp": ["u1 low.wav"], "text": ["u1"]}, r"text:1: column 'text' is empty"),
        ({"wav_scp": ["u1 low.wav"], "text": ["s1 a"], "segments": ["s1 u1 2 1"]}, r"segments:1: .*an empty span"),
        ({"wav_scp": ["u1 gone.wav"], "text": ["u1 a"]}, r"text:1: no such file: .*gone\.wav"),
    ],
)  # fmt: skip
def test_what_a_kaldi_folder_must_not_say(folder, monkeypatch, files, message):
    monkeypatch.chdir(folder)
    kaldi(folder, **files)
    with pytest.raises(DataError, match=message):
        found(folder)
    assert not (folder / "hacked").exists()


def test_aishell_1(folder, caplog):
    for split, speaker, name in (("train", "S0002", "low"), ("train", "S0003", "high"), ("test", "S0764", "low")):
        at = folder / "wav" / split / speaker / f"BAC009{speaker}W0122{name}.wav"
        at.parent.mkdir(parents=True)
        shutil.copy(folder / f"{name}.wav", at)
    shutil.copy(folder / "low.wav", folder / "wav/train/S0002/BAC009S0002W9999.wav")
    lines = ["BAC009S0002W0122low 而 对 楼市", "BAC009S0003W0122high 也 成为 gdp 增速", "BAC009S0764W0122low 甚至"]
    text(folder / "transcript" / "aishell_transcript_v0.8.txt", *lines)
    with caplog.at_level(logging.WARNING):
        assert [answer for *_, answer in found(folder)] == ["而对楼市", "也成为 gdp 增速"]
    assert "1 recordings of train have no transcript and are left out (BAC009S0002W9999 ...)" in caplog.text
    assert found(folder, split="test") == [("audio", "BAC009S0764W0122low.wav", "甚至")]


def test_aishell_2(folder):
    kaldi(folder, wav_scp=["IC1\tlow.wav", "IC2\thigh.wav"], trans_txt=["IC1\t厨房用品", "IC2\t电蒸锅"])
    assert found(folder) == [("audio", "low.wav", "厨房用品"), ("audio", "high.wav", "电蒸锅")]


PICTURES = [("image", "red.png", "red"), ("image", "blue.png", "blue")]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("below", ["", "train"])
def test_imagefolder(folder, ending, below):
    at = folder / below
    at.mkdir(exist_ok=True)
    for name in ("red.png", "blue.png"):
        shutil.move(folder / name, at / name)
    rows = Dataset.from_list([{"file_name": f"{name}.png", "text": name} for name in ("red", "blue")])
    getattr(rows, {"csv": "to_csv", "jsonl": "to_json", "parquet": "to_parquet"}[ending])(
        str(at / f"metadata.{ending}")
    )
    assert found(folder) == PICTURES


def test_coco_captions(folder, caplog):
    (folder / "train2017").mkdir()
    (folder / "annotations").mkdir()
    for name in ("red.png", "blue.png"):
        shutil.move(folder / name, folder / "train2017" / name)
    images = [{"id": n, "file_name": name, "height": 3} for n, name in enumerate(("red.png", "blue.png", "none.png"))]
    notes = [{"image_id": 0, "id": 7, "caption": "red"}, {"image_id": 1, "id": 8, "caption": "blue"}]
    path = folder / "annotations" / "captions_train2017.json"
    coco = {"info": {}, "images": images, "annotations": [*notes, {"image_id": 0, "id": 9, "caption": "very red"}]}
    path.write_text(json.dumps(coco))
    with caplog.at_level(logging.WARNING):
        assert found(path) == [("image", "red.png", ["red", "very red"]), ("image", "blue.png", "blue")]
    assert "1 of 3 images have no caption and are left out" in caplog.text
    for change, message in (
        ({"annotations": [{"image_id": 9, "caption": "a"}]}, "no image has the id 9"),
        ({"annotations": [{"image_id": 0, "bbox": []}]}, "a COCO file without captions"),
    ):
        path.write_text(json.dumps({**coco, **change}))
        with pytest.raises(DataError, match=message):
            found(path)


# ---- Parquet, datasets, folders -------------------------------------------------------------------------------------


def pictures():
    """A data set of the Hub's usual columns, the pictures as bytes."""
    rows = []
    for name in ("red", "blue"):
        out = io.BytesIO()
        Picture.new("RGB", (8, 8), name).save(out, "PNG")
        rows.append({"image": {"bytes": out.getvalue(), "path": f"{name}.png"}, "text": name})
    return Dataset.from_list(rows, features=Features(image=Image(), text=Value("string")))


def colors(samples, processor):
    data = ChatDataset([samples], processor)
    return [data[n]["messages"][0]["content"][0]["image"].getpixel((0, 0)) for n in range(len(data))]


RED, BLUE = (255, 0, 0), (0, 0, 255)


def test_a_saved_data_set(tmp_path, tiny_processor):
    pictures().save_to_disk(str(tmp_path / "one"))
    DatasetDict(train=pictures(), test=pictures().select([1])).save_to_disk(str(tmp_path / "two"))
    assert found(tmp_path / "one") == found(tmp_path / "two") == PICTURES
    assert found(tmp_path / "two", split="test") == PICTURES[1:]
    samples = load_source(SourceSpec(path=str(tmp_path / "two"), split="test"))
    assert colors(samples, tiny_processor) == [BLUE]
    with pytest.raises(DataError, match="no split 'dev'; set `split` to one of train, test"):
        found(tmp_path / "two", split="dev")


def test_folders_and_globs_of_parquet(tmp_path, tiny_processor):
    (tmp_path / "data").mkdir()
    for n in range(2):
        pictures().select([n]).to_parquet(str(tmp_path / "data" / f"train-0000{n}-of-00002.parquet"))
    pictures().select([0]).to_parquet(str(tmp_path / "data" / "test-00000-of-00001.parquet"))
    (tmp_path / "README.md").write_text("a card")
    for path in (
        tmp_path,
        tmp_path / "data" / "train-*.parquet",
        tmp_path / "data" / "train-{00000..00001}-of-00002.parquet",
    ):
        samples = load_source(SourceSpec(path=str(path)))
        assert [_seen(sample) for sample in samples] == PICTURES
        assert colors(samples, tiny_processor) == [RED, BLUE]
    assert found(tmp_path, split="test") == PICTURES[:1]
    with pytest.raises(DataError, match=r"none-\*\.parquet: no file matches"):
        found(tmp_path / "none-*.parquet")
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"several kinds of data files: .*1 \.jsonl"):
        found(tmp_path)


def test_a_data_set_in_python_is_read_without_decoding(tiny_processor):
    samples = load_source(SourceSpec(dataset=pictures().select([1, 0])))
    assert colors(samples, tiny_processor) == [BLUE, RED]
    assert [_seen(sample) for sample in samples] == PICTURES[::-1]


# ---- WebDataset -----------------------------------------------------------------------------------------------------


def tar(path, *members):
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            else:
                info.size = len(content)
            file.addfile(info, None if content is None else io.BytesIO(content))
    return path


def test_webdataset(tmp_path, media, tiny_processor):
    red, blue, low = ((media / name).read_bytes() for name in ("red.png", "blue.png", "low.wav"))
    question = {
        "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "blue"}],
        "image": "b.png",
    }
    tar(
        tmp_path / "s-000.tar",
        ("a.png", red),
        ("a.txt", b"red\n"),
        ("b.json", json.dumps(question).encode()),
        ("b.png", blue),
    )
    tar(tmp_path / "s-001.tar", ("x/c.wav", low), ("x/c.json", json.dumps({"text": "low", "speaker": 1}).encode()))
    samples = load_source(SourceSpec(path=str(tmp_path / "s-{000..001}.tar")))
    assert [_seen(sample) for sample in samples] == [
        ("image", "a.png", "red"), ("image", "b.png", "blue"), ("audio", "c.wav", "low"),
    ]  # fmt: skip
    assert samples[2].where == f"{tmp_path / 's-001.tar'}/x/c"
    batch = XLLMDataCollator(tiny_processor)([ChatDataset([samples], tiny_processor)[n] for n in range(3)])
    assert (len(batch["pixel_values"]), len(batch["input_features"])) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s-000.tar", "s-001.tar"]


@pytest.mark.parametrize("size", [1100, 1024, 1700])
def test_a_tar_that_ends_early(tmp_path, media, size):
    path = tar(tmp_path / "a.tar", ("a.txt", b"a"), ("a.png", (media / "red.png").read_bytes()))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"a\.tar.*: damaged or cut off"):
        found(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", None), ("a.txt", b"a")], r"a\.tar/a\.png: a link or special file"),
        ([("a.txt", b"a"), ("b.txt", b"b")], "cannot tell the format from the columns txt"),
        ([("a.json", b"{")], r"a\.tar/a\.json: not JSON"),
        ([("a.txt", b"a"), ("a.TXT", b"b")], r"a second txt of the same sample"),
    ],
)
def test_members_that_are_refused(tmp_path, members, message):
    with pytest.raises(DataError, match=message):
        found(tar(tmp_path / "a.tar", *members))


def test_a_member_that_climbs_out_is_only_read(tmp_path, media):
    (tmp_path / "in").mkdir()
    red = (media / "red.png").read_bytes()
    path = tar(
        tmp_path / "in" / "a.tar",
        ("../../evil.png", red),
        ("../../evil.txt", b"red"),
        ("/abs.png", red),
        ("/abs.txt", b"x"),
    )
    assert [answer for *_, answer in found(path)] == ["red", "x"]
    assert [file.name for file in tmp_path.rglob("*") if file.is_file()] == ["a.tar"]


def test_a_zip_is_no_data_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("../evil", "x")
    with pytest.raises(DataError, match="unknown kind of data file"):
        found(tmp_path / "a.zip")


def test_a_model_that_hears_only(folder):
    """What a folder holds is judged by the model's rows, as rows of a file are."""
    text(folder / "metadata.csv", "file_name,text", "red.png,red")
    with pytest.raises(DataError, match="cannot tell the modality of 'red.png'"):
        load_source(SourceSpec(path=str(folder)), MediaRows({"speech": "audio"}))

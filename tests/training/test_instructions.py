# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm build-instructions`: four kinds of rows, splits that share no medium, the same bytes, also after a kill."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image

from xllm.cli import main
from xllm.processing.audio_decoding import load_audio
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data.dataset import ChatDataset
from xllm.training.instructions.building import TEMPLATES, language_of, read_templates
from xllm.training.recipes.recipe import SourceSpec


# A synthesiser that needs no library: a tone as long as the text.
SYNTHESISER = """
import sys, wave
file, text = sys.argv[1:]
with wave.open(file, "wb") as out:
    out.setnchannels(1); out.setsampwidth(2); out.setframerate(8000)
    out.writeframes(bytes(range(1, 251)) * (2 * len(text)))
"""


@pytest.fixture
def sources(tmp_path):
    """Pictures, recordings and videos with texts, and dialogues about some of the pictures, under other names too."""
    rng = np.random.default_rng(0)
    captions, dialogues = [], []
    for number in range(12):
        pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"picture{number}.png")
        captions.append({"file": f"picture{number}.png", "text": caption(number)})
        if number < 6:
            shutil.copy(tmp_path / f"picture{number}.png", tmp_path / f"again{number}.png")
            turns = [f"What is in {number}?", f"a {number}", "这是什么？", f"第{number}个"]
            messages = [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, turns)]
            messages[0]["content"] = f"<image>{turns[0]}"
            dialogues.append({"messages": messages, "images": [f"again{number}.png"]})
    for number in range(3):
        write_wav(tmp_path / f"clip{number}.wav", [sine(0.2 + 0.1 * number)])
        write_video(tmp_path / f"film{number}.mp4", grey_frames(5 + number))
    write(tmp_path / "captions.jsonl", captions)
    write(tmp_path / "dialogues.jsonl", dialogues)
    write(tmp_path / "speech.jsonl", [{"file": f"clip{n}.wav", "text": f"one {n}"} for n in range(3)])
    write(tmp_path / "films.jsonl", [{"file": f"film{n}.mp4", "text": f"grey {n}"} for n in range(3)])
    (tmp_path / "synthesiser.py").write_text(SYNTHESISER)
    return tmp_path


def caption(number):
    return f"number {number}" if number % 2 else f"数字 {number}"


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return str(path)


def command(sources, output, *options, kind="all", dialogues=True):
    files = {"captions": "captions", "transcripts": "speech", "videos": "films"}
    files |= {"dialogues": "dialogues"} if dialogues else {}
    given = [item for name, file in files.items() for item in (f"--{name}", str(sources / f"{file}.jsonl"))]
    if dialogues:
        given += ["--synthesiser", f"{sys.executable} {sources / 'synthesiser.py'} {{file}} {{text}}"]
    return ["build-instructions", str(output), "--kind", kind, *given, "--held-out", "0.4", *options]


def rows_of(folder, kind, split):
    path = folder / f"{kind}.{split}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def contents(folder):
    """Every file of a folder -> its contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


KINDS = {"image-text": 12, "speech-text": 3, "video-text": 3, "image-text-speech": 24}


def test_four_kinds_that_training_reads(sources, tiny_processor, capsys):
    output = sources / "out"
    assert main([*command(sources, output, "--json", "--licence", "CC-BY-4.0", "--licence", "videos=CC0-1.0")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {kind: sum(splits.values()) for kind, splits in found["samples"].items()} == KINDS
    requests = read_templates(TEMPLATES)
    for kind in KINDS:
        for split in ("train", "test"):
            assert len(rows_of(output, kind, split)) == found["samples"][kind][split]
    row = next(row for row in rows_of(output, "image-text", "train") if row["messages"][1]["content"] == "number 3")
    tag, request = row["messages"][0]["content"][:7], row["messages"][0]["content"][7:]
    assert tag == "<image>"
    assert request in requests["image-text"]["en"]
    (name,) = row["images"]
    assert (output / name).read_bytes() == (sources / "picture3.png").read_bytes()
    specs = [SourceSpec(path=str(path)) for path in sorted(output.glob("*.train.jsonl"))]
    data = ChatDataset.from_specs(specs, tiny_processor)
    batch = XLLMDataCollator(tiny_processor)([data[index] for index in range(len(data))])
    assert {"pixel_values", "pixel_values_videos", "input_features"} < set(batch)
    # what was built is good data
    assert main(["check", *(spec.path for spec in specs), "--workers", "0"]) == 0
    card = (output / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "other"
    assert [config["config_name"] for config in front["configs"]] == list(KINDS)
    assert "| videos | films.jsonl | CC0-1.0 |" in card
    assert "| captions | captions.jsonl | CC-BY-4.0 |" in card
    assert found["sha256"] in card
    assert str(sources) not in card
    tables = json.loads((output / "dataset_info.json").read_text())
    assert tables["video-text-train"]["columns"] == {"messages": "messages", "videos": "videos"}


def test_dialogues_of_visdial_become_spoken_questions(sources):
    """As they are published: numbers of questions, answers and images."""
    turns = [{"question": 1, "answer": 0, "answer_options": [0, 1]}, {"question": 0, "answer": 1}]
    data = {"questions": ["is it day", "what is it"], "answers": ["noise", "no"]}
    data["dialogs"] = [{"image_id": 7, "caption": "noise", "dialog": turns}]
    (sources / "visdial_1.0_val.json").write_text(json.dumps({"version": "1.0", "split": "val2018", "data": data}))
    (sources / "VisualDialog_val2018").mkdir()
    shutil.copy(sources / "picture0.png", sources / "VisualDialog_val2018" / "VisualDialog_val2018_000000000007.jpg")
    line = ["build-instructions", str(sources / "out"), "--kind", "image-text-speech", "--held-out", "0"]
    line += ["--dialogues", str(sources / "visdial_1.0_val.json")]
    line += ["--synthesiser", f"{sys.executable} {sources / 'synthesiser.py'} {{file}} {{text}}"]
    assert main(line) == 0
    rows = rows_of(sources / "out", "image-text-speech", "train")
    said = {row["messages"][-1]["content"]: [turn["content"] for turn in row["messages"]] for row in rows}
    assert said.keys() == {"what is it?", "noise", "is it day?", "no"}
    assert said["no"][:2] == ["<image>what is it?", "noise"]
    assert said["no"][2].startswith("<audio>")
    assert [row["task"].rpartition("/")[2] for row in rows] == ["transcribe"] * 2 + ["answer"] * 2
    assert main(["check", str(sources / "out" / "image-text-speech.train.jsonl"), "--workers", "0"]) == 0


def test_questions_are_spoken_behind_the_turns_before_them(sources):
    output = sources / "out"
    assert main(command(sources, output)) == 0
    rows = rows_of(output, "image-text-speech", "train") + rows_of(output, "image-text-speech", "test")
    asked = next(row for row in rows if row["messages"][-1]["content"] == "What is in 2?")
    answered = next(row for row in rows if row["messages"][-1]["content"] == "第2个")
    requests = read_templates(TEMPLATES)
    assert len(asked["messages"]) == 2
    assert (
        asked["messages"][0]["content"].removeprefix("<image><audio>")
        in requests["image-text-speech/transcribe"]["en"]
    )
    assert [turn["content"] for turn in answered["messages"][:2]] == ["<image>What is in 2?", "a 2"]
    assert answered["messages"][2]["content"].removeprefix("<audio>") in requests["image-text-speech/answer"]["zh"]
    sound = load_audio(str(output / asked["audios"][0]))
    assert len(sound) == 16_000 * 250 * len("What is in 2?") // 8_000
    # one recording of a question serves both of its samples
    assert len({row["audios"][0] for row in rows}) == 12


def test_no_medium_is_in_both_splits(sources):
    output = sources / "out"
    assert main(command(sources, output)) == 0
    shown = {"train": set(), "test": set()}
    for split, seen in shown.items():
        for kind in KINDS:
            for row in rows_of(output, kind, split):
                columns = ["images", "videos", *(["audios"] if kind == "speech-text" else [])]  # no tones
                names = [name for column in columns for name in row.get(column, ())]
                seen |= {hashlib.sha256((output / name).read_bytes()).hexdigest() for name in names}
    assert shown["train"]
    assert shown["test"]
    assert not shown["train"] & shown["test"]
    # a picture is on the same side in both kinds, under whatever name, and more data leave it there
    before = {row["messages"][1]["content"] for row in rows_of(output, "image-text", "test")}
    told = {row["messages"][-1]["content"] for row in rows_of(output, "image-text-speech", "test")}
    assert {text for text in told if text.startswith("a ")} == {
        f"a {number}" for number in range(6) if caption(number) in before
    }
    with (sources / "captions.jsonl").open("a") as file:
        Image.new("RGB", (9, 9)).save(sources / "more.png")
        file.write(json.dumps({"file": "more.png", "text": "more"}) + "\n")
    assert main(command(sources, sources / "grown")) == 0
    grown = {row["messages"][1]["content"] for row in rows_of(sources / "grown", "image-text", "test")}
    assert grown - {"more"} == before


def test_the_same_arguments_give_the_same_bytes(sources):
    for name in ("one/data", "two/data"):
        assert main(command(sources, sources / name)) == 0
    assert contents(sources / "one/data") == contents(sources / "two/data")
    assert main(command(sources, sources / "three/data", "--seed", "1")) == 0
    assert contents(sources / "one/data").keys() != contents(sources / "three/data").keys() or (
        contents(sources / "one/data") != contents(sources / "three/data")
    )


@pytest.mark.slow  # a process of its own
def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(sources):
    assert main(command(sources, sources / "whole/data")) == 0
    (sources / "synthesiser.py").write_text("import time; time.sleep(0.2)\n" + SYNTHESISER)
    output = sources / "killed/data"
    child = subprocess.Popen([sys.executable, "-m", "xllm", *command(sources, output)], stderr=subprocess.DEVNULL)
    partial = output.with_name(".data.partial")
    while not list(partial.glob("media/??/*.png")) and child.poll() is None:
        time.sleep(0.01)
    child.kill()
    child.wait()
    assert not output.exists()
    left = {path: path.stat().st_mtime_ns for path in partial.glob("media/??/*.png")}
    assert left
    assert main(command(sources, output)) == 0
    assert contents(output) == contents(sources / "whole/data")
    assert not partial.exists()
    kept = [path for path in left if (output / path.relative_to(partial)).stat().st_mtime_ns == left[path]]
    assert kept  # what was there was not written again


def test_recordings_take_the_place_of_a_synthesiser(sources, capsys):
    spoken = [{"file": "clip0.wav", "text": "what is in  1?"}, {"file": "clip1.wav", "text": "这是什么？"}]
    manifest = write(sources / "recordings.jsonl", spoken)
    one = (sources / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()[1]
    (sources / "dialogues.jsonl").write_text(one + "\n", encoding="utf-8")
    options = ["--dialogues", str(sources / "dialogues.jsonl"), "--recordings", manifest]
    build = ["build-instructions", str(sources / "out"), "--kind", "image-text-speech", *options, "--held-out", "0"]
    assert main(build) == 0
    rows = rows_of(sources / "out", "image-text-speech", "train")
    heard = [(sources / "out" / row["audios"][0]).read_bytes() for row in rows]
    assert heard == [(sources / f"clip{number}.wav").read_bytes() for number in (0, 1, 0, 1)]
    assert "recordings, 0 of them heard in both splits" in (sources / "out" / "README.md").read_text(encoding="utf-8")
    write(sources / "recordings.jsonl", spoken[:1])
    build[1] = str(sources / "other")
    capsys.readouterr()
    assert main(build) == 1
    assert "dialogues.jsonl:1: no recording of the question '这是什么？'" in capsys.readouterr().err


def test_media_may_stay_where_they_are(sources):
    build = command(sources, sources / "out", "--refer", dialogues=False)
    assert main(build) == 0
    names = [row["images"][0] for split in ("train", "test") for row in rows_of(sources / "out", "image-text", split)]
    assert sorted(names) == sorted(f"../picture{number}.png" for number in range(12))
    assert not (sources / "out" / "media").exists()


def test_a_limit_draws(sources):
    options = ["--kind", "image-text", "--captions", str(sources / "captions.jsonl"), "--limit", "5"]
    assert main(["build-instructions", str(sources / "out"), *options]) == 0
    rows = rows_of(sources / "out", "image-text", "train") + rows_of(sources / "out", "image-text", "test")
    assert len(rows) == 5
    assert {row["messages"][1]["content"] for row in rows} != {caption(number) for number in range(5)}


def test_the_real_synthesiser_speaks_both_languages(sources):
    pytest.importorskip("espeakng_loader")
    options = ["--dialogues", str(sources / "dialogues.jsonl"), "--held-out", "0.4", "--limit", "4"]
    for name in ("one/data", "two/data"):
        assert main(["build-instructions", str(sources / name), "--kind", "image-text-speech", *options]) == 0
    assert contents(sources / "one/data") == contents(sources / "two/data")
    heard = {}
    for split in ("train", "test"):
        rows = rows_of(sources / "one/data", "image-text-speech", split)
        heard[split] = {(sources / "one/data" / row["audios"][0]).read_bytes() for row in rows}
    assert heard["train"]
    assert not heard["train"] & heard["test"]  # the same question in another voice
    for path in (sources / "one/data/media/speech").iterdir():
        sound = load_audio(str(path))
        assert 0.3 < len(sound) / 16_000 < 10
        assert np.abs(sound).max() > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--kind", "image-text"], "image-text is made of captions: give --captions FILE"),
        (["--kind", "picture"], "--kind picture: expected one of image-text, speech-text"),
        (["--kind", "all"], "--kind all: give one of --captions"),
        (["--kind", "image-text", "--videos", "FILMS"], "--videos is not read for image-text; add its --kind"),
        (["--kind", "image-text", "--captions", "FILMS"], "films.jsonl:1: expected one image and its text"),
        (["--kind", "image-text", "--captions", "BROKEN"], "broken.jsonl:1: "),
        (["--kind", "image-text", "--captions", "TAGGED"], "tagged.jsonl:1: the text holds <video>, which stands for"),
        (["--kind", "image-text-speech", "--dialogues", "CAPTIONS"], "captions.jsonl:1: a dialogue is of questions"),
        (["--kind", "image-text-speech", "--dialogues", "GREEK"], "the synthesiser speaks English and Mandarin, not"),
        (["--kind", "all", "--captions", "CAPTIONS", "--licence", "videos=x"], "--licence videos=...: no such source"),
        (["--kind", "all", "--captions", "CAPTIONS", "captions.txt=a"], "captions: unknown key 'txt'"),
        (["--kind", "all", "--captions", "CAPTIONS", "--held-out", "2"], "--held-out is a share of 1"),
        (
            ["--kind", "all", "--dialogues", "DIALOGUES", "--synthesiser", "no-such-program {text} {file}"],
            "--synthesiser: cannot run no-such-program",
        ),
        (["--kind", "all", "--dialogues", "DIALOGUES", "--synthesiser", "true"], "--synthesiser: true wrote no sound"),
        (
            ["--kind", "all", "--dialogues", "DIALOGUES", "--synthesiser", "PYTHON -c 'exit(\"no voice\")'"],
            "--synthesiser: no voice",
        ),
    ],
)
def test_one_line_and_nothing_written(sources, capsys, options, message):
    (sources / "empty.png").write_bytes(b"")
    tagged = {"file": "picture0.png", "text": "a <video> of it"}
    greek = {"messages": [{"role": "user", "content": "<image>τι;"}, {"role": "assistant", "content": "a"}]}
    write(sources / "broken.jsonl", [{"file": "empty.png", "text": "a"}])
    write(sources / "tagged.jsonl", [tagged])
    write(sources / "greek.jsonl", [{**greek, "images": ["picture0.png"]}])
    names = {path.stem.upper(): str(path) for path in sources.glob("*.jsonl")}
    options = [names.get(option, option).replace("PYTHON", sys.executable) for option in options]
    assert main(["build-instructions", str(sources / "out"), *options]) == 1
    err = capsys.readouterr().err.splitlines()
    assert message in err[-1]
    assert not (sources / "out").exists()


def test_a_folder_in_use_is_refused(sources, capsys):
    (sources / "out").mkdir()
    (sources / "out" / "mine.txt").write_text("mine")
    assert main(command(sources, sources / "out", dialogues=False)) == 1
    assert (
        "out: exists and is not an empty folder; instruction data are built into a new one" in capsys.readouterr().err
    )
    assert os.listdir(sources / "out") == ["mine.txt"]


def test_requests_of_ones_own(sources, tmp_path, capsys):
    found = yaml.safe_load(TEMPLATES.read_text(encoding="utf-8"))
    assert all(len(found[task][language]) >= 5 for task in found for language in ("en", "zh"))
    assert len(found["image-text"]["en"]) == 10
    found["image-text"]["en"] = ["<image> what?"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(found, allow_unicode=True), encoding="utf-8")
    build = command(sources, sources / "out", "--templates", str(tmp_path / "mine.yaml"), dialogues=False)
    assert main(build) == 1
    assert "mine.yaml: image-text.en: the text holds <image>" in capsys.readouterr().err
    found["image-text"]["en"] = ["Well?"]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(found, allow_unicode=True), encoding="utf-8")
    assert main([*build, "--language", "en"]) == 0
    rows = rows_of(sources / "out", "image-text", "train")
    assert {row["messages"][0]["content"] for row in rows} == {"<image>Well?"}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("What is it?", "en"),
        ("这是什么", "zh"),
        ("3 + 4", "en"),
        ("Qué?", "en"),
        ("ＯＫ 好", "zh"),
        ("これは何", None),
    ],
)
def test_language(text, language):
    assert language_of(text) == language

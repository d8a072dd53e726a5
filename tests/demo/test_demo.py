# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo at a reduced scale: every part runs, is split as promised, and gives the same table twice."""

import json
import re

import numpy as np
import pytest

from xllm.cli import main
from xllm.demo import run as demo
from xllm.demo.dataset import held_out_pairs, write_data
from xllm.demo.questions import TASKS, Facts, answer
from xllm.demo.run import format_table, run_demo
from xllm.demo.settings import DemoScale, Optimisation
from xllm.demo.waveforms import read_wave
from xllm.processing.audio_decoding import load_audio
from xllm.training.instructions.speech_synthesis import split_voices


pytest.importorskip("sklearn")
pytest.importorskip("espeakng_loader")

BRIEF = Optimisation(2, 4, 1e-3)
SMOKE = DemoScale(
    num_images=40,
    num_videos=12,
    num_recordings=60,
    num_pairs=8,
    num_tests=10,
    vision_size=16,
    speech_size=16,
    language_size=16,
    converter_size=16,
    **dict.fromkeys(
        ("vision", "speech", "language", "image_convert", "speech_convert", "image_align", "video_align",
         "speech_align", "integrate"),
        BRIEF,
    ),
)  # fmt: skip


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), SMOKE, seed=3)


def rows(data, name):
    return [json.loads(line)["messages"] for line in (data / name).read_text(encoding="utf-8").splitlines()]


def test_the_same_seed_writes_the_same_files(data, tmp_path):
    again = write_data(tmp_path, SMOKE, seed=3)
    first, second = files_of(data), files_of(again)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_recording_is_read_as_the_processor_reads_it(data):
    path = next((data / "speech").glob("train-*.wav"))
    assert np.array_equal(read_wave(path), load_audio(str(path)))


def test_held_out_pairs_hold_each_digit_twice_on_either_side():
    for seed in range(5):
        pairs = held_out_pairs(seed)
        assert len(pairs) == 20
        assert all(seen != heard for seen, heard in pairs)
        for side in (0, 1):
            assert sorted(pair[side] for pair in pairs) == sorted([*range(10)] * 2)


def test_no_training_file_shows_a_pair_of_the_test(data):
    sums = {"train": set(), "test": set()}
    for split, name in (("train", "integrate.jsonl"), ("test", "test_cross.jsonl")):
        for user, reply in rows(data, name):
            kinds = [part["type"] for part in user["content"] if part["type"] != "text"]
            if kinds == ["image", "audio"]:
                sums[split].add((user["content"][0]["path"], user["content"][1]["path"], reply["content"][0]["text"]))
    assert len(sums["test"]) > 0
    paths = {split: {path for entry in entries for path in entry[:2]} for split, entries in sums.items()}
    assert paths["train"] & paths["test"] == set()
    assert all("/train-" in path for path in paths["train"])
    assert all("/test-" in path for path in paths["test"])


def test_voices_of_the_test_never_speak_in_training():
    train, test = split_voices(12, seed=0)
    assert len(test) >= 12
    assert set(train) & set(test) == set()


@pytest.mark.parametrize(
    ("task", "facts", "expected"),
    [
        ("cross_sum", Facts(image=7, speech=(5,)), "12"),
        ("cross_larger", Facts(image=7, speech=(5,)), "7"),
        ("cross_larger", Facts(image=3, speech=(5,)), "5"),
        ("speech_text", Facts(speech=(3, 5), language="zh"), "三五"),
        ("speech_count", Facts(speech=(3, 5)), "2"),
        ("video_text", Facts(video=4, motion="up"), "4 moves up"),
        ("image_place", Facts(image=4, place="left"), "left"),
        ("image_next", Facts(image=9), "10"),
    ],
)
def test_answers_are_right(task, facts, expected):
    assert answer(task, facts) == expected
    assert task in TASKS


@pytest.mark.slow
def test_the_whole_demo_at_a_reduced_scale(tmp_path, capsys):
    results = run_demo(tmp_path / "demo", seed=1, scale=SMOKE)
    written = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert written == results
    assert list(results["tasks"]) == ["image", "speech", "video", "cross", "cross_zero_shot"]
    for name, cell in results["tasks"].items():
        assert cell["metric"] == ("cer" if name == "speech" else "accuracy")
        assert cell["n"] == 10
        assert 0 < cell["chance"] <= 1
    assert results["language_model_unchanged"] is True
    assert (results["seed"], results["seconds"] > 0) == (1, True)
    assert "bit-identical" in format_table(results)
    for name in ("results.png", "samples/samples-cross.jsonl", "recipes/speech.yaml", "checkpoint/losses.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    # The checkpoint stands alone and answers about files.
    (tmp_path / "demo" / "towers").rename(tmp_path / "elsewhere")
    sample = next(iter(rows(tmp_path / "demo" / "data", "test_cross.jsonl")))[0]["content"]
    files = [str(tmp_path / "demo" / "data" / part["path"]) for part in sample[:2]]
    command = ["chat", str(tmp_path / "demo" / "checkpoint"), "--image", files[0], "--speech", files[1], "--json"]
    assert main([*command, "--max-new-tokens", "3", "What is the sum?"]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)


def test_a_folder_in_use_is_refused(tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert main(["demo", "--output", str(tmp_path)]) == 1
    assert re.search("exists and is not an empty folder", capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_moved_language_model_would_be_noticed(tmp_path):
    import torch
    from safetensors.torch import save_file

    weights = {"transformer.a": torch.ones(2), "lm_head.weight": torch.zeros(3)}
    copy = {
        "model.language_model.a": torch.ones(2),
        "lm_head.weight": torch.zeros(3),
        "model.interfaces.x": torch.ones(1),
    }
    for name, tensors in (("text", weights), ("same", copy)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    assert demo._digest(tmp_path / "text", "") == demo._digest(tmp_path / "same", "model.language_model.")
    copy["model.language_model.a"][0] = 1.0000001
    save_file(copy, tmp_path / "same" / "model.safetensors")
    assert demo._digest(tmp_path / "text", "") != demo._digest(tmp_path / "same", "model.language_model.")

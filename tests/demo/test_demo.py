# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo at a reduced scale: every part runs, is split as promised, and gives the same table twice."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from xllm.cli import main
from xllm.demo import run as demo
from xllm.demo.corpus import Turn, build_tokenizer, encode_sample, random_text_sample
from xllm.demo.dataset import held_out_pairs, write_data
from xllm.demo.questions import CANNOT_TELL, TASKS, Facts, answer, unanswerable
from xllm.demo.run import format_table, run_demo
from xllm.demo.settings import DemoScale, Optimisation, build_config, build_model_processor
from xllm.demo.waveforms import quiet_waveform, read_wave
from xllm.processing.audio_decoding import load_audio
from xllm.processing.media_kinds import PAPER_KINDS
from xllm.training.instructions.speech_synthesis import split_voices


ROOT = Path(__file__).resolve().parents[2]
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
        for messages in rows(data, name):
            shown = [part for turn in messages for part in turn["content"] if part["type"] != "text"]
            if [part["type"] for part in shown] == ["image", "audio"]:
                sums[split].add((*(part["path"] for part in shown), messages[-1]["content"][0]["text"]))
    assert min(len(sums["train"]), len(sums["test"])) > 0
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
        ("speech_text", Facts(silent=True), ""),
        ("speech_count", Facts(silent=True), "0"),
        ("cross_sum", Facts(image=4, silent=True), CANNOT_TELL),
        ("cross_sum", Facts(image=4), CANNOT_TELL),
        ("speech_digits", Facts(image=4), CANNOT_TELL),
        ("video_motion", Facts(image=4, place="left"), CANNOT_TELL),
        ("image_digit", Facts(), CANNOT_TELL),
    ],
)
def test_answers_are_right(task, facts, expected):
    assert answer(task, facts) == expected
    assert task in TASKS


def test_what_cannot_be_told_names_what_is_not_there():
    assert unanswerable(()).keys() == TASKS.keys()
    assert unanswerable(("image", "speech", "video")) == {}
    assert not {"image_digit", "cross_sum"} & unanswerable(("image", "speech")).keys()
    assert "Add one to this digit." not in unanswerable(("speech",))["image_next"]  # the spoken one, perhaps
    assert "image_digit" not in unanswerable(("video",))  # a frame shows it


def test_training_talks_in_turns_and_some_questions_have_no_answer(tmp_path_factory):
    data = write_data(tmp_path_factory.mktemp("more"), replace(SMOKE, num_images=300), seed=0)
    samples = rows(data, "align_image.jsonl")
    turns = [len(messages) // 2 for messages in samples]
    assert {1, 2, 3} == set(turns)
    assert 0.15 < sum(count > 1 for count in turns) / len(turns) < 0.35
    told = [messages[-1]["content"][0]["text"] != CANNOT_TELL for messages in samples]
    assert 0.8 < sum(told) / len(told) < 0.97


def test_a_language_model_reads_its_corpus_as_the_processor_writes_it(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    processor = build_model_processor(build_config(tokenizer, SMOKE), tokenizer, SMOKE)
    rng = np.random.default_rng(0)
    placeholders = {kind.row_name: tokenizer.convert_tokens_to_ids(kind.placeholder) for kind in PAPER_KINDS}
    for sample in [random_text_sample(rng) for _ in range(60)]:
        messages = []
        for turn in sample:
            parts = [{"type": name} for name, _ in turn.media]
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": turn.question}]})
            messages.append({"role": "assistant", "content": turn.answer})
        prompt = processor.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        expected = tokenizer(prompt)["input_ids"]
        words = [(placeholders[name], tokenizer.sp_model.encode(text)) for turn in sample for name, text in turn.media]
        for placeholder, description in words:
            place = expected.index(placeholder)
            expected[place : place + 1] = description
        expected += processor.encode_answers([messages])[0]
        ids, labels, described = encode_sample(tokenizer, sample)
        assert ids == expected
        answer_length = sum(label >= 0 for label in labels)
        assert labels == [-100] * (len(ids) - answer_length) + ids[-answer_length:]
        assert ids[-answer_length] == tokenizer.bos_token_id
        inside = [token for token, is_inside in zip(ids, described) if is_inside]
        assert inside == [token for _, description in words for token in description]


def test_nothing_is_said_by_the_stop_token_alone(tmp_path):
    tokenizer = build_tokenizer(tmp_path)
    ids, labels, _ = encode_sample(tokenizer, (Turn((("speech", ""),), "What is said?", ""),))
    assert [label for label in labels if label >= 0] == [tokenizer.bos_token_id, tokenizer.eos_token_id] == ids[-2:]


def test_silence_is_short_long_constant_and_noisy(data):
    paths = sorted((data / "speech").glob("train-silence-*.wav"))
    assert len(paths) == SMOKE.num_recordings // 16
    transcripts = {
        user["content"][0]["path"]: reply["content"][0]["text"] for user, reply in rows(data, "convert_speech.jsonl")
    }
    assert {transcripts[f"speech/{path.name}"] for path in paths} == {""}
    waves = [quiet_waveform(kind, 2.0, np.random.default_rng(kind)) for kind in range(40)]
    assert len(waves[0]) == 1
    assert not waves[8].any()
    assert waves[16].std() < 1e-6 < abs(waves[16]).max()
    assert sum(np.ptp(wave) > 0 for wave in waves) == 35
    assert max(map(len, waves)) <= 2 * 16000
    assert read_wave(paths[0]).shape == (1,)


@pytest.mark.slow
def test_the_whole_demo_at_a_reduced_scale(tmp_path, capsys):
    results = run_demo(tmp_path / "demo", seed=1, scale=SMOKE)
    written = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert written == results
    names = ["image", "speech", "video", "cross", "again", "silence", "cannot_tell", "cross_zero_shot"]
    assert list(results["tasks"]) == names
    for name, cell in results["tasks"].items():
        assert cell["metric"] == ("cer" if name == "speech" else "accuracy")
        assert cell["n"] == 10
        assert 0 < cell["chance"] <= 1
    assert results["language_model_unchanged"] is True
    assert (results["seed"], results["seconds"] > 0) == (1, True)
    assert "bit-identical" in format_table(results)
    for name in ("results.png", "samples/samples_cross.jsonl", "recipes/speech.yaml", "checkpoint/losses.png"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    # The checkpoint stands alone and answers about files, as the README asks it.
    (tmp_path / "demo" / "towers").rename(tmp_path / "elsewhere")
    asked = re.search(r"^xllm (chat .*\\\n.*)$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)[1]
    command = shlex.split(asked.replace("\\\n", " ").replace("outputs/demo", str(tmp_path / "demo")))
    assert main([*command, "--json", "--max-new-tokens", "3"]) == 0
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
    assert demo.digest(tmp_path / "text", "") == demo.digest(tmp_path / "same", "model.language_model.")
    copy["model.language_model.a"][0] = 1.0000001
    save_file(copy, tmp_path / "same" / "model.safetensors")
    assert demo.digest(tmp_path / "text", "") != demo.digest(tmp_path / "same", "model.language_model.")

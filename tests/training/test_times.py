# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""When words were said, against times that are known; how much faster than real time an evaluation is."""

import json

import pytest
import torch

from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.training.data.media_rows import DataError
from xllm.training.evaluation.token_times import Timed, read_times, score_times
from xllm.training.stage_one import build_stage_one, save_stage_one


def test_words_against_pieces(tmp_path, capsys):
    """Words of a CTM file, heard as pieces of two characters; one word was misheard, one is not there."""
    (tmp_path / "ref.ctm").write_text(
        ";; a comment\nu1 1 0.00 0.40 Good\nu1 1 0.50 0.70 morning\nu1 1 1.30 0.20 sun\nu2 1 0.0 0.5 yes\n"
    )
    tokens = [
        {"token": "go", "start": 0.05, "end": 0.2}, {"token": "od", "start": 0.2, "end": 0.45},
        {"token": " morn", "start": 0.45, "end": 0.8}, {"token": "ing", "start": 0.8, "end": 1.2},
        {"token": "son", "start": 1.3, "end": 1.5},
    ]  # fmt: skip
    (tmp_path / "hyp.jsonl").write_text(json.dumps({"utt": "u1", "tokens": tokens}) + "\n")
    assert main(["score", "times", str(tmp_path / "ref.ctm"), str(tmp_path / "hyp.jsonl"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["tokens"], found["missing"]) == (2, 4, ["u2"])  # good, morning
    assert found["start"] == pytest.approx((0.05 + 0.05) / 2)
    assert found["end"] == pytest.approx((0.05 + 0.0) / 2)
    assert found["value"] == pytest.approx(0.15 / 4)
    assert found["shift"] == pytest.approx((0.05 - 0.05 + 0.05 + 0.0) / 4)
    assert found["within"] == {"0.05": 1.0, "0.1": 1.0, "0.2": 1.0}
    assert main(["score", "times", str(tmp_path / "ref.ctm"), str(tmp_path / "hyp.jsonl")]) == 0
    out = capsys.readouterr().out
    assert out.startswith("times 37 ms off [37, 37] on average (starts 50, ends 25, shifted by +12)")
    assert "n = 2 of 4 tokens in 2 utterances" in out
    assert "1 missing utterances: u2" in out


def test_characters_within_a_token_share_its_span():
    reference = {"u": [Timed("你", 0.0, 0.5), Timed("好", 0.5, 1.0)]}
    found = score_times(reference, {"u": [Timed("你好", 0.0, 1.0)]})
    assert (found["n"], found["value"]) == (2, 0.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.ctm", "u1 1 zero 0.4 good\n", r"a.ctm:1: expected an utterance, channel, start, duration and word"),
        ("a.ctm", "u1 1 0.2 -0.4 good\n", r"'good' is said from 0.2 to -0.2 s"),
        ("a.ctm", "", "holds no times"),
        ("a.jsonl", '{"utt": "u1", "text": "good"}\n', "no times: a list in tokens, timestamps, words"),
        ("a.jsonl", '{"utt": "u1", "tokens": [{"token": "x", "start": 0}]}\n', "expected a token with its start"),
    ],
)
def test_files_without_times(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        read_times(tmp_path / name)


def test_tokens_that_were_not_heard():
    with pytest.raises(DataError, match="none of the 1 tokens of the references was heard"):
        score_times({"u": [Timed("a", 0, 1)]}, {"v": [Timed("a", 0, 1)]})


def test_an_evaluation_by_stage_one_with_times(tiny_checkpoint, media, tmp_path, capsys):
    """The samples have time stamps, which `score times` reads; how fast it was is printed, and is in no sample."""
    model, processor = load_checkpoint(str(tiny_checkpoint))
    with torch.no_grad():
        model.model.interfaces["speech"].converter.cif.weight_proj.bias.fill_(3.0)  # almost a token per frame
    model.save_pretrained(tmp_path / "own")
    processor.save_pretrained(tmp_path / "own")
    (tmp_path / "clips.csv").write_text("audio,text\nlow.wav,low\nhigh.wav,high\n")
    asked = ["evaluate", str(tmp_path / "own"), "--task", "asr", "--data", str(tmp_path / "clips.csv"), "--stage-one"]
    asked += ["--media-root", str(media)]
    assert main(asked) == 1
    assert "the heads of stage 1 do not lie beside the checkpoint: it has no " in capsys.readouterr().err
    save_stage_one(build_stage_one(model, processor, "speech"), processor, tmp_path / "own")
    assert main([*asked, "--output", str(tmp_path / "out"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sound_seconds"] == pytest.approx(0.8)
    assert found["times_real_time"] == pytest.approx(0.8 / found["seconds"], abs=0.02 + 0.01 / found["seconds"] ** 2)
    samples = [json.loads(line) for line in (tmp_path / "out/samples_asr.jsonl").open()]
    for sample in samples:
        spans = [(token["start"], token["end"]) for token in sample["tokens"]]
        assert spans == sorted(spans)
        assert 0 <= spans[0][0] < spans[-1][1] <= 0.5
    times = str(tmp_path / "out/samples_asr.jsonl")
    assert main(["score", "times", times, times, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["value"] == 0
    assert main([*asked, "--output", str(tmp_path / "out")]) == 0
    assert "times real time" not in capsys.readouterr().out  # nothing was heard now
    assert main(asked) == 0
    assert "0.8 s of sound in " in (out := capsys.readouterr().out)
    assert "times real time (a real-time factor of " in out

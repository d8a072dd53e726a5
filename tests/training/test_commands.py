# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm train` and `xllm evaluate`: what they print, and one line for what is wrong."""

import json

import pytest

from xllm.cli import main
from xllm.commands.evaluate import _columns


@pytest.fixture
def recipe(media, tiny_checkpoint, tmp_path):
    """A recipe of two quick steps, as a file."""
    (media / "speech.csv").write_text("file,text,speaker\nlow.wav,low,ann\nhigh.wav,high,bob\n")
    path = tmp_path / "quick.yaml"
    path.write_text(
        f"model: {tiny_checkpoint}\noutput_dir: {tmp_path / 'out'}\nstage: 2\nmodalities: [speech]\n"
        f"data: {{train: {media / 'speech.csv'}}}\n"
        "trainer: {max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1}\n"
    )
    return path


def test_train_then_evaluate(recipe, media, tmp_path, capsys):
    assert main(["train", str(recipe), "trainer.max_steps=1", "--json"]) == 0
    out, err = capsys.readouterr()
    (stage,) = json.loads(out)["stages"]
    assert stage["checkpoint"] == str(tmp_path / "out" / "stage2-speech")
    assert "stage 2 (speech): step 1/1, loss" in err
    command = [
        "evaluate",
        stage["checkpoint"],
        "--task",
        "asr",
        "--data",
        str(media / "speech.csv"),
        "--max-new-tokens",
        "2",
    ]
    assert main([*command, "--where", "speaker=ann", "--output", str(tmp_path / "eval"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["n"], found["reference"]) == ("cer", 1, 3)
    (sample,) = (tmp_path / "eval" / "samples_asr.jsonl").read_text().splitlines()
    sample = json.loads(sample)
    assert sample.keys() == {"n", "where", "question", "media", "reference", "answer", "cer", "media_sha256"}
    assert (sample["question"], sample["reference"]) == ("请忠实地识别该语音", "low")
    assert main([*command, "--exclude", "speaker=ann,carl"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("asr: cer ")
    assert "n = 1 " in line


def test_columns_are_chosen_by_one_option_or_several():
    wanted = {"group": ["a", "b"], "speaker": ["c"]}
    assert _columns(["group=a,b,speaker=c"], "--where") == wanted
    assert _columns(["group=a", "speaker=c", "group=b"], "--where") == wanted


def test_only_the_rows_that_both_columns_choose(media, tiny_checkpoint, capsys):
    data = media / "groups.csv"
    data.write_text("file,text,group,speaker\nlow.wav,low,a,ann\nhigh.wav,high,a,bob\nlow.wav,low,b,bob\n")
    command = [
        "evaluate",
        str(tiny_checkpoint),
        "--task",
        "asr",
        "--data",
        str(data),
        "--max-new-tokens",
        "1",
        "--json",
    ]
    assert main([*command, "--where", "group=a,speaker=bob"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 1
    assert main([*command, "--limit", "0"]) == 1
    assert "limit is 0, expected a number of rows, at least 1" in capsys.readouterr().err


def test_check_writes_nothing(recipe, tmp_path, capsys):
    assert main(["train", str(recipe), "--check"]) == 0
    assert capsys.readouterr().out.startswith("stage 2 (speech): 2 samples, ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "no_such"], "xllm train: no_such: no such recipe file; shipped recipes: "),
        (["train", "RECIPE", "trainer.max_step=1"], "trainer: unknown key 'max_step'; did you mean 'max_steps'?"),
        (["train", "RECIPE", "model=/nowhere"], "xllm train: /nowhere: not a checkpoint"),
        (["train", "RECIPE", "data.train=/gone.csv"], "xllm train: /gone.csv: no such data file"),
        (["evaluate", "MODEL", "--task", "asr", "--data", "/gone.csv"], "xllm evaluate: /gone.csv: no such data file"),
        (
            ["evaluate", "MODEL", "--task", "asr", "--data", "DATA", "--modality", "smell"],
            "speech.csv:2: no row of the model reads 'smell'; its rows are image, speech, video",
        ),
        (
            ["evaluate", "/nowhere", "--task", "ocr", "--data", "x"],
            "task is 'ocr'; choose one of asr, caption, qa, text",
        ),
        (
            ["evaluate", "/nowhere", "--task", "asr", "--data", "x", "--where", "a"],
            "--where takes COLUMN=VALUE, got 'a'",
        ),
    ],
)
def test_one_line_and_exit_status_1(recipe, media, tiny_checkpoint, tmp_path, capsys, arguments, message):
    names = {"RECIPE": str(recipe), "MODEL": str(tiny_checkpoint), "DATA": str(media / "speech.csv")}
    arguments = [names.get(argument, argument) for argument in arguments]
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()

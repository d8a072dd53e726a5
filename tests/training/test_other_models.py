# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Baselines: other models' answers to the same rows, behind a server or by a pipeline of transformers."""

import base64
import io
import json
import shutil
import wave

import numpy as np
import pytest
from chat_server import ChatServer, serving
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from xllm.cli import main
from xllm.training.evaluation import endpoint


ROWS = [
    ("image", "red.png", "red"), ("image", "blue.png", "blue"), ("audio", "low.wav", "200"),
    ("audio", "high.wav", "1000"), ("video", "clip.mp4", "8 frames"), ("image", "red.png", "green"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "WAITS", (0.001, 0.01))


def perceived(messages):
    """What is really in the media that were sent."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return "nothing"
    assert content[-1] == {"type": "text", "text": "What is this?"}
    media = content[:-1]
    if media[0]["type"] == "input_audio":
        sound = media[0]["input_audio"]
        with wave.open(io.BytesIO(base64.b64decode(sound["data"]))) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            if not samples.any():
                return "silence"
            return str(round(np.abs(np.fft.rfft(samples)).argmax() * file.getframerate() / len(samples)))
    if len(media) > 1:
        return f"{len(media)} frames"
    head, _, data = media[0]["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    colour = Image.open(io.BytesIO(base64.b64decode(data))).getpixel((5, 5))
    return {(255, 0, 0): "red", (0, 0, 255): "blue"}.get(colour, "grey")


@pytest.fixture
def data(media, tmp_path):
    folder = shutil.copytree(media, tmp_path / "data")
    lines = []
    for kind, file, answer in ROWS:
        content = [{"type": kind, "path": file}, {"type": "text", "text": "What is this?"}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    (folder / "rows.jsonl").write_text("".join(lines))
    return folder


def evaluated(data, url, *more):
    asked = ["--task", "qa", "--data", str(data / "rows.jsonl"), "--endpoint", url]
    more += () if "--retries" in more else ("--retries", "2")
    return ["evaluate", "other-model", *asked, "--json", *more]


def test_a_model_behind_a_server(data, tmp_path, capsys):
    """It gets the media themselves; what goes wrong on the way is asked again; other media than a row's own too."""
    server = ChatServer(perceived, {"input_audio": [429, "malformed"], "image_url": [500, "hang"]})
    folder = ["--output", str(tmp_path / "out")]
    with serving(server) as url:
        assert main(evaluated(data, url, *folder, "--timeout", "1", "--max-new-tokens", "7")) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["value"], found["n"], found["skipped"]) == (pytest.approx(5 / 6), 6, 0)
        assert {seen["max_tokens"] for seen in server.seen} == {7}
        asked = len(server.seen)
        assert main(evaluated(data, url, *folder, "--max-new-tokens", "7")) == 0  # nothing is left to ask
        assert len(server.seen) == asked
        capsys.readouterr()
        assert main(evaluated(data, url, *folder, "--media", "blank", "--max-new-tokens", "7")) == 0
        found = json.loads(capsys.readouterr().out)
    assert found["difference"]["value"] == pytest.approx(1 / 6 - 5 / 6)  # frames can still be counted
    answers = [json.loads(line)["answer"] for line in (tmp_path / "out/samples_qa-blank.jsonl").open()]
    assert answers == ["grey", "grey", "silence", "silence", "8 frames", "grey"]
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 8 + 2
    assert "<audio" in page
    assert main(["score", "table", str(tmp_path / "out")]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[1], row[4]) for row in table[1:]] == [
        ("other-model", "qa", "83.33"), ("other-model", "qa-blank", "16.67")
    ]  # fmt: skip


def test_rows_that_a_server_does_not_answer(data, tmp_path, capsys):
    folder = ["--output", str(tmp_path / "out")]
    with serving(ChatServer(perceived, {"input_audio": [400, 503, 503, 503, 503]})) as url:
        assert main(evaluated(data, url, *folder, "--concurrency", "1")) == 1
        assert "rows.jsonl:3: " in (err := capsys.readouterr().err)
        assert "what was answered is kept" in err
    with serving(ChatServer(perceived, {"input_audio": [400, 503, 503, 503, 503]})) as url:
        assert main(evaluated(data, url, *folder, "--on-error", "skip", "--retries", "0")) == 0
        found = json.loads(capsys.readouterr().out)
    assert (found["found"], found["n"], found["skipped"]) == (4, 4, 2)
    server = ChatServer(perceived)
    with serving(server) as url:
        assert main(evaluated(data, url, *folder)) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["skipped"], len(server.seen)) == (6, 0, 2)


def test_a_key_that_is_not_accepted_ends_the_evaluation(data, tmp_path, capsys):
    server = ChatServer(perceived, {"What": [401, "..."]})
    with serving(server) as url:
        more = ["--on-error", "skip", "--batch-size", "2", "--concurrency", "1"]
        assert main(evaluated(data, url, "--output", str(tmp_path / "out"), *more)) == 1
    assert "/chat/completions: 401" in capsys.readouterr().err
    assert len(server.seen) == 1


def test_a_pipeline_answers_as_the_model_does(data, tiny_checkpoint, tmp_path, capsys):
    """Our own checkpoint, by transformers' code and by ours."""
    rows = (data / "rows.jsonl").read_text().splitlines(keepends=True)
    (data / "rows.jsonl").write_text("".join(rows[:2]))
    asked = ["evaluate", str(tiny_checkpoint), "--task", "qa", "--data", str(data / "rows.jsonl")]
    asked += ["--max-new-tokens", "4", "--output"]
    assert main([*asked, str(tmp_path / "own")]) == 0
    assert main([*asked, str(tmp_path / "other"), "--pipeline", "any-to-any", "--name", "base-line"]) == 0
    own, other = (
        [json.loads(line) for line in (tmp_path / name).open()]
        for name in ("own/samples_qa.jsonl", "other/samples_base-line.jsonl")
    )
    assert own == other
    capsys.readouterr()
    assert main(["score", "table", str(tmp_path / "own"), str(tmp_path / "other"), "--json"]) == 0
    table = json.loads(capsys.readouterr().out)["rows"]
    assert [row["evaluation"] for row in table] == ["qa", "base-line"]
    assert table[0]["value"] == table[1]["value"]


def test_a_blip_2_by_its_pipeline(data, tmp_path, capsys):
    """It has no chat template: it is given the picture and the question."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "what": 2, "red": 3, "<image>": 4}, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = OPTConfig(
        vocab_size=5, hidden_size=8, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=8,
        pad_token_id=0, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    config = Blip2Config(
        vision_config={**sizes, "image_size": 28, "patch_size": 14},
        qformer_config={**sizes, "vocab_size": 5, "encoder_hidden_size": 8},
        text_config=text.to_dict(),
        num_query_tokens=2,
        image_token_index=4,
    )
    Blip2ForConditionalGeneration(config).save_pretrained(tmp_path / "blip")
    Blip2Processor(BlipImageProcessor(size={"height": 28, "width": 28}), tokenizer, 2).save_pretrained(
        tmp_path / "blip"
    )
    (data / "rows.csv").write_text("image,text\nred.png,red\nblue.png,blue\n")
    asked = ["--task", "caption", "--data", str(data / "rows.csv"), "--prompt", "what", "--max-new-tokens", "2"]
    assert (
        main(["evaluate", str(tmp_path / "blip"), "--pipeline", *asked, "--json", "--output", str(tmp_path / "o")])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["n"] == 2
    assert len((tmp_path / "o/samples_caption.jsonl").read_text().splitlines()) == 2

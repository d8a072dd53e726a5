# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Interfaces of separate runs put together, dropped and added by flags of `xllm init`: the rest stays bit by bit."""

import json

import numpy as np
import pytest
import torch
from media_files import sine, write_wav
from PIL import Image
from processor_parts import word_tokenizer
from published_encoders import ENCODERS
from tiny import tiny_text_config
from transformers import LlamaForCausalLM

from xllm.assembly.opening import load_checkpoint
from xllm.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A Llama; `sees` and `hears`, each made and trained alone over it with encoders of their own."""
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(2)
    LlamaForCausalLM(tiny_text_config("llama")).save_pretrained(folder / "llm")
    word_tokenizer().save_pretrained(folder / "llm")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    write_wav(folder / "a.wav", [sine(0.5)])
    for name, row, family in (("sees", "image", "SigLIP 2 NaFlex"), ("hears", "speech", "Whisper")):
        ENCODERS[family].write(folder / f"{name}_encoder")
        made = ["init", str(folder / name), "--language-model", str(folder / "llm"), "--seed", str(len(name))]
        assert main([*made, "--encoder", f"{row}={folder / f'{name}_encoder'}"]) == 0
        model, processor = load_checkpoint(str(folder / name))
        with torch.no_grad():
            for parameter in model.model.interfaces.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    ENCODERS["AST"].write(folder / "ast")
    return folder


def same_rows(folder, source, *rows):
    """Interfaces, towers and readers of rows are those of `source`, bit by bit, and so is what they make of a file."""
    (model, processor), (theirs, their_processor) = (load_checkpoint(str(one)) for one in (folder, source))
    for row in rows:
        for ours, other in (
            (model.model.interfaces[row], theirs.model.interfaces[row]),
            (model.model.tower(model.config.modalities[row].encoder),
             theirs.model.tower(theirs.config.modalities[row].encoder)),
        ):  # fmt: skip
            expected = other.state_dict()
            assert ours.state_dict().keys() == expected.keys()
            assert all(torch.equal(value, expected[key]) for key, value in ours.state_dict().items())
        part = processor.rows[row].part
        assert processor.reader(part).to_dict() == their_processor.reader(part).to_dict()
        path = source.parent / ("a.wav" if row == "speech" else "a.png")
        if row != "video":
            content = [{"type": part, "path": str(path)}, {"type": "text", "text": "what is this"}]
            logits = [
                one(**its.encode_conversations([[{"role": "user", "content": content}]])).logits
                for one, its in ((model, processor), (theirs, their_processor))
            ]
            assert torch.equal(*logits)
    return model


@torch.no_grad()
def test_runs_are_put_together_dropped_and_added_to(runs, tmp_path, capsys):
    sees, hears, both = runs / "sees", runs / "hears", tmp_path / "both"
    rows = {"image": sees, "video": sees, "speech": hears}
    flags = [part for row, source in rows.items() for part in ("--interface", f"{row}={source}")]
    assert main(["init", str(both), *flags]) == 0  # over the language model that both were made with
    assert set(load_checkpoint(str(both))[0].config.modalities) == set(rows)
    same_rows(both, sees, "image", "video")
    same_rows(both, hears, "speech")
    named = ["--language-model", str(runs / "llm"), *flags]
    assert main(["init", str(tmp_path / "named"), *named]) == 0
    same_rows(tmp_path / "named", sees, "image", "video")

    assert main(["init", str(tmp_path / "less"), "--interface", f"speech={both}"]) == 0
    less = same_rows(tmp_path / "less", hears, "speech")
    assert list(less.config.modalities) == ["speech"]
    assert less.model.vision_tower is None

    more = ["--encoder", f"sound={runs / 'ast'}", "--interface", f"image={both}", "--interface", f"speech={both}"]
    assert main(["init", str(tmp_path / "more"), *more]) == 0
    assert list(same_rows(tmp_path / "more", sees, "image").config.modalities) == ["image", "sound", "speech"]
    same_rows(tmp_path / "more", hears, "speech")
    capsys.readouterr()
    files = ["--image", str(runs / "a.png"), "--speech", str(runs / "a.wav"), "--sound", str(runs / "a.wav")]
    assert main(["chat", str(tmp_path / "more"), "what is", *files, "--max-new-tokens", "2", "--json"]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)


def test_a_run_that_stores_its_language_model_gives_it_with_its_words(runs, tmp_path):
    """Also where the template of the folder was written for other rows."""
    model, processor = load_checkpoint(str(runs / "sees"))
    model.config.towers = None
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    flags = ["--interface", f"image={tmp_path / 'whole'}", "--encoder", f"sound={runs / 'ast'}"]
    assert main(["init", str(tmp_path / "m"), *flags]) == 0
    _, processor = load_checkpoint(str(tmp_path / "m"))
    parts = [{"type": "sound", "path": str(runs / "a.wav")}, {"type": "image", "path": str(runs / "a.png")}]
    text = processor.apply_chat_template([{"role": "user", "content": parts}], tokenize=False)
    assert "<Sound><SoundHere></Sound><Image><ImageHere></Image>" in text


def test_what_does_not_belong_together_is_one_line(runs, tmp_path, capfd):
    """A film's interface beside another Q-Former than its own; another language model; none at all."""
    other = ["init", str(tmp_path / "other"), "--language-model", str(runs / "llm"), "--seed", "7"]
    assert main([*other, "--encoder", f"image={runs / 'sees_encoder'}"]) == 0
    torch.manual_seed(3)
    LlamaForCausalLM(tiny_text_config("llama")).save_pretrained(tmp_path / "llm")
    word_tokenizer().save_pretrained(tmp_path / "llm")
    assert main(["init", str(tmp_path / "b"), "--language-model", str(tmp_path / "llm"), "--interface",
                 f"speech={runs / 'hears'}"]) == 0  # fmt: skip
    capfd.readouterr()
    for flags, reason in (
        (
            (f"image={tmp_path / 'other'}", f"video={runs / 'sees'}"),
            "video has the converter of image; take image from",
        ),
        ((f"image={runs / 'sees'}", f"speech={tmp_path / 'b'}"), "language_model of "),
        ((f"radar={runs / 'sees'}",), "has no radar interface; it has image, video"),
    ):
        chosen = [part for flag in flags for part in ("--interface", flag)]
        assert main(["init", str(tmp_path / "m"), *chosen]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert reason in line
    assert not (tmp_path / "m").exists()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm init` from folders: the authors' files, sizes, reserved tokens, folders elsewhere, what is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from fixtures import published_weights as published
from tiny import tiny_text_config
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from xllm import XLLMConfig, XLLMForConditionalGeneration
from xllm.assembly.composing import PRESETS
from xllm.assembly.opening import load_checkpoint
from xllm.cli import main


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    """A tiny Llama with a word-level tokenizer of nine words."""
    folder = tmp_path_factory.mktemp("sources") / "llm@home"
    LlamaForCausalLM(tiny_text_config("llama")).save_pretrained(folder)
    names = ["<unk>", "<s>", "</s>", "<pad>", "what", "is", "this", "<|reserved_0|>", "<|reserved_1|>"]
    backend = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    return folder


def line_of(capfd) -> str:
    (line,) = capfd.readouterr().err.splitlines()
    return line


def test_the_authors_files_by_two_commands(llm, tmp_path, monkeypatch, capsys):
    torch.save(published.vit(prefix=""), tmp_path / "eva_vit_g.pth")
    states = [published.image_stage2(), published.video_stage2(), published.speech_stage2(), published.stage3()]
    paths = [published.save(tmp_path / f"{number}.pth", state) for number, state in enumerate(states)]
    assert main(["convert", str(tmp_path / "eva_vit_g.pth"), *paths, str(tmp_path / "all")]) == 0
    monkeypatch.chdir(tmp_path)
    shutil.copytree(llm, tmp_path / "llm")
    rows = [argument for row in ("image", "video", "speech") for argument in ("--interface", f"{row}=all")]
    assert main(["init", "m", "--language-model", "llm", "--encoder", "vision=all", *rows]) == 0
    # Without naming it, the encoder is the one in the same folder.
    assert main(["init", "n", "--language-model", "llm", *rows]) == 0

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model, processor = load_checkpoint("../m")
    assert list(model.config.modalities) == list(XLLMConfig.from_pretrained("../n").modalities)
    assert set(model.config.modalities) == {"image", "video", "speech"}
    queries = model.model.interfaces["image"].converter.query_tokens
    assert torch.equal(queries.data, published.stage3()["query_tokens"])
    same = XLLMForConditionalGeneration.from_pretrained("../n").state_dict()
    assert all(torch.equal(value, same[key]) for key, value in model.state_dict().items())
    assert model.config.modalities["speech"].token_level
    np.save("clip.npy", np.zeros((3, published.FEATURES), np.float32))
    capsys.readouterr()
    assert main(["chat", "../m", "what is this", "--speech", "clip.npy", "--max-new-tokens", "1", "--json"]) == 0
    assert "answer" in json.loads(capsys.readouterr().out)


def test_sizes_follow_a_small_language_model_or_the_option(llm, tmp_path):
    assert main(["init", str(tmp_path / "a"), "--language-model", str(llm)]) == 0
    config = XLLMConfig.from_pretrained(tmp_path / "a")
    assert config.modalities["image"].converter_config.hidden_size == 32
    assert config.modalities["speech"].converter_config.num_hidden_layers == 2
    assert config.vision_config.hidden_size == 32
    weights = (tmp_path / "a" / "model.safetensors").stat().st_size
    assert weights < 20e6
    command = ["init", str(tmp_path / "b"), "--language-model", str(llm), "--interface-size", "64x3"]
    assert main(command) == 0
    sizes = XLLMConfig.from_pretrained(tmp_path / "b").modalities["image"].converter_config
    assert (sizes.hidden_size, sizes.num_hidden_layers) == (64, 3)


def test_a_tokenizer_without_a_padding_token_gets_one(llm, tmp_path, capfd):
    shutil.copytree(llm, tmp_path / "llm")
    file = tmp_path / "llm" / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("pad_token")
    file.write_text(json.dumps(settings))
    assert main(["init", str(tmp_path / "m"), "--language-model", str(tmp_path / "llm")]) == 0
    assert main(["chat", str(tmp_path / "m"), "what is this", "--max-new-tokens", "2"]) == 0


def test_reserved_tokens_are_placeholders(llm, tmp_path, capfd):
    full = tmp_path / "full"
    shutil.copytree(llm, full)
    model = LlamaForCausalLM.from_pretrained(full)
    model.resize_token_embeddings(9)
    model.save_pretrained(full)
    bert = write_bert(tmp_path / "bert")
    command = ["init", str(tmp_path / "m"), "--language-model", str(full), "--interface", f"image={bert}"]
    assert main([*command[:1], str(tmp_path / "behind"), *command[2:]]) == 0
    assert XLLMConfig.from_pretrained(tmp_path / "behind").modalities["image"].token_id == 9
    capfd.readouterr()
    assert main([*command, "--reserve", "smell=<|reserved_0|>"]) == 1
    assert "--reserve: no row smell; the rows are image" in line_of(capfd)
    assert main([*command, "--reserve", "image=<|reserved_0|>"]) == 0
    config = XLLMConfig.from_pretrained(tmp_path / "m")
    assert config.modalities["image"].token_id == 7


def write_bert(folder):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=30, max_position_embeddings=16, **sizes)).save_pretrained(folder)
    return folder


def test_a_q_former_starts_from_a_bert(llm, tmp_path):
    bert = write_bert(tmp_path / "bert")
    command = ["init", str(tmp_path / "m"), "--language-model", str(llm), "--interface", f"image={bert}"]
    assert main(command) == 0
    qformer = XLLMForConditionalGeneration.from_pretrained(tmp_path / "m").model.interfaces["image"].converter.qformer
    layer = BertForMaskedLM.from_pretrained(bert).bert.encoder.layer[1]
    ours = qformer.encoder.layer[1]
    assert torch.equal(ours.attention.attention.key.weight, layer.attention.self.key.weight)
    assert torch.equal(ours.intermediate_query.dense.weight, layer.intermediate.dense.weight)
    assert torch.equal(ours.output_query.LayerNorm.bias, layer.output.LayerNorm.bias)


def test_what_is_no_language_model_is_one_line(tmp_path, capfd):
    bert = write_bert(tmp_path / "bert")
    capfd.readouterr()
    assert main(["init", str(tmp_path / "m"), "--language-model", str(bert)]) == 1
    assert "bert: BertForMaskedLM is not a causal language model" in line_of(capfd)
    settings = {"model_type": "clip", "architectures": ["CLIPModel"]}
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "config.json").write_text(json.dumps(settings))
    assert main(["init", str(tmp_path / "m"), "--language-model", str(tmp_path / "clip")]) == 1
    assert "clip: CLIPModel is not a causal language model" in line_of(capfd)
    assert not (tmp_path / "m").exists()


def test_a_preset_stays_what_it_is(tmp_path, capfd):
    before = json.dumps(PRESETS["base"].encoders)
    assert (
        main(["init", str(tmp_path / "m"), "--preset", "base", "--language-model", "/no", "--encoder", "vision=/x"])
        == 1
    )
    assert json.dumps(PRESETS["base"].encoders) == before
    assert PRESETS["base"].language_model != "/no"


def test_code_beside_a_checkpoint_is_neither_run_nor_asked_for(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked on standard input"))
    for model_type in ("odd", "xllm"):
        settings = {"model_type": model_type, "auto_map": {"AutoConfig": "evil.Config"}, "modalities": "image"}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        (tmp_path / "evil.py").write_text("raise SystemExit('run')\n")
        assert main(["chat", str(tmp_path), "What?"]) == 1
        line_of(capfd)
    (tmp_path / "config.json").write_text(json.dumps({**settings, "model_type": "odd"}))
    assert main(["init", str(tmp_path / "m"), "--language-model", str(tmp_path)]) == 1
    assert "only the code beside it knows the model_type 'odd'" in line_of(capfd)


def test_what_a_preset_does_not_read_is_refused(tmp_path, capfd):
    assert main(["init", str(tmp_path / "m"), "--preset", "tiny", "--encoder", "vision=/no"]) == 1
    assert "leave out --encoder" in line_of(capfd)
    assert not (tmp_path / "m").exists()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The head that stage 1 reads a C-Former's tokens with is kept: the language model gets mixtures of its own words."""

import pytest
import torch
from tiny import tiny_text_config
from transformers import LlamaForCausalLM

from xllm import XLLMForConditionalGeneration
from xllm.assembly.opening import load_checkpoint
from xllm.assembly.processors import save
from xllm.cli import main
from xllm.hub_cards.cards import model_card
from xllm.training.saving.lineage import interfaces_fingerprint
from xllm.training.stage_one import build_stage_one
from xllm.training.starts import keep_words


@pytest.fixture
def taught(tiny, tmp_path):
    """A model, its stage-1 model, and the folder with the heads of that."""
    model, processor = tiny
    recogniser = build_stage_one(model, processor, "speech").eval()
    torch.nn.init.normal_(recogniser.token_head.weight)
    torch.nn.init.normal_(recogniser.token_head.bias)
    recogniser.save_heads(tmp_path)
    return model.eval(), recogniser, tmp_path


@torch.no_grad()
def test_each_token_is_the_mixture_of_words_that_the_head_tells(taught, tmp_path):
    model, recogniser, folder = taught
    frames, mask = torch.randn(2, 12, model.config.modalities["speech"].encoder_hidden_size), torch.ones(2, 12)
    mask[1, 7:] = 0
    lengths = torch.tensor([3, 2])
    logits = recogniser.token_head(recogniser.cformer(frames, mask.bool(), lengths).embeddings)
    words = model.get_input_embeddings().weight[: logits.shape[-1]]
    expected = torch.einsum("nuv,vd->nud", logits.softmax(-1), words)
    others = {key: value.clone() for key, value in model.state_dict().items() if ".interfaces.speech." not in key}

    keep_words(model, "speech", str(folder))
    model.save_pretrained(tmp_path / "kept")
    for one in (model, XLLMForConditionalGeneration.from_pretrained(tmp_path / "kept")):
        heard = one.model.interfaces["speech"](frames, mask.bool(), target_lengths=lengths)
        torch.testing.assert_close(heard.embeddings[heard.mask], expected[heard.mask])
        assert heard.mask.sum(1).tolist() == [3, 2]
    assert all(torch.equal(model.state_dict()[key], value) for key, value in others.items())


def test_what_does_not_fit_is_refused(taught, tiny_processor, tmp_path):
    model, recogniser, folder = taught
    (tmp_path / "empty").mkdir()
    for name, source in (("speech", tmp_path / "empty"), ("image", folder)):
        with pytest.raises(ValueError, match=f"has no head of a stage 1 that taught {name} .*; run stage 1"):
            keep_words(model, name, str(source))
    words = model.get_input_embeddings()
    all_words = words.weight
    words.weight = torch.nn.Parameter(all_words[:5])
    with pytest.raises(ValueError, match=r"its head tells \d+ words, the language model has 5"):
        keep_words(model, "speech", str(folder))
    words.weight = all_words
    keep_words(model, "speech", str(folder))
    with pytest.raises(ValueError, match="keeps the head of its stage 1"):
        build_stage_one(model, tiny_processor, "speech")


def test_readers_of_a_checkpoint_are_told_and_what_is_made_of_it_carries_them(
    taught, tiny_processor, tmp_path, capsys
):
    model, recogniser, folder = taught
    save(model, tiny_processor, folder)
    kept, both, words = tmp_path / "kept", tmp_path / "both", recogniser.token_head.out_features
    assert main(["init", str(kept), "--interface", f"speech={folder}", "--keep-words", "speech"]) == 0
    assert main(["init", str(both), "--interface", f"speech={kept}", "--interface", f"image={folder}"]) == 0
    (ours, _), (composed, _) = load_checkpoint(str(kept)), load_checkpoint(str(both))
    (entry,) = ours.config.lineage
    assert composed.config.lineage == [entry]
    assert (entry["modalities"], entry["words"]) == (["speech"], words)
    assert entry["weights"] == interfaces_fingerprint(ours) != entry["parent"]
    expected = ours.model.interfaces["speech"].state_dict()
    assert all(expected[key].equal(value) for key, value in composed.model.interfaces["speech"].state_dict().items())
    assert main(["inspect", str(both)]) == 0
    assert f"speech: keeps the head of stage 1, {words} words" in capsys.readouterr().out
    data = f"head of stage 1, {words} words (`{entry['data']['sha256'][:12]}`)"
    assert f"| 1 | speech | {data} | 0 | no training: the head is kept |" in model_card(both, "user/name").text


def test_other_words_than_the_language_models_are_refused_by_command(taught, tiny_processor, tmp_path, capfd):
    model, _, folder = taught
    keep_words(model, "speech", str(folder))
    save(model, tiny_processor, folder)
    run = tmp_path / "run"
    (run / "stage1").mkdir(parents=True)
    (run / "stage1" / "config.json").touch()
    config = tiny_text_config("llama")
    config.hidden_size = 16
    LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    for flags, reason in (
        (["--interface", f"speech={run}"], f"has no config.json; name one of the folders in it: {run / 'stage1'}"),
        (["--interface", f"image={folder}", "--keep-words", "speech"], "give --interface speech=DIR"),
        (["--interface", f"speech={folder}", "--language-model", str(tmp_path / "narrow")], "take speech as it was"),
    ):
        assert main(["init", str(tmp_path / "out"), *flags]) == 1
        (line,) = capfd.readouterr().err.splitlines()
        assert reason in line
    assert not (tmp_path / "out").exists()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The head that stage 1 reads a C-Former's tokens with is kept: the language model gets mixtures of its own words."""

import pytest
import torch

from xllm import XLLMForConditionalGeneration
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

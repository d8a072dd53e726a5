# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Text sides as they are read from folders and files, and that each starts the text side of a Q-Former's stage 1."""

from types import SimpleNamespace

import pytest
import torch
from fixtures import published_weights as published
from tiny import PIXELS, tiny_config
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertModel, Blip2Config, Blip2ForImageTextRetrieval

from xllm import X2LConfig
from xllm.modeling_xllm.conversion.convert import open_published, reference_shapes
from xllm.modeling_xllm.conversion.sizes import config_of_shapes
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.heads import stage_one_config
from xllm.modeling_xllm.stage1.modeling_qformer_pretraining import XLLMForQFormerPreTraining
from xllm.modeling_xllm.stage1.text_sides import read_text_side, start_from_bert, start_from_blip2
from xllm.modeling_xllm.weight_files import StageCheckpointError


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
WORDS, POSITIONS, PROJECTION = 12, 600, 8


def learner(**fields) -> XLLMForQFormerPreTraining:
    row = X2LConfig(num_query_tokens=2, qformer_config=dict(SIZES))
    own = {"text_vocab_size": WORDS, "text_max_positions": POSITIONS, "projection_size": PROJECTION}
    own |= {"text_pad_token_id": 0, "text_bos_token_id": 3, "text_eos_token_id": 2, "max_text_length": 10, **fields}
    return XLLMForQFormerPreTraining(
        stage_one_config(tiny_config(rows={"image": row}), QFormerPreTrainingConfig, "image", **own)
    )


def shaken(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def differing(ours: XLLMForQFormerPreTraining, theirs: XLLMForQFormerPreTraining) -> set[str]:
    """Parts of the heads that are not the same, by the first two names of their tensors."""
    heads, others = ours.heads_state_dict(), theirs.heads_state_dict()
    return {".".join(key.split(".")[:2]) for key in heads if not heads[key].equal(others[key])}


@pytest.mark.parametrize(("positions", "used"), [(600, 512), (512, 512), (20, 20)])
@pytest.mark.parametrize("kind", [BertModel, BertForMaskedLM])
def test_a_bert_with_its_head_or_without(kind, positions, used, tmp_path):
    """Words of its own are fewer; what it has no tensors for stays as it was."""
    config = BertConfig(vocab_size=WORDS - 1, max_position_embeddings=positions, **SIZES)
    bert = shaken(kind(config, add_pooling_layer=False) if kind is BertModel else kind(config))
    bert.save_pretrained(tmp_path)
    fields, start = read_text_side(str(tmp_path))
    assert fields == {"text_max_positions": used}
    model, expected = learner(**fields), learner(**fields)
    expected.load_state_dict(model.state_dict())
    start(model)
    head = {"text_branch.lm_transform", "text_branch.lm_bias"} if kind is BertForMaskedLM else set()
    assert differing(model, expected) == {"text_branch.embeddings", "text_branch.layers"} | head
    start_from_bert(expected, bert)
    assert differing(model, expected) == set()


def test_a_bert_of_as_many_words_fits():
    bert = BertModel(BertConfig(vocab_size=WORDS, max_position_embeddings=POSITIONS, **SIZES))
    model = learner()
    start_from_bert(model, bert)
    assert model.text_branch.embeddings.word_embeddings.weight.equal(bert.embeddings.word_embeddings.weight)


def blip2(**fields) -> Blip2ForImageTextRetrieval:
    vision = {**SIZES, "hidden_size": 16, "image_size": PIXELS, "patch_size": 14}
    text = {"vocab_size": WORDS, "max_position_embeddings": POSITIONS, "encoder_hidden_size": 16}
    config = Blip2Config(
        vision_config=vision, qformer_config={**SIZES, **text, "use_qformer_text_input": True, **fields},
        num_query_tokens=2, image_text_hidden_size=PROJECTION, image_token_index=None,
    )  # fmt: skip
    return shaken(Blip2ForImageTextRetrieval(config))


def test_a_blip2_with_text_input(tmp_path):
    theirs = blip2()
    theirs.save_pretrained(tmp_path)
    fields, start = read_text_side(str(tmp_path))
    assert fields == {"text_vocab_size": WORDS, "text_max_positions": POSITIONS, "projection_size": PROJECTION}
    model, before = learner(), learner()
    before.load_state_dict(model.state_dict())
    start(model)
    started = {"text_branch.embeddings", "text_branch.layers"}
    started |= {f"{name}.{kind}" for name in ("media_proj", "text_proj", "itm_head") for kind in ("weight", "bias")}
    assert differing(model, before) == started
    text, whole = model.text_branch, theirs.state_dict()
    pairs = {
        "embeddings.position_embeddings.weight": text.embeddings.position_embeddings.weight,
        "qformer.encoder.layer.1.intermediate.dense.weight": text.layers[1].intermediate.dense.weight,
        "qformer.encoder.layer.1.output.dense.weight": text.layers[1].output.dense.weight,
        "vision_projection.weight": model.media_proj.weight,
        "text_projection.weight": model.text_proj.weight,
        "itm_head.bias": model.itm_head.bias,
    }
    assert all(whole[name].equal(ours) for name, ours in pairs.items())


def test_a_blip2_without_text_input_is_refused(tmp_path):
    theirs = blip2(use_qformer_text_input=False)
    with pytest.raises(ValueError, match=r"this BLIP-2 does not fit .*: use_qformer_text_input True \(theirs False\)"):
        start_from_blip2(learner(), theirs)
    theirs.config.save_pretrained(tmp_path)
    with pytest.raises(
        StageCheckpointError, match="a blip-2 checkpoint has no text side for stage 1; expected a BERT"
    ):
        read_text_side(str(tmp_path))


def test_a_model_of_stage_one_and_its_file(tmp_path):
    theirs = shaken(learner(text_max_positions=20))
    theirs.save_pretrained(tmp_path)
    fields, start = read_text_side(str(tmp_path))
    assert fields == {"text_vocab_size": WORDS, "text_max_positions": 20, "projection_size": PROJECTION}
    model = learner(**fields)
    start(model)
    assert differing(model, theirs) == set()
    theirs.save_pretrained(tmp_path, state_dict=theirs.interface_state_dict())
    with pytest.raises(StageCheckpointError, match="holds no text side: it is not of stage 1"):
        read_text_side(str(tmp_path))


def test_a_file_of_lavis(tmp_path):
    state = published.qformer(with_text=True)
    path = published.save(tmp_path / "stage1.pth", state)
    fields, start = read_text_side(path)
    assert fields == {
        "text_vocab_size": published.WORDS, "text_max_positions": published.POSITIONS,
        "projection_size": published.PROJECTION,
    }  # fmt: skip
    shapes = reference_shapes(config_of_shapes(open_published(path).shapes))
    heads = {name: torch.zeros(shape) for name, shape in shapes.items() if not name.startswith("model.")}
    start(SimpleNamespace(heads_state_dict=lambda: heads))
    assert heads["itm_head.weight"].equal(state["itm_head.weight"])
    later = published.save(tmp_path / "stage2.pth", published.image_stage2())
    with pytest.raises(StageCheckpointError, match=r"stage2\.pth: holds no text side: it is not of stage 1"):
        read_text_side(later)

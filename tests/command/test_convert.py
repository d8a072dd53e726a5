# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm convert`, and what is made of its folders."""

import json
import re

import pytest
import torch
from fixtures import published_weights as published
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import GMASK, SOP, SPEECH, tiny_text_config
from transformers import (
    BertConfig,
    BertForPreTraining,
    ViTConfig,
    ViTModel,
)

from xllm import (
    ChatGLMForConditionalGeneration,
    X2LConfig,
    XLLMConfig,
    XLLMForConditionalGeneration,
    XLLMForQFormerPreTraining,
)
from xllm.cli import main
from xllm.modeling_xllm.conversion.convert import convert
from xllm.modeling_xllm.conversion.sizes import Shapes, published_rows
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel
from xllm.modeling_xllm.weight_files import StageCheckpointError


IMAGE_ALONE = {"image": X2LConfig()}


@pytest.fixture
def files(tmp_path):
    torch.save(published.vit(prefix=""), tmp_path / "eva_vit_g.pth")
    states = {
        "image": published.image_stage2(),
        "video": published.video_stage2(),
        "speech": published.speech_stage2(),
        "stage1": published.qformer(with_text=True),
        "stage3": published.stage3(),
    }
    paths = {name: published.save(tmp_path / f"{name}.pth", state) for name, state in states.items()}
    ChatGLMForConditionalGeneration(tiny_text_config()).save_pretrained(tmp_path / "llm")
    return {**paths, "eva": str(tmp_path / "eva_vit_g.pth"), "llm": str(tmp_path / "llm")}


def same(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_it_says_what_it_wrote(files, tmp_path, capsys):
    assert main(["convert", files["eva"], files["image"], str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    vit = sum(value.numel() for value in published.vit().values()) + published.VIT_DEPTH * published.VIT_WIDTH
    assert report["parts"]["vision_tower"] == {
        "parameters": vit + 2 * published.VIT_WIDTH,  # the keys' zero biases, and ln_vision
        "from": [files["eva"], files["image"]],
    }
    assert report["parts"]["interfaces.image"]["from"] == [files["image"]]
    assert len(report["left_out"][files["image"]]) == 3
    assert main(["convert", files["eva"], files["image"], str(tmp_path / "again")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("vision_tower ")
    assert lines[-1] == f"wrote {tmp_path / 'again'}"


def test_failures_are_one_line_and_leave_nothing(files, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        ([files["image"]], "image encoder is in LAVIS's eva_vit_g.pth"),
        (["absent.pth"], "absent.pth: no such file"),
        ([files["image"], "--kind", "lamp"], "--kind lamp: expected one of eva, "),
        ([files["image"], files["eva"], "--model", str(tmp_path / "none")], "none"),
    ):
        assert main(["convert", *arguments, str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
    assert main(["convert", files["image"], files["eva"], files["llm"]]) == 1
    assert "llm: exists and is not an empty folder" in capsys.readouterr().err


def test_a_converted_folder_and_its_files_compose_the_same_model(files, tmp_path):
    assert main(["convert", files["eva"], files["image"], files["video"], files["speech"], str(tmp_path / "out")]) == 0
    folder = str(tmp_path / "out")
    names = ("image", "video", "speech")
    composed = XLLMForConditionalGeneration.from_towers(
        files["llm"], encoders={"vision": folder}, interfaces=dict.fromkeys(names, folder)
    )
    direct = XLLMForConditionalGeneration.from_towers(
        files["llm"], encoders={"vision": files["eva"]}, interfaces={name: files[name] for name in names}
    )
    same(composed, direct)
    assert composed.config.modalities["speech"].encoder is None
    # A folder can be named by later checkpoints; the tensors of a file are stored in them.
    assert (sorted(composed.config.towers), sorted(direct.config.towers)) == (
        ["language_model", "vision_tower"],
        ["language_model"],
    )
    for name, model in {"composed": composed, "direct": direct}.items():
        model.save_pretrained(tmp_path / name)
        same(model, XLLMForConditionalGeneration.from_pretrained(tmp_path / name))
    with safe_open(tmp_path / "composed" / "model.safetensors", framework="pt") as file:
        assert not any("vision_tower" in key for key in file.keys())  # noqa: SIM118


def test_vectors_of_the_authors_data_reach_the_language_model(files, tmp_path):
    """512-d vectors in place of a spectrogram: one placeholder each, and padding is not read."""
    model = composed(files, tmp_path / "base").eval()
    model.config.set_token_ids(speech=SPEECH)
    vectors = torch.randn(1, 3, published.FEATURES)
    ids = torch.tensor([[SPEECH] * 3 + [20, GMASK, SOP]])
    alone = model(input_ids=ids, input_features=vectors).logits
    padded = torch.cat([vectors, torch.randn(1, 2, published.FEATURES)], 1)
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    torch.testing.assert_close(model(input_ids=ids, input_features=padded, input_features_mask=mask).logits, alone)
    other = model(input_ids=ids, input_features=vectors.flip(1)).logits
    assert (other - alone).abs().max() > 1e-3


def test_a_folder_without_a_language_model_says_so(files, tmp_path):
    assert main(["convert", files["speech"], str(tmp_path / "out")]) == 0
    with pytest.raises(StageCheckpointError, match="without a language model: compose one, e.g. xllm init"):
        XLLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match="has no image interface; it has speech"):
        XLLMForConditionalGeneration.from_towers(files["llm"], interfaces={"image": str(tmp_path / "out")})


def test_stage_1_starts_an_interface(files, tmp_path):
    assert main(["convert", files["eva"], files["stage1"], str(tmp_path / "out")]) == 0
    folder = str(tmp_path / "out")
    for source, vision in ((folder, folder), (files["stage1"], files["eva"])):
        model = XLLMForConditionalGeneration.from_towers(
            files["llm"], {"vision": vision}, {"image": source}, dict(IMAGE_ALONE)
        )
        queries = model.model.interfaces["image"].converter.query_tokens
        assert torch.equal(queries.data, published.qformer(with_text=True)["query_tokens"])
        assert model.model.interfaces["image"].adapter.weight.shape == (32, published.WIDTH)  # new


def composed(files, folder):
    model = XLLMForConditionalGeneration.from_towers(
        files["llm"], {"vision": files["eva"]}, {name: files[name] for name in ("image", "video", "speech")}
    )
    model.save_pretrained(folder)
    (folder / "processor_config.json").write_text("{}")
    return model


def test_stage_3_over_an_existing_model(files, tmp_path):
    before = composed(files, tmp_path / "base")
    base = str(tmp_path / "base")
    assert main(["convert", files["stage3"], str(tmp_path / "deep" / "out"), "--model", base]) == 0
    after = XLLMForConditionalGeneration.from_pretrained(tmp_path / "deep" / "out")
    theirs, old = published.stage3(), before.state_dict()
    expected = {
        "model.interfaces.image.converter.query_tokens": theirs["query_tokens"],
        "model.interfaces.video.converter.query_tokens": theirs["video_query_tokens"],
    }
    for name, adapter in {"image": "opt_proj", "video": "video_proj", "speech": "post_bert_proj"}.items():
        for kind in ("weight", "bias"):
            expected[f"model.interfaces.{name}.adapter.{kind}"] = theirs[f"{adapter}.{kind}"]
    for key, value in after.state_dict().items():
        assert torch.equal(value, expected.get(key, old[key])), key
    assert (tmp_path / "deep" / "out" / "processor_config.json").is_file()


def test_an_image_file_over_a_model_whose_encoder_is_named(files, tmp_path):
    """It brings another ln_vision: the encoder is no longer what its source says, and is stored."""
    assert main(["convert", files["eva"], files["image"], str(tmp_path / "towers")]) == 0
    model = XLLMForConditionalGeneration.from_towers(
        files["llm"], {"vision": str(tmp_path / "towers")}, {"image": str(tmp_path / "towers")}, dict(IMAGE_ALONE)
    )
    model.config.towers["vision_tower"]["name_or_path"] = "../towers"
    model.save_pretrained(tmp_path / "base")
    later = published.image_stage2(seed=7)
    path = published.save(tmp_path / "later.pth", later)
    arguments = [path, str(tmp_path / "deep" / "out"), "--model", str(tmp_path / "base")]
    assert main(["convert", *arguments]) == 0
    after = XLLMForConditionalGeneration.from_pretrained(tmp_path / "deep" / "out")
    assert sorted(after.config.towers) == ["language_model"]
    assert torch.equal(after.model.vision_tower.post_layernorm.weight.data, later["ln_vision.weight"])
    # The same as from_towers with that file over that encoder.
    direct = XLLMForConditionalGeneration.from_towers(
        files["llm"], {"vision": str(tmp_path / "towers")}, {"image": path}, dict(IMAGE_ALONE)
    )
    assert sorted(direct.config.towers) == ["language_model"]
    assert torch.equal(direct.model.vision_tower.post_layernorm.weight.data, later["ln_vision.weight"])
    # From a folder that stores it, too; an encoder of another family has no ln_vision to replace.
    assert main(["convert", files["eva"], path, str(tmp_path / "own")]) == 0
    direct = XLLMForConditionalGeneration.from_towers(
        files["llm"], {"vision": str(tmp_path / "towers")}, {"image": str(tmp_path / "own")}, dict(IMAGE_ALONE)
    )
    assert torch.equal(direct.model.vision_tower.post_layernorm.weight.data, later["ln_vision.weight"])
    vit = ViTConfig(hidden_size=published.VIT_WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    ViTModel(vit, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    direct = XLLMForConditionalGeneration.from_towers(
        files["llm"], {"vision": str(tmp_path / "vit")}, {"image": path}, dict(IMAGE_ALONE)
    )
    assert sorted(direct.config.towers) == ["language_model", "vision_tower"]
    # A folder with the same ln_vision stays named, also from another place.
    arguments = [files["image"], str(tmp_path / "deep" / "same"), "--model", str(tmp_path / "base")]
    assert main(["convert", *arguments]) == 0
    same(XLLMForConditionalGeneration.from_pretrained(tmp_path / "deep" / "same"), model)
    assert sorted(XLLMConfig.from_pretrained(tmp_path / "deep" / "same").towers) == ["language_model", "vision_tower"]


def test_speech_into_a_row_with_a_cif_of_its_own(files, tmp_path, capsys):
    """The authors' BERT and projections start a C-Former that fires its own tokens; its CIF stays."""
    rows = published_rows(Shapes(published.speech_stage2(), "speech"))
    cformer = rows["speech"].cformer_config
    cformer.cif_predictor = "conv"
    own_cif = {"cformer_config": cformer, "converter_config": None, "token_level": False}
    speech = X2LConfig(**{**rows["speech"].to_dict(), **own_cif})
    model = XLLMForConditionalGeneration(XLLMConfig(text_config=tiny_text_config(), modalities={"speech": speech}))
    model.save_pretrained(tmp_path / "base")
    assert main(["convert", files["speech"], str(tmp_path / "out"), "--model", str(tmp_path / "base")]) == 0
    converter = XLLMForConditionalGeneration.from_pretrained(tmp_path / "out").model.interfaces["speech"].converter
    assert torch.equal(converter.cif.conv.weight, model.model.interfaces["speech"].converter.cif.conv.weight)
    assert torch.equal(converter.pre_proj.weight.data, published.speech_stage2()["pre_bert_proj.weight"])
    assert main(["convert", files["image"], str(tmp_path / "no"), "--model", str(tmp_path / "base")]) == 1
    assert "without a place" in capsys.readouterr().err


def test_stage_1_over_a_model_keeps_its_text_side_in_a_file_of_its_own(files, tmp_path):
    composed(files, tmp_path / "base")
    assert main(["convert", files["stage1"], str(tmp_path / "out"), "--model", str(tmp_path / "base")]) == 0
    assert main(["convert", files["stage1"], files["eva"], str(tmp_path / "alone")]) == 0
    learner = XLLMForQFormerPreTraining.from_pretrained(tmp_path / "alone")
    heads = {key: value.clone() for key, value in learner.heads_state_dict().items()}
    learner.text_branch.lm_bias.data.zero_()
    learner.load_heads(tmp_path / "out")
    assert [key for key, value in learner.heads_state_dict().items() if not torch.equal(value, heads[key])] == []
    after = XLLMForConditionalGeneration.from_pretrained(tmp_path / "out").model.interfaces["image"].converter
    assert torch.equal(after.query_tokens.data, published.qformer(with_text=True)["query_tokens"])


def test_half_precision_of_the_image_encoder_is_not_passed_on(files, tmp_path):
    """eva_vit_g.pth is fp16, the Q-Former fp32: each tensor is stored as it was, and fp32 is what is loaded."""
    torch.save({key: value.half() for key, value in published.vit(prefix="").items()}, files["eva"])
    assert main(["convert", files["eva"], files["image"], str(tmp_path / "out")]) == 0
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        assert file.get_tensor("model.vision_tower.embeddings.class_embedding").dtype == torch.float16
        assert file.get_tensor("model.interfaces.image.adapter.bias").dtype == torch.float32
    model = XLLMEncoderModel.from_pretrained(tmp_path / "out")
    assert torch.equal(model.interfaces["image"].adapter.bias.data, published.image_stage2()["opt_proj.bias"])


def test_weights_of_other_sizes_name_both_shapes(files, tmp_path):
    state = published.stage3()
    state["opt_proj.weight"] = torch.ones(48, published.WIDTH)
    composed(files, tmp_path / "base")
    path = published.save(tmp_path / "wide.pth", state)
    with pytest.raises(StageCheckpointError, match=r"adapter.weight \(\[48, 128\], expected \[32, 128\]\)"):
        convert([path], base=XLLMConfig.from_pretrained(tmp_path / "base"))


def write_bert(folder):
    config = BertConfig(
        vocab_size=30, hidden_size=published.WIDTH, num_hidden_layers=published.DEPTH, num_attention_heads=2,
        intermediate_size=published.FEED_FORWARD, max_position_embeddings=published.POSITIONS,
    )  # fmt: skip
    model = BertForPreTraining(config)  # as bert-base-chinese, with its heads
    model.save_pretrained(folder)
    return model


def test_a_bert_over_a_model_and_its_declared_names(files, tmp_path, capsys):
    before = composed(files, tmp_path / "base")
    bert = write_bert(tmp_path / "bert")
    arguments = ["convert", str(tmp_path / "bert")]
    assert main([*arguments, str(tmp_path / "no")]) == 1
    assert "a bert checkpoint, expected BLIP-2, BERT or ChatGLM; name a BERT by xllm init" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "out"), "--model", str(tmp_path / "base")]) == 0
    after = XLLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    converter, old = after.model.interfaces["speech"].converter, before.model.interfaces["speech"].converter
    assert torch.equal(converter.pre_proj.weight, old.pre_proj.weight)
    theirs = bert.bert.state_dict()
    assert [key for key, value in converter.bert.state_dict().items() if not torch.equal(value, theirs[key])] == []
    state = bert.state_dict()
    for change, message in (
        (lambda s: s.pop("bert.encoder.layer.0.output.dense.bias"), "1 missing: encoder.layer.0.output"),
        (lambda s: s.update({"bert.odd": torch.ones(1)}), "1 without a place: .*odd"),
    ):
        changed = dict(state)
        change(changed)
        save_file(
            {k: v.clone() for k, v in changed.items()}, tmp_path / "bert" / "model.safetensors", {"format": "pt"}
        )
        assert main([*arguments, str(tmp_path / "no"), "--model", str(tmp_path / "base")]) == 1
        assert re.search(message, capsys.readouterr().err)

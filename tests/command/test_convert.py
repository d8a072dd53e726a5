# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm convert`, and what is made of its folders."""

import json
import re

import pytest
import torch
from fixtures import published_weights as published
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_text_config
from transformers import (
    BertConfig,
    BertForPreTraining,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    OPTConfig,
    ViTConfig,
    ViTModel,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm import (
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    ChatGLMTokenizer,
    X2LConfig,
    XLLMConfig,
    XLLMForConditionalGeneration,
    XLLMForQFormerPreTraining,
)
from xllm.cli import main
from xllm.modeling_xllm.conversion import ConversionError, convert
from xllm.modeling_xllm.conversion_sizes import Shapes, published_rows
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel
from xllm.modeling_xllm.stage_checkpoints import StageCheckpointError
from xllm.training.tiny_tokenizer import train_sentencepiece


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
    speech = X2LConfig(**{**rows["speech"].to_dict(), "cformer_config": cformer})
    model = XLLMForConditionalGeneration(XLLMConfig(text_config=tiny_text_config(), modalities={"speech": speech}))
    model.save_pretrained(tmp_path / "base")
    assert main(["convert", files["speech"], str(tmp_path / "out"), "--model", str(tmp_path / "base")]) == 0
    converter = XLLMForConditionalGeneration.from_pretrained(tmp_path / "out").model.interfaces["speech"].converter
    assert torch.equal(converter.cif.conv.weight, model.model.interfaces["speech"].converter.cif.conv.weight)
    assert torch.equal(converter.pre_proj.weight.data, published.speech_stage2()["pre_bert_proj.weight"])
    assert main(["convert", files["image"], str(tmp_path / "no"), "--model", str(tmp_path / "base")]) == 1
    assert "have no place in this model" in capsys.readouterr().err


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
    with pytest.raises(ConversionError, match=r"adapter.weight has shape \[48, 128\], the model needs \[32, 128\]"):
        convert([path], base=XLLMConfig.from_pretrained(tmp_path / "base"))


def write_blip2(folder, change=None):
    """BLIP-2 in the layout of transformers, with the weights of LAVIS's files."""
    torch.manual_seed(1)
    layers = {"num_attention_heads": 2, "intermediate_size": 24}
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=published.VIT_WIDTH, num_hidden_layers=published.VIT_DEPTH, image_size=published.PIXELS, **layers
        ),
        qformer_config=Blip2QFormerConfig(hidden_size=published.WIDTH, num_hidden_layers=published.DEPTH, **layers),
        text_config=OPTConfig(
            vocab_size=40, hidden_size=32, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
            word_embed_proj_dim=32, max_position_embeddings=16,
        ),
        num_query_tokens=published.QUERIES,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    state = model.state_dict()
    names = {
        "model.vision_tower.": "vision_model.",
        "model.interfaces.image.converter.": "",
        "model.interfaces.image.adapter.": "language_projection.",
    }
    model.save_pretrained(folder)
    vit, image = folder.parent / "vit.pth", folder.parent / "bridge.pth"
    torch.save(published.vit(prefix=""), vit)
    for key, value in convert([str(vit), published.save(image, published.image_stage2())]).tensors.items():
        start = next(start for start in names if key.startswith(start))
        assert names[start] + key.removeprefix(start) in state, key
        state[names[start] + key.removeprefix(start)] = value.contiguous()
    if change:
        change(state)
    save_file({key: value.clone() for key, value in state.items()}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("small", [False, True])
def test_blip2_of_transformers_computes_what_lavis_does(tmp_path, small):
    """Also where ln_vision's eps of 1e-5 shows: transformers' own class has 1e-6 there."""
    factor = 0.03 if small else 1.0
    vit, image = published.vit(), published.image_stage2()
    quiet = ("cls_token", "pos_embed", "patch_embed", ".attn.proj.", ".mlp.fc2.")
    vit = {key: value * factor if any(part in key for part in quiet) else value for key, value in vit.items()}

    def scale(state):
        quiet = (".embeddings.", ".projection.", ".mlp.fc2.")
        for key in state:
            if key.startswith("vision_model.") and any(part in key for part in quiet):
                state[key] = state[key] * factor

    folder = write_blip2(tmp_path / "blip2", scale)
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 0
    model = XLLMEncoderModel.from_pretrained(tmp_path / "out").eval()
    pictures = torch.randn(2, 3, published.PIXELS, published.PIXELS)
    with torch.no_grad():
        features = model.get_image_features(pictures)
        theirs = published.run_vit(vit, pictures, norm=image)
        torch.testing.assert_close(features.last_hidden_state, theirs, atol=1e-5, rtol=0)
        theirs = published.project(image, "opt_proj", published.run_queries(image, theirs)[-1])
        torch.testing.assert_close(features.embeddings, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("qformer.layernorm.bias"), "1 tensors of this model are not there: .*qformer.layernorm.bias"),
        (lambda s: s.pop("vision_model.post_layernorm.bias"), "1 tensors of this model are not there"),
        (lambda s: s.update({"qformer.odd": torch.ones(1)}), "have no place .* first being .*qformer.odd"),
        (lambda s: s.update({"vision_model.odd": torch.ones(1)}), "have no place .* first being .*vision_tower.odd"),
        (lambda s: s.update({"odd": torch.ones(1)}), "odd is not a tensor of a BLIP-2"),
        (lambda s: s.update({"query_tokens": torch.ones(1, 9, 128)}), r"shape \[1, 9, 128\], the model needs \[1, 3, 128\]"),
    ],
)  # fmt: skip
def test_blip2_of_transformers_is_declared_too(tmp_path, capsys, change, message):
    folder = write_blip2(tmp_path / "blip2", change)
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


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
        (lambda s: s.pop("bert.encoder.layer.0.output.dense.bias"), "1 tensors are missing: encoder.layer.0.output"),
        (lambda s: s.update({"bert.odd": torch.ones(1)}), "1 tensors are unexpected: .*odd"),
    ):
        changed = dict(state)
        change(changed)
        save_file(
            {k: v.clone() for k, v in changed.items()}, tmp_path / "bert" / "model.safetensors", {"format": "pt"}
        )
        assert main([*arguments, str(tmp_path / "no"), "--model", str(tmp_path / "base")]) == 1
        assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize("vocab_size", [130528, 150528])
def test_thudms_folder_of_either_vocabulary(tmp_path, vocab_size):
    """Shards of torch.save with fp16 weights and THUDM's config; a width of 4 keeps the vocabularies small."""
    source = tmp_path / "thudm"
    source.mkdir()
    config = ChatGLMConfig(
        vocab_size=vocab_size, hidden_size=4, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8
    )
    model = ChatGLMForConditionalGeneration(config).half()
    state = {**model.state_dict(), "transformer.layers.0.attention.rotary_emb.inv_freq": torch.ones(1)}
    torch.save(state, source / "pytorch_model.bin")
    values = {
        "model_type": "chatglm", "vocab_size": vocab_size, "hidden_size": 4, "num_attention_heads": 1,
        "num_layers": 1, "inner_hidden_size": 8, "max_sequence_length": 2048, "layernorm_epsilon": 1e-5,
        "torch_dtype": "float16", "position_encoding_2d": True,
    }  # fmt: skip
    (source / "config.json").write_text(json.dumps(values))
    ChatGLMTokenizer(str(train_sentencepiece(["what is this"], source, vocab_size=20))).save_pretrained(source)
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    again = ChatGLMForConditionalGeneration.from_pretrained(tmp_path / "out")
    same(again, model)
    assert again.config.bos_token_id == {130528: 130004, 150528: 150004}[vocab_size]
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()

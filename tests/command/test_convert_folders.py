# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm convert` of published folders: BLIP-2 in the layout of transformers, THUDM's ChatGLM."""

import json
import re

import pytest
import torch
from fixtures import published_weights as published
from safetensors.torch import save_file
from tiny import tiny_text_config
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2QFormerConfig, OPTConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm import (
    ChatGLMConfig,
    ChatGLMForConditionalGeneration,
    ChatGLMTokenizer,
    X2LConfig,
    XLLMForConditionalGeneration,
)
from xllm.assembly.tiny import train_sentencepiece
from xllm.cli import main
from xllm.modeling_xllm.configuration_xllm import default_modalities
from xllm.modeling_xllm.conversion.convert import convert
from xllm.modeling_xllm.modeling_encoders import XLLMEncoderModel


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
        (lambda s: s.pop("qformer.layernorm.bias"), "1 missing: .*qformer.layernorm.bias"),
        (lambda s: s.pop("vision_model.post_layernorm.bias"), "1 missing"),
        (lambda s: s.update({"qformer.odd": torch.ones(1)}), "1 without a place: .*qformer.odd"),
        (lambda s: s.update({"vision_model.odd": torch.ones(1)}), "1 without a place: .*vision_tower.odd"),
        (lambda s: s.update({"odd": torch.ones(1)}), "odd is not a tensor of a blip-2"),
        (lambda s: s.update({"query_tokens": torch.ones(1, 9, 128)}), r"\[1, 9, 128\], expected \[1, 3, 128\]"),
    ],
)  # fmt: skip
def test_blip2_of_transformers_is_declared_too(tmp_path, capsys, change, message):
    folder = write_blip2(tmp_path / "blip2", change)
    assert main(["convert", str(folder), str(tmp_path / "out")]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_video_row_that_shares_the_images_q_former_takes_queries_and_adapter(tmp_path):
    folder = str(write_blip2(tmp_path / "blip2"))
    ChatGLMForConditionalGeneration(tiny_text_config()).save_pretrained(tmp_path / "llm")
    rows = {"image": X2LConfig(), "video": default_modalities()["video"]}
    model = XLLMForConditionalGeneration.from_towers(
        str(tmp_path / "llm"), {"vision": folder}, {"image": folder, "video": folder}, rows
    )
    image, video = (model.model.interfaces[name].state_dict() for name in ("image", "video"))
    assert sorted(video) == ["adapter.bias", "adapter.weight", "converter.query_tokens"]
    assert all(torch.equal(value, image[key]) for key, value in video.items())


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
    ours, theirs = again.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert again.config.bos_token_id == {130528: 130004, 150528: 150004}[vocab_size]
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()

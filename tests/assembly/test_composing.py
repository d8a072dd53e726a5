# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Composing a checkpoint from folders in the layout in which the parts are published."""

import pytest
import torch
from tiny import tiny_text_config
from transformers import (
    BertConfig,
    BertModel,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2QFormerConfig,
    LlamaForCausalLM,
    OPTConfig,
    ParakeetCTCConfig,
    ParakeetEncoderConfig,
    ParakeetForCTC,
    PreTrainedTokenizerFast,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration, ChatGLMTokenizer
from xllm.assembly.composing import Towers, compose
from xllm.assembly.opening import load_checkpoint
from xllm.assembly.tiny import train_sentencepiece


LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def write_blip2(folder, language_width=32):
    torch.manual_seed(1)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=16, image_size=28, patch_size=14, initializer_range=0.02, **LAYERS
        ),
        qformer_config=Blip2QFormerConfig(hidden_size=24, **LAYERS),
        text_config=OPTConfig(
            vocab_size=40, hidden_size=language_width, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2,
            word_embed_proj_dim=language_width, max_position_embeddings=16,
        ),
        num_query_tokens=5,
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    torch.nn.init.normal_(model.query_tokens)
    model.save_pretrained(folder)
    return model


def write_llm(folder, kind):
    torch.manual_seed(2)
    if kind == "chatglm":
        folder.mkdir()
        tokenizer = ChatGLMTokenizer(str(train_sentencepiece(["what is this", "这是什么"], folder, vocab_size=40)))
        special = {
            f"{name}_token_id": getattr(tokenizer, f"{name}_token_id")
            for name in ("mask", "gmask", "bos", "eos", "pad")
        }
        config = ChatGLMConfig(vocab_size=128, hidden_size=32, max_position_embeddings=256, **LAYERS, **special)
        ChatGLMForConditionalGeneration(config).save_pretrained(folder)
    else:
        from tokenizers import Tokenizer, models, pre_tokenizers

        words = {word: number for number, word in enumerate(["<unk>", "<s>", "</s>", "<pad>", "what", "is", "this"])}
        backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
        LlamaForCausalLM(tiny_text_config("llama")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["chatglm", "llama"])
def test_published_parts_arrive_bit_equal(tmp_path, kind):
    blip = write_blip2(tmp_path / "blip2")
    write_llm(tmp_path / "llm", kind)
    bert = BertModel(BertConfig(vocab_size=30, hidden_size=24, max_position_embeddings=32, **LAYERS))
    bert.save_pretrained(tmp_path / "bert")
    encoder = ParakeetEncoderConfig(hidden_size=16, subsampling_conv_channels=4, **LAYERS)
    ctc = ParakeetForCTC(ParakeetCTCConfig(vocab_size=10, pad_token_id=9, encoder_config=encoder))
    ctc.save_pretrained(tmp_path / "ctc")
    towers = Towers(
        language_model=str(tmp_path / "llm"),
        encoders={"vision": str(tmp_path / "blip2"), "audio": str(tmp_path / "ctc")},
        interfaces={"image": str(tmp_path / "blip2"), "speech": str(tmp_path / "bert")},
    )
    compose(towers, tmp_path / "composed")
    model, processor = load_checkpoint(str(tmp_path / "composed"))
    parts = model.model

    def same(ours, theirs):
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, atol=0, rtol=0)

    same(parts.vision_tower.state_dict(), blip.vision_model.state_dict())
    same(parts.interfaces["image"].converter.qformer.state_dict(), blip.qformer.state_dict())
    same(parts.interfaces["image"].adapter.state_dict(), blip.language_projection.state_dict())
    same({"q": parts.interfaces["image"].converter.query_tokens}, {"q": blip.query_tokens})
    same(parts.audio_tower.state_dict(), ctc.encoder.state_dict())
    theirs = {k: v for k, v in bert.state_dict().items() if not k.startswith(("pooler", "embeddings.word"))}
    same(parts.interfaces["speech"].converter.bert.state_dict(), theirs)

    ids = [row.token_id for row in model.config.modalities.values()]
    assert len(set(ids)) == 3
    assert max(ids) < model.config.text_config.vocab_size
    picture = torch.randint(0, 255, (3, 40, 30), dtype=torch.uint8)
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what is"}]}
    ]
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 5
    assert inputs["pixel_values"].shape == (1, 3, 28, 28)
    assert model.generate(**inputs, max_new_tokens=2).shape[1] >= inputs["input_ids"].shape[1] + 1


def test_an_adapter_for_another_width_is_left_out(tmp_path):
    blip = write_blip2(tmp_path / "blip2", language_width=64)
    write_llm(tmp_path / "llm", "llama")
    ctc = ParakeetForCTC(
        ParakeetCTCConfig(
            vocab_size=10,
            pad_token_id=9,
            encoder_config=ParakeetEncoderConfig(hidden_size=16, subsampling_conv_channels=4, **LAYERS),
        )
    )
    ctc.save_pretrained(tmp_path / "ctc")
    towers = Towers(
        language_model=str(tmp_path / "llm"),
        encoders={"vision": str(tmp_path / "blip2"), "audio": str(tmp_path / "ctc")},
        interfaces={"image": str(tmp_path / "blip2")},
    )
    compose(towers, tmp_path / "composed")
    model, _ = load_checkpoint(str(tmp_path / "composed"))
    assert model.model.interfaces["image"].adapter.weight.shape == (32, 24)
    assert blip.language_projection.weight.shape == (64, 24)


def test_an_interface_that_cannot_start_from_what_is_named(tmp_path):
    write_blip2(tmp_path / "blip2")
    write_llm(tmp_path / "llm", "llama")
    towers = Towers(str(tmp_path / "llm"), interfaces={"speech": str(tmp_path / "blip2")})
    with pytest.raises(ValueError, match=r"blip-2\) cannot initialise a cformer interface"):
        compose(towers, tmp_path / "composed")
    towers = Towers(str(tmp_path / "llm"), interfaces={"smell": str(tmp_path / "blip2")})
    with pytest.raises(ValueError, match="interfaces: no modality smell; the rows are image, video, speech"):
        compose(towers, tmp_path / "composed")
    assert not (tmp_path / "composed").exists()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The modality table: round trip, derived widths and ids, and what a wrong row says."""

import pytest
from tiny import IMAGE, SPEECH, VIDEO, tiny_config, tiny_rows
from transformers import AutoConfig, LlamaConfig, WhisperConfig

from xllm import ChatGLMConfig, X2LConfig, XLLMConfig


def test_defaults_are_the_papers_sizes():
    config = XLLMConfig()
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (4096, 28)
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (1408, 39)
    rows = config.modalities
    assert [rows[name].placeholder_token for name in rows] == ["<ImageHere>", "<VideoHere>", "<SpeechHere>"]
    assert (rows["image"].num_query_tokens, rows["image"].qformer_config.num_hidden_layers) == (32, 12)
    assert (rows["video"].num_frames, rows["video"].shares_converter_with) == (5, "image")
    assert (rows["speech"].cformer_config.num_hidden_layers, rows["speech"].adapter_activation) == (12, "relu")


@pytest.mark.parametrize("text", ["chatglm", "llama"])
def test_round_trip_through_a_folder(tmp_path, text):
    extra = {"bird": WhisperConfig(d_model=24, encoder_layers=1, encoder_attention_heads=2)}
    bird = X2LConfig(encoder="bird", input_name="bird_features", converter="linear", placeholder_token="<Bird>")
    config = tiny_config(text, rows=tiny_rows(bird=bird), extra_encoders=extra)
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again.text_config) is {"chatglm": ChatGLMConfig, "llama": LlamaConfig}[text]
    assert again.to_diff_dict() == config.to_diff_dict()
    assert again.modalities["bird"].encoder_hidden_size == 24


def test_widths_and_ids_follow_from_the_table():
    config = tiny_config()
    assert (config.image_token_id, config.video_token_id, config.audio_token_id) == (IMAGE, VIDEO, SPEECH)
    assert {row.language_hidden_size for row in config.modalities.values()} == {32}
    assert config.modalities["image"].qformer_config.encoder_hidden_size == 16
    assert config.row_of_converter("video") is config.modalities["image"]
    config = XLLMConfig(image_token_id=7)
    assert config.modalities["image"].token_id == 7
    config.set_token_ids(image=8, speech=9)
    assert (config.image_token_id, config.audio_token_id) == (8, 9)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": {"encoder": "nose"}}, r"modalities\['image'\].encoder is 'nose'; the towers are vision, audio"),
        ({"image": {"converter": "mlp"}}, r"modalities\['image'\]: converter must be one of .*, got 'mlp'"),
        ({"image": {"num_querys": 4}}, r"modalities\['image'\]: a modality row has no field 'num_querys'"),
        ({"video": {"shares_converter_with": "image"}}, "no row 'image' has its own converter"),
        ({"status": {"encoder": None, "converter": "linear"}}, "encoder_hidden_size"),
        ({"image": {"token_id": 10**6}}, "outside the LLM's vocabulary"),
        ({"a": {}, "b": {"placeholder_token": "<B>"}}, "the same input_name: pixel_values, pixel_values"),
        ({"a": {}, "b": {"input_name": "b_values"}}, "the same placeholder_token"),
        (
            {"a": {"token_id": 5}, "b": {"token_id": 5, "input_name": "b_values", "placeholder_token": "<B>"}},
            "the same token_id",
        ),
    ],
)
def test_a_wrong_row_is_named(rows, message):
    with pytest.raises(ValueError, match=message):
        XLLMConfig(modalities=rows)


def test_an_unknown_language_model_is_named():
    with pytest.raises(ValueError, match="text_config: transformers knows no model_type 'gpt9'"):
        XLLMConfig(text_config={"model_type": "gpt9"})

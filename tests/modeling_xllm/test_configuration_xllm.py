# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The modality table: round trip, derived widths and ids, and what a wrong row says."""

import copy
import json

import pytest
from tiny import IMAGE, SPEECH, VIDEO, default_numbers, tiny_config, tiny_rows
from transformers import AutoConfig, LlamaConfig, LlavaConfig, PreTrainedConfig, WhisperConfig

from xllm import ChatGLMConfig, X2LConfig, XLLMConfig


def test_defaults_are_the_papers_sizes():
    assert default_numbers(XLLMConfig) == {"tie_word_embeddings": False, "initializer_range": 0.02}
    row = {"num_query_tokens": 32, "vectors_per_frame": 1, "token_level": False, "initializer_range": 0.02}
    assert default_numbers(X2LConfig) == row
    config = XLLMConfig()
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (4096, 28)
    assert (config.vision_config.hidden_size, config.vision_config.num_hidden_layers) == (1408, 39)
    audio = config.audio_config
    assert (audio.hidden_size, audio.num_hidden_layers, audio.intermediate_size) == (512, 12, 2048)
    for given in (0.02, 0.05):  # EVA's own would be 1e-10
        assert XLLMConfig(initializer_range=given).vision_config.initializer_range == given
    rows = config.modalities
    assert [rows[name].placeholder_token for name in rows] == ["<ImageHere>", "<SpeechHere>", "<VideoHere>"]
    assert (rows["image"].num_query_tokens, rows["image"].qformer_config.num_hidden_layers) == (32, 12)
    assert (rows["video"].num_frames, rows["video"].shares_converter_with) == (5, "image")
    assert (rows["speech"].cformer_config.num_hidden_layers, rows["speech"].adapter_activation) == (12, "relu")
    assert (rows["image"].tokens_per_item, rows["speech"].tokens_per_item) == (32, None)
    assert (rows["image"].positions_per_frame, rows["speech"].positions_per_frame) == (1, 8)


@pytest.mark.parametrize(
    ("sizes", "expected"), [((None, None), 1), ((6, None), 6), ((6, 3), 2), ((6, 6), 1), ((None, 1), 1)]
)
def test_positions_of_a_frame_are_those_of_a_token_by_the_frames_in_it(sizes, expected):
    row = X2LConfig(converter="linear", subsampling_factor=sizes[0], frames_per_token=sizes[1])
    assert row.positions_per_frame == expected


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
    for token_id in (0, 7, 130528 + 999):  # one of the vocabulary's, or right behind it
        assert XLLMConfig(image_token_id=token_id).modalities["image"].token_id == token_id
    config = XLLMConfig(image_token_id=7)
    config.set_token_ids(image=8, speech=9)
    assert (config.image_token_id, config.audio_token_id) == (8, 9)
    with pytest.raises(ValueError, match="modalities: no row imgae; the rows are image, speech, video"):
        config.set_token_ids(imgae=10, speech=11)
    assert config.audio_token_id == 9
    both = {"hidden_size": 24, "num_attention_heads": 4}
    same = X2LConfig(qformer_config=both, converter_config={"model_type": "blip_2_qformer", **both})
    assert same.converter_config.hidden_size == 24


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"image": {"encoder": "nose"}}, r"modalities\['image'\].encoder is 'nose'; the towers are vision, audio"),
        ({"image": {"converter": "mlp"}}, r"modalities\['image'\]: converter must be one of .*, got 'mlp'"),
        ({"image": {"num_querys": 4}}, r"modalities\['image'\]: a modality row has no field 'num_querys'"),
        ({"video": {"shares_converter_with": "image"}}, "no row 'image' has its own converter"),
        ({"status": {"encoder": None, "converter": "linear"}}, "encoder_hidden_size"),
        (
            {"image": "Salesforce/blip2"},
            r"modalities\['image'\] must be an X2LConfig or a mapping .*, got 'Salesforce",
        ),
        ({"image": None}, r"modalities\['image'\] must be an X2LConfig or a mapping of its fields, got None"),
        ("image", "modalities must be a mapping from names to rows, got 'image'"),
        ([{}], r"modalities must be a mapping from names to rows, got \[{}\]"),
        (
            {"image": {"num_query_tokens": "many"}},
            r"modalities\['image'\]: .*'num_query_tokens'.* expected int, got str",
        ),
        ({"image": {"num_query_tokens": 0}}, r"modalities\['image'\]: num_query_tokens must be positive, got 0"),
        ({"image": {"encoder_hidden_size": 65}}, r"\['image'\].encoder_hidden_size is 65, but .* are 1408 wide"),
        ({"image": {"encoder_hidden_size": 10**7}}, "encoder_hidden_size is 10000000, but .* are 1408 wide"),
        (
            {"image": {}, "video": {"shares_converter_with": "image", "encoder": "audio", "input_name": "v"}},
            r"modalities\['video'\]: encoder_hidden_size is 512, but the converter that it shares reads 1408",
        ),
        (
            {"image": {}, "video": {"shares_converter_with": "image", "converter": "linear"}},
            r"modalities\['video'\] is a 'linear', so it cannot share the converter of 'image', a 'qformer'",
        ),
        (
            {"image": {"converter_config": {"model_type": "xllm_cformer"}}},
            "is of model_type 'xllm_cformer', but a 'qformer' converter takes 'blip_2_qformer'",
        ),
        ({"image": {"converter": "linear", "converter_config": {}}}, "must be None: LinearConverter has no sizes"),
        (
            {"image": {"converter": "linear", "qformer_config": {"hidden_size": 16}}},
            r"modalities\['image'\]: qformer_config does not belong to a 'linear' converter; leave it out",
        ),
        (
            {"image": {"qformer_config": {"hidden_size": 24}, "converter_config": {"hidden_size": 48}}},
            "qformer_config is an older name of converter_config, and the two differ",
        ),
        (
            {"image": {}, "b": {"shares_converter_with": "image", "converter_config": {}}},
            r"modalities\['b'\]: converter_config must be None: the row shares another's",
        ),
        ({"image": {"token_id": -1}}, "token_id -1 is outside the LLM's vocabulary"),
        ({"image": {"token_id": 130528 + 1000}}, r"outside the LLM's vocabulary \(130528\), and not right"),
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


OLD_JSON = """{
  "model_type": "xllm", "audio_token_id": 112, "image_token_id": 110, "video_token_id": 111, "extra_encoders": {},
  "text_config": {"model_type": "llama", "vocab_size": 120, "hidden_size": 32, "num_attention_heads": 4},
  "vision_config": {"model_type": "blip_2_vision_model", "hidden_size": 16, "num_attention_heads": 2},
  "audio_config": {"model_type": "parakeet_encoder", "hidden_size": 16, "num_attention_heads": 2},
  "modalities": {
    "image": {
      "adapter_activation": null, "cformer_config": null, "converter": "qformer", "encoder": "vision",
      "encoder_hidden_size": 16, "initializer_range": 0.02, "input_name": "pixel_values", "language_hidden_size": 32,
      "mask_name": null, "model_type": "xllm_interface", "num_frames": null, "num_query_tokens": 2,
      "placeholder_token": "<ImageHere>", "shares_converter_with": null, "subsampling_factor": 1, "token_id": 110,
      "token_level": false,
      "qformer_config": {
        "_name_or_path": "", "architectures": null, "encoder_hidden_size": 16, "hidden_size": 16, "dtype": null,
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "model_type": "blip_2_qformer", "num_attention_heads": 2,
        "num_hidden_layers": 3, "return_dict": true
      }
    },
    "speech": {
      "adapter_activation": "relu", "converter": "cformer", "encoder": "audio", "encoder_hidden_size": 16,
      "input_name": "input_features", "language_hidden_size": 32, "mask_name": "input_features_mask",
      "model_type": "xllm_interface", "placeholder_token": "<SpeechHere>", "qformer_config": null,
      "shares_converter_with": null, "subsampling_factor": 8, "token_id": 112, "token_level": false,
      "cformer_config": {
        "cif_hidden_size": 24, "encoder_hidden_size": 16, "hidden_size": 16, "model_type": "xllm_cformer",
        "num_attention_heads": 2, "num_hidden_layers": 2, "transformer": "bert"
      }
    },
    "video": {
      "cformer_config": null, "converter": "qformer", "encoder": "vision", "encoder_hidden_size": 16,
      "input_name": "pixel_values_videos", "language_hidden_size": 32, "mask_name": "video_frame_mask",
      "model_type": "xllm_interface", "num_frames": 3, "num_query_tokens": 2, "placeholder_token": "<VideoHere>",
      "qformer_config": null, "shares_converter_with": "image", "subsampling_factor": 1, "token_id": 111
    }
  }
}"""


def test_a_config_json_with_one_field_per_converter_is_read(tmp_path):
    (tmp_path / "config.json").write_text(OLD_JSON, encoding="utf-8")
    config = AutoConfig.from_pretrained(tmp_path)
    rows = config.modalities
    assert (rows["image"].converter_config.num_hidden_layers, rows["speech"].converter_config.cif_hidden_size) == (
        3,
        24,
    )
    assert rows["image"].qformer_config is rows["image"].converter_config
    assert rows["speech"].cformer_config is rows["speech"].converter_config
    assert (rows["image"].cformer_config, rows["speech"].qformer_config) == (None, None)
    assert (rows["video"].converter_config, rows["video"].shares_converter_with, rows["video"].part) == (
        None,
        "image",
        None,
    )
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["modalities"]
    assert not {"qformer_config", "cformer_config"} & set(written["image"]) & set(written["speech"])
    assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == config.to_diff_dict()


def test_a_config_leaves_the_rows_it_is_given_alone():
    rows = tiny_rows()
    rows["bird"] = {"encoder": "vision", "input_name": "bird", "placeholder_token": "<Bird>", "qformer_config": {}}
    before = {name: row if isinstance(row, dict) else row.to_dict() for name, row in copy.deepcopy(rows).items()}
    first, second = tiny_config(rows=rows, image_token_id=IMAGE), tiny_config("llama", rows=rows)
    first.set_token_ids(image=5, speech=6)
    first.modalities["image"].qformer_config.hidden_size = 99
    assert {name: row if isinstance(row, dict) else row.to_dict() for name, row in rows.items()} == before
    assert second.modalities["image"].token_id == IMAGE


def test_rows_come_in_one_order_however_they_are_written():
    rows = tiny_rows()
    towers = {"b": WhisperConfig(d_model=24), "a": WhisperConfig(d_model=24)}
    for order in (list(rows), list(reversed(rows)), sorted(rows)):
        config = tiny_config(rows={name: rows[name] for name in order}, extra_encoders=towers)
        assert (list(config.modalities), list(config.extra_encoders)) == (["image", "speech", "video"], ["a", "b"])


def test_a_row_set_to_another_converter_is_checked_again():
    rows = tiny_rows()
    rows["speech"].converter = "qformer"
    with pytest.raises(ValueError, match=r"modalities\['speech'\]: converter_config is of model_type 'xllm_cformer'"):
        tiny_config(rows=rows)
    rows["speech"].converter_config = None
    assert tiny_config(rows=rows).modalities["speech"].qformer_config.hidden_size == 768


@pytest.mark.parametrize("decoder", [None, False, True])
@pytest.mark.parametrize("encoder", [None, False, True])
def test_the_language_models_config_is_the_one_that_transformers_looks_for(decoder, encoder):
    config = tiny_config("llama")
    assert config.get_text_config(decoder, encoder) is PreTrainedConfig.get_text_config(config, decoder, encoder)
    assert config.get_text_config() is config.text_config


def test_attention_for_long_texts_is_the_language_models_alone():
    config = tiny_config("llama", extra_encoders={"bird": WhisperConfig(d_model=24)})
    rows = config.modalities.values()
    parts = [config.vision_config, config.audio_config, config.extra_encoders["bird"], *rows]
    parts += [row.converter_config for row in rows if row.converter_config is not None]
    for chosen, of_parts in (("eager", "eager"), ("flex_attention", "eager"), ("sdpa", "sdpa")):
        config._attn_implementation = chosen
        assert {config._attn_implementation, config.text_config._attn_implementation} == {chosen}
        assert {part._attn_implementation for part in parts} == {of_parts}


def test_some_rows_of_a_config_come_with_those_whose_converter_they_share():
    config = tiny_config()
    assert list(config.with_modalities(["video"]).modalities) == ["image", "video"]
    assert list(config.with_modalities(["speech"]).modalities) == ["speech"]
    assert list(config.modalities) == ["image", "speech", "video"]
    with pytest.raises(ValueError, match="modalities: no row sound; the rows are image, speech, video"):
        config.with_modalities(["image", "sound"])


def test_what_a_config_json_says():
    """Rows without the later fields as before there were any; the remote code's class by the file that has all."""
    joined = X2LConfig(converter="linear", frames_per_token=3, input_name="v", placeholder_token="<V>")
    config = tiny_config(rows=tiny_rows(joined=joined), weight_files={"model.safetensors": "0"})
    config.modalities["image"].vectors_per_frame = 4
    written = config.to_dict()
    assert not {"auto_map", "weight_files"} & written.keys()
    found = {
        name: (row.get("frames_per_token"), row.get("vectors_per_frame"))
        for name, row in written["modalities"].items()
    }
    assert found == {"image": (None, 4), "joined": (3, None), "speech": (None, None), "video": (None, None)}
    assert "frames_per_token" not in written["modalities"]["image"]
    config.auto_map = {"AutoConfig": "configuration_xllm.XLLMConfig", "AutoModel": "modeling_xllm.XLLMModel"}
    assert config.to_dict()["auto_map"] == {
        "AutoConfig": "modeling_xllm.XLLMConfig",
        "AutoModel": "modeling_xllm.XLLMModel",
    }
    row = {**written["modalities"]["image"], "model_type": "older"}
    assert tiny_config(rows={"image": row}).modalities["image"].model_type == "xllm_interface"


def test_a_language_model_inside_another_model_is_given_alone():
    whole = LlavaConfig()
    with pytest.raises(ValueError, match="^text_config: a llava has no hidden_size; give its text_config$"):
        XLLMConfig(text_config=whole)
    assert XLLMConfig(text_config=whole.text_config).text_config is whole.text_config

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speech that was fired before: a row without encoder and CIF, alone or beside one that shares its C-Former."""

import pytest
import tiny
import torch

from xllm import X2LConfig, XLLMForConditionalGeneration
from xllm.modeling_xllm.configuration_cformer import CFormerConfig
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig


WIDTH = 16


def cformer_config(**fields) -> CFormerConfig:
    return CFormerConfig(
        cif_hidden_size=WIDTH, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, cif_predictor="none", **fields,
    )  # fmt: skip


def token_row(**fields) -> X2LConfig:
    defaults = {
        "encoder": None,
        "converter": "cformer",
        "token_level": True,
        "input_name": "input_features",
        "mask_name": "input_features_mask",
        "placeholder_token": "<SpeechHere>",
        "token_id": tiny.SPEECH,
        "adapter_activation": "relu",
    }
    return X2LConfig(**{**defaults, **fields})


def rows_with(row: X2LConfig) -> dict:
    return {**tiny.tiny_rows(), "speech": row}


def features(*lengths: int) -> dict[str, torch.Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return {"input_features": torch.randn(len(lengths), max(lengths), WIDTH), "input_features_mask": mask}


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model(rows=rows_with(token_row(cformer_config=cformer_config())))


def test_no_encoder_and_no_cif_are_built(model):
    assert model.model.audio_tower is None
    assert not [name for name in model.state_dict() if ".cif." in name]
    assert model.config.modalities["speech"].encoder_hidden_size == WIDTH


def test_is_what_the_authors_code_computes(model):
    """s = ReLU(W1 x); h = BERT(s, mask); e = ReLU(W2 h), one embedding per vector."""
    inputs = features(5, 2)
    out = model.get_audio_features(**inputs)
    interface = model.model.interfaces["speech"]
    cformer = interface.converter
    projected = torch.relu(cformer.pre_proj(inputs["input_features"]))
    hidden = cformer.bert(inputs_embeds=projected, attention_mask=inputs["input_features_mask"]).last_hidden_state
    expected = torch.relu(interface.adapter(hidden))
    assert [len(item) for item in out.pooler_output] == [5, 2]
    assert out.num_placeholders.tolist() == [5, 2]
    for item, row, length in zip(out.pooler_output, expected, (5, 2)):
        torch.testing.assert_close(item, row[:length])
    assert out.fire_frames is None
    assert out.quantity is None


def test_the_fc_variant_is_a_linear_map():
    row = token_row(cformer_config=cformer_config(transformer="none"))
    model = tiny.tiny_model(rows=rows_with(row))
    inputs = features(4)
    interface = model.model.interfaces["speech"]
    assert {name.split(".")[0] for name, _ in interface.named_parameters()} == {"adapter"}
    expected = torch.relu(interface.adapter(inputs["input_features"]))
    torch.testing.assert_close(model.get_audio_features(**inputs).embeddings, expected)


def test_whole_model_trains_generates_and_comes_back(model, tmp_path):
    inputs = features(5, 2)
    text = tiny.left_pad([tiny.prompt([tiny.SPEECH] * 5, 7), tiny.prompt([tiny.SPEECH] * 2, 8, 9)])
    both = model(**text, **inputs).logits
    alone = model(
        input_ids=torch.tensor([tiny.prompt([tiny.SPEECH] * 2, 8, 9)]),
        input_features=inputs["input_features"][1:, :2],
    ).logits
    torch.testing.assert_close(both[1, -alone.shape[1] :], alone[0], atol=1e-5, rtol=1e-4)
    assert model.generate(**text, **inputs, max_new_tokens=3, do_sample=False).shape[0] == 2
    loss = model(**text, **inputs, labels=text["input_ids"]).loss
    loss.backward()
    assert all(p.grad is not None for p in model.model.interfaces["speech"].parameters())
    model.zero_grad()
    model.save_pretrained(tmp_path)
    loaded = XLLMForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(**text, **inputs).logits, both)


def test_a_second_row_shares_the_cformer_of_the_speech_row():
    row = token_row(
        shares_converter_with="speech",
        input_name="cif_features",
        mask_name="cif_mask",
        placeholder_token="<FeaturesHere>",
        token_id=tiny.STATUS,
        encoder_hidden_size=WIDTH,
    )
    model = tiny.tiny_model(rows=tiny.tiny_rows(features=row))
    waves = tiny.speech(160)
    fired = model.model.interfaces["speech"].converter.cif(model.model.encode("speech", *waves.values())[0][0])
    shared = model.get_features("features", fired.embeddings)
    own = model.get_audio_features(**waves)
    with torch.no_grad():  # the same C-Former, each its own adapter
        model.model.interfaces["features"].adapter.load_state_dict(
            model.model.interfaces["speech"].adapter.state_dict()
        )
    torch.testing.assert_close(model.get_features("features", fired.embeddings).embeddings, own.embeddings)
    assert shared.num_placeholders.tolist() == own.mask.sum(1).tolist()
    ids = torch.tensor([tiny.prompt([tiny.SPEECH] * 20, [tiny.STATUS] * shared.mask.shape[1], 5)])
    assert model(input_ids=ids, **waves, cif_features=fired.embeddings).logits.isfinite().all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder": "audio"}, "token_level=True needs converter='cformer', encoder=None"),
        ({"converter": "linear"}, "token_level=True needs converter='cformer'.*got 'linear'"),
        ({"subsampling_factor": 8}, "subsampling_factor=1, got .* 8"),
        ({"converter_config": {"cif_predictor": "conv"}}, "runs no CIF, but cif_predictor is 'conv': give 'none'"),
        (
            {"cformer_config": CFormerConfig(cif_predictor="conv")},
            "runs no CIF, but cif_predictor is 'conv': give 'none'",
        ),
    ],
)
def test_inconsistent_rows_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        token_row(**fields)


@pytest.mark.parametrize("sizes", [None, {"cif_hidden_size": WIDTH}])
def test_sizes_that_name_no_predictor_have_no_cif(sizes):
    row = token_row(converter_config=sizes)
    assert row.converter_config.cif_predictor == "none"
    assert X2LConfig(**row.to_dict()).to_dict() == row.to_dict()


def test_widths_must_agree():
    row = token_row(cformer_config=cformer_config(), encoder_hidden_size=20)
    with pytest.raises(
        ValueError, match=r"modalities\['speech'\]: encoder_hidden_size is 20, not its cif_hidden_size"
    ):
        tiny.tiny_config(rows=rows_with(row))


def test_bad_features_and_stage_one_are_named(model):
    inputs = features(3, 2)
    inputs["input_features"][0, 1, 4] = float("inf")
    with pytest.raises(ValueError, match="speech: clip 0 holds NaN or Inf"):
        model.get_audio_features(**inputs)
    with pytest.raises(ValueError, match="target_lengths have nothing to set"):
        model.model.interfaces["speech"].converter(torch.zeros(1, 3, WIDTH), None, torch.tensor([3]))
    inputs = features(3, 2)
    inputs["input_features"][1, 2] = float("nan")  # padding is not read
    assert model.get_audio_features(**inputs).embeddings.isfinite().all()
    with pytest.raises(ValueError, match="'speech' has no CIF .* nothing to train"):
        SpeechRecognitionConfig(modalities=rows_with(token_row(cformer_config=cformer_config())))

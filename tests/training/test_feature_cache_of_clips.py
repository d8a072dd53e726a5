# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What speech encoders give for clips of unequal lengths, kept on disk: the same in any batch."""

from functools import wraps
from types import SimpleNamespace

import pytest
import torch
from tiny import speech, tiny_model, tiny_rows
from transformers import BertConfig, BertModel, Wav2Vec2Config, WhisperConfig
from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder

from xllm import freeze_for_stage
from xllm.training.feature_cache import FeatureCache, keeping_problem, rounding
from xllm.training.saving.lineage import FreezeReceipt


LAYERS = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_size": 16,
    "vocab_size": 8,
}
WAVE = {
    **LAYERS, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "conv_dim": (8, 8),
    "conv_kernel": (10, 4), "conv_stride": (80, 4),
}  # fmt: skip
WHISPER = WhisperConfig(
    d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1,
    decoder_attention_heads=2, decoder_ffn_dim=32, num_mel_bins=80, max_source_positions=20, vocab_size=60,
    max_target_positions=8, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip


def listener(audio_config=None):
    """A model that hears alone."""
    row = tiny_rows()["speech"]
    if audio_config is None:
        return tiny_model(rows={"speech": row})
    row.subsampling_factor = None  # the encoder's own
    return tiny_model(rows={"speech": row}, audio_config=audio_config)


@pytest.fixture(params=["parakeet", "wav2vec2", "wav2vec2 with a norm over time", "whisper"])
def listening(request):
    """A model, and six clips of unequal lengths that its encoder reads."""
    torch.manual_seed(1)
    if request.param == "whisper":
        model, clips = listener(WHISPER), speech(80, 40, 40, 80, 120, 40)
        inputs, mask = clips["input_features"], clips["input_features_mask"]
    elif request.param == "parakeet":
        model, clips = listener(), speech(50, 23, 64, 31, 90, 40)
        inputs, mask = clips["input_features"], clips["input_features_mask"]
    else:
        norm = "group" if "time" in request.param else "layer"
        model = listener(Wav2Vec2Config(feat_extract_norm=norm, **WAVE))
        lengths = torch.tensor([4000, 2500, 3000, 6000, 2000, 5000])
        mask = (torch.arange(6000) < lengths[:, None]).long()
        inputs = torch.randn(6, 6000) * mask
    freeze_for_stage(model, 2, "speech")
    return model.train(), inputs, mask


def opened(folder, model):
    return FeatureCache(folder, model, FreezeReceipt(model).before)


def encode(model, inputs, mask, rows):
    """Frames of some clips, padded with each other, and which are real."""
    length = int(mask[rows].sum(1).max())
    outputs, real = model.model.encode("speech", inputs[rows, :length], mask[rows, :length])
    return outputs.last_hidden_state, real


def test_a_clip_is_the_same_in_any_batch_and_epoch(listening, tmp_path):
    model, inputs, mask = listening
    batches = [[0, 1, 2], [3, 4, 5], [5, 0], [2], [4, 1, 3]]
    expected = [encode(model, inputs, mask, rows) for rows in batches]
    known: dict[int, torch.Tensor] = {}
    for run in range(2):
        with opened(tmp_path, model) as cache:
            for rows, (frames, real) in zip(batches, expected):
                found, found_real = encode(model, inputs, mask, rows)
                assert found.shape == frames.shape
                assert torch.equal(found_real, real)
                assert (found - frames)[real].abs().max() < rounding(torch.float32) * frames.abs().max()
                if model.config.audio_config.model_type == "whisper":  # windows of one size: what their batch gives
                    assert torch.equal(found[real], frames[real])
                    continue
                for row, own, kept in zip(rows, found, real):
                    assert torch.equal(own[kept], known.setdefault(row, own[kept])), "to the bit"
        assert (cache.counts["features_computed"] == 0) is (run == 1)
    assert cache.counts["features_read"] >= 12
    assert "forward" not in vars(model.model.audio_tower)


def test_an_encoder_that_padding_changes_is_not_kept(tmp_path, monkeypatch, caplog):
    """A norm over all positions, padding among them: alone and in a batch a clip is not the same."""
    original = ParakeetEncoder.forward

    @wraps(original)
    def forward(self, input_features, **kwargs):
        output = original(self, input_features, **kwargs)
        output.last_hidden_state = output.last_hidden_state - output.last_hidden_state.mean(1, keepdim=True)
        return output

    monkeypatch.setattr(ParakeetEncoder, "forward", forward)
    model, clips = tiny_model(), speech(50, 23, 64)
    freeze_for_stage(model, 2, "speech")
    given = (model.train(), clips["input_features"], clips["input_features_mask"], [0, 1, 2])
    expected = encode(*given)[0]
    for _ in range(2):
        with opened(tmp_path, model) as cache:
            assert torch.equal(encode(*given)[0], expected)
        assert cache.counts == {"features_read": 0, "features_computed": 0}
    assert caplog.text.count("padding changes what audio_tower gives for a clip by more than rounding") == 2


def test_what_cannot_be_kept_says_why():
    bert = BertModel(BertConfig(**LAYERS))
    bert.main_input_name = "input_features"
    assert keeping_problem(bert) == "how many frames a bert makes of a clip is not known"
    tower = tiny_model().model.audio_tower
    assert keeping_problem(tower) == ""
    without = SimpleNamespace(main_input_name="input_features", config=tower.config, forward=lambda features: None)
    assert "takes no mask" in keeping_problem(without)

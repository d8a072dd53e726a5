# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speech through the whole model: clips that cannot be used, clips that say nothing, long clips, and known times."""

import math

import pytest
import tiny
import torch
from processor_parts import small_processor

from xllm import XLLMForSpeechRecognition
from xllm.modeling_xllm.cformer import CFormer
from xllm.modeling_xllm.configuration_cformer import CFormerConfig
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig


def recogniser() -> XLLMForSpeechRecognition:
    base = tiny.tiny_config()
    config = SpeechRecognitionConfig(
        text_config=base.text_config, audio_config=base.audio_config, modalities=tiny.tiny_rows(), vocab_size=10
    )
    return XLLMForSpeechRecognition(config).eval()


def set_alpha(model, alpha: float) -> None:
    """Every frame weighs `alpha`."""
    cif = model.model.interfaces["speech"].converter.cif
    with torch.no_grad():
        cif.weight_proj.weight.zero_()
        cif.weight_proj.bias.fill_(math.log(alpha / (1 - alpha)))


@pytest.fixture(scope="module")
def model():
    return tiny.tiny_model()


def broken(kind: str) -> dict[str, torch.Tensor]:
    inputs = tiny.speech(50, 23)
    if kind == "masked":
        inputs["input_features_mask"][1] = 0
    elif kind == "empty":
        inputs = {name: value[:, :0] for name, value in inputs.items()}
    elif kind == "flat":
        inputs["input_features"] = inputs["input_features"][:, None]
    else:
        inputs["input_features"][1, 5, 7] = float(kind)
    return inputs


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("masked", "speech: clip 1 has no frames, or all are masked"),
        ("empty", "speech: clip 0 has no frames"),
        ("nan", "speech: clip 1 holds NaN or Inf"),
        ("inf", "speech: clip 1 holds NaN or Inf"),
        ("flat", r"speech: inputs must have shape \(clips, frames, features\), got \(2, 1, 50, 80\)"),
    ],
)
def test_clips_that_cannot_be_used_are_named(model, kind, message):
    inputs = broken(kind)
    text = tiny.left_pad([tiny.prompt([tiny.SPEECH] * 7, 5), tiny.prompt([tiny.SPEECH] * 3, 5)])
    calls = (
        lambda: model.get_audio_features(**inputs),
        lambda: model(**text, **inputs),
        lambda: model.generate(**text, **inputs, max_new_tokens=2),
        lambda: recogniser().transcribe(**inputs),
        lambda: recogniser()(**inputs, labels=torch.tensor([[1], [2]])),
    )
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


def test_padding_may_hold_anything_that_the_encoder_masks(model):
    """Only real frames are checked."""
    inputs = tiny.speech(48, 24)
    expected = model.get_audio_features(**inputs).embeddings
    inputs["input_features"][1, 40:] = 1e4
    torch.testing.assert_close(model.get_audio_features(**inputs).embeddings, expected)


def test_a_clip_that_fires_nothing_is_an_empty_span():
    """The answer is that of the text alone, the clip's placeholders being masked."""
    model = tiny.tiny_model()
    set_alpha(model, 0.01)  # 7 frames gather 0.07: nothing, and no tail
    inputs = tiny.speech(50)
    out = model.get_audio_features(**inputs)
    assert out.pooler_output[0].shape == (0, 32)
    assert out.num_placeholders.tolist() == [7]
    silent, text = tiny.prompt([tiny.SPEECH] * 7, 5, 6), tiny.prompt(5, 6)
    logits = model(input_ids=torch.tensor([silent]), **inputs).logits
    torch.testing.assert_close(
        logits[0, -1], model(input_ids=torch.tensor([text])).logits[0, -1], atol=1e-5, rtol=1e-4
    )
    answer = model.generate(input_ids=torch.tensor([silent]), **inputs, max_new_tokens=4, do_sample=False)
    alone = model.generate(input_ids=torch.tensor([text]), max_new_tokens=4, do_sample=False)
    assert answer[0, len(silent) :].tolist() == alone[0, len(text) :].tolist()


def test_time_stamps_known_by_hand():
    """Frames of 80 ms that weigh 0.4 each fire at 1/0.4 = 2.5, 5, 7.5, ... frames: a token every 0.2 s."""
    model = recogniser()
    set_alpha(model, 0.4)
    ids, fire_frames = model.transcribe(**tiny.speech(160, 88), return_fire_frames=True)
    assert [len(row) for row in ids] == [8, 4]  # 20 and 11 frames; 11 * 0.4 = 4.4, a tail below 0.5
    texts, stamps = small_processor().batch_decode(ids, fire_frames=fire_frames)
    assert len(texts) == 2
    for row, count in zip(stamps, (8, 4)):
        assert [stamp["start"] for stamp in row] == pytest.approx([0.2 * n for n in range(count)], abs=1e-5)
        assert [stamp["end"] for stamp in row] == pytest.approx([0.2 * (n + 1) for n in range(count)], abs=1e-5)
    features = model.model.get_audio_features(**tiny.speech(160))
    assert (features.fire_frames[0] * small_processor().seconds_per_frame).tolist() == pytest.approx(
        [0.2 * (n + 1) for n in range(8)], abs=1e-5
    )


def test_ten_minutes_of_speech():
    """7,500 encoder frames, 3,000 tokens, 512 positions: every token has its neighbours, none untrained positions."""
    torch.manual_seed(0)
    config = CFormerConfig(
        encoder_hidden_size=8, cif_hidden_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    assert config.max_position_embeddings == 512
    cformer = CFormer(config).eval()
    with torch.no_grad():
        cformer.cif.weight_proj.weight.zero_()
        cformer.cif.weight_proj.bias.fill_(math.log(0.4 / 0.6))
        hidden = torch.randn(1, 7500, 8)
        out = cformer(hidden)
        assert out.lengths.tolist() == [3000]
        tokens = torch.relu(cformer.pre_proj(cformer.cif(hidden).embeddings))
        for start, part in ((0, slice(0, 384)), (1024, slice(1152, 1408)), (2488 + 72, slice(2688, 2900))):
            window = cformer.bert(inputs_embeds=tokens[:, start : start + 512]).last_hidden_state
            expected = window[0, part.start - start : part.stop - start]
            torch.testing.assert_close(out.embeddings[0, part], expected, atol=1e-5, rtol=1e-4)

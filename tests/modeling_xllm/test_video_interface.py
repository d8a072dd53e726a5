# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Image and video interfaces computed by hand from their parts; the Q-Former's attention and the published norm."""

import pytest
import torch
from tiny import FRAMES, PIXELS, QUERIES, prompt, tiny_model, tiny_rows
from torch.nn.functional import scaled_dot_product_attention

from xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import StageCheckpointError
from xllm.training.starts import start_from


def rows(shared: bool, **changes) -> dict:
    """The authors' code (one Q-Former for image and video) or the paper's drawing (two)."""
    table = tiny_rows()
    if not shared:
        table["video"].shares_converter_with = None
        table["video"].qformer_config = type(table["image"].qformer_config)(**table["image"].qformer_config.to_dict())
    for name, value in changes.items():
        setattr(table["video"], name, value)
    return table


@pytest.mark.parametrize("shared", [True, False])
@torch.no_grad()
def test_a_video_is_its_real_frames_in_time_order(shared):
    model = tiny_model(rows=rows(shared)).model
    image, video = model.interfaces["image"], model.interfaces["video"]
    videos = torch.randn(2, FRAMES, 3, PIXELS, PIXELS)
    features = model.get_video_features(videos, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    qformer = image.converter.qformer if shared else video.converter.qformer
    assert hasattr(video.converter, "qformer") is not shared

    def by_hand(frame):
        states = model.vision_tower(frame[None]).last_hidden_state
        tokens = qformer(query_embeds=video.converter.query_tokens, encoder_hidden_states=states).last_hidden_state
        return tokens[0] @ video.adapter.weight.T + video.adapter.bias

    expected = [torch.cat([by_hand(frame) for frame in videos[0]]), by_hand(videos[1, 0])]
    assert [len(tokens) for tokens in features.pooler_output] == [QUERIES * FRAMES, QUERIES]
    for tokens, right in zip(features.pooler_output, expected):
        torch.testing.assert_close(tokens, right, atol=1e-4, rtol=1e-4)
    assert features.num_placeholders.tolist() == [QUERIES * FRAMES, QUERIES]


def test_gradients_of_a_shared_and_an_own_qformer():
    for shared in (True, False):
        model = tiny_model(rows=rows(shared))
        model.get_video_features(torch.randn(1, 2, 3, PIXELS, PIXELS)).embeddings.square().sum().backward()
        moved = {name for name, p in model.model.interfaces.named_parameters() if p.grad is not None and p.grad.any()}
        owner = "image" if shared else "video"
        assert {name.split(".")[0] for name in moved if "qformer" in name} == {owner}
        assert not any(name.startswith("image.adapter") or name == "image.converter.query_tokens" for name in moved)


@torch.no_grad()
def test_the_number_of_frames_and_of_queries_is_free():
    model = tiny_model(rows=rows(True, num_frames=7, num_query_tokens=3))
    videos = torch.randn(1, 7, 3, PIXELS, PIXELS)
    assert len(model.get_video_features(videos).pooler_output[0]) == 21
    ids = torch.tensor([prompt([111] * 12, 11)])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0, 0]])
    first = model(input_ids=ids, pixel_values_videos=videos, video_frame_mask=mask).logits
    with pytest.raises(ValueError, match="video: the text holds 12 placeholder tokens, but the 1 item.* need 21"):
        model(input_ids=ids, pixel_values_videos=videos, video_frame_mask=torch.ones(1, 7))
    torch.testing.assert_close(
        model(input_ids=ids, pixel_values_videos=videos[:, :4], video_frame_mask=mask[:, :4]).logits, first
    )


@torch.no_grad()
def test_an_own_qformer_starts_from_the_images():
    model = tiny_model(rows=rows(False))
    image, video = model.model.interfaces["image"], model.model.interfaces["video"]
    picture = torch.randn(1, 3, PIXELS, PIXELS)
    before = model.get_video_features(picture[None]).embeddings
    start_from(model, {"video": "image"})
    after = model.get_video_features(picture[None]).embeddings
    torch.testing.assert_close(after, model.get_image_features(picture).embeddings)
    assert not torch.allclose(before, after)
    assert image.converter.query_tokens.data_ptr() != video.converter.query_tokens.data_ptr()
    other = tiny_model(rows=rows(True, num_query_tokens=QUERIES + 1))
    message = (
        r"init_from: image for video does not fit .* converter.query_tokens \(\[1, 2, 16\], expected \[1, 3, 16\]"
    )
    with pytest.raises(StageCheckpointError, match=message):
        start_from(other, {"video": "image"})


def test_ln_vision_is_the_published_one(tmp_path):
    """LAVIS's LayerNorm(1408) has PyTorch's eps of 1e-5, transformers' Blip2VisionConfig 1e-6."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    for each in (model, XLLMForConditionalGeneration.from_pretrained(tmp_path)):
        tower = each.model.vision_tower
        assert {layer.layer_norm1.eps for layer in tower.encoder.layers} == {1e-6}
        torch.nn.init.ones_(tower.post_layernorm.weight)
        torch.nn.init.zeros_(tower.post_layernorm.bias)
        # Half +a, half -a: the variance is a^2 = 1e-5, so the norm gives a / sqrt(2e-5) = 1 / sqrt(2).
        values = torch.tensor([1e-5**0.5, -(1e-5**0.5)]).repeat(8)
        expected = torch.tensor([0.5**0.5, -(0.5**0.5)]).repeat(8)
        torch.testing.assert_close(tower.post_layernorm(values), expected, atol=1e-4, rtol=0)


def test_the_qformer_runs_on_sdpa(monkeypatch):
    calls = []

    def spy(*args, **kwargs):
        calls.append(1)
        return scaled_dot_product_attention(*args, **kwargs)

    model = tiny_model()
    pictures = torch.randn(2, 3, PIXELS, PIXELS)
    qformer = model.model.interfaces["image"].converter.qformer
    assert qformer.config._attn_implementation == "sdpa"
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    states = model.model.vision_tower(pictures).last_hidden_state
    calls.clear()
    queries = model.model.interfaces["image"].converter.query_tokens.expand(2, -1, -1)
    fast = qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
    assert len(calls) == 3  # two layers of self-attention, every second one cross-attends
    qformer.set_attn_implementation("eager")
    eager = qformer(query_embeds=queries, encoder_hidden_states=states).last_hidden_state
    torch.testing.assert_close(fast, eager, atol=1e-5, rtol=1e-4)

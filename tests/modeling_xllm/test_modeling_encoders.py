# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What of the encoders is trained, run and left without a trace, module by module."""

import inspect
from contextlib import nullcontext

import pytest
import torch
from tiny import (
    FRAMES,
    MELS,
    PIXELS,
    assert_equal_whatever_is_made_by_default,
    tiny_config,
    tiny_model,
    tiny_rows,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel, Wav2Vec2Config, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from xllm import X2LConfig, XLLMEncoderModel, XLLMForConditionalGeneration, XLLMModel
from xllm.modeling_xllm.modeling_encoders import _without_traces, is_sharded, is_trainable, train_unless_frozen


WAVES = Wav2Vec2Config(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, conv_dim=(8, 8),
    conv_kernel=(10, 4), conv_stride=(80, 4), num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
)  # fmt: skip


def test_who_is_trained():
    plain = nn.Sequential(nn.Sequential(nn.BatchNorm1d(2, affine=False)), nn.Linear(2, 2), nn.Dropout())
    assert is_trainable(plain)
    plain[1].requires_grad_(False)
    assert not is_trainable(plain)
    assert not is_trainable(plain[0])  # parameters that are None
    plain[1].bias.requires_grad_(True)
    assert is_trainable(plain)


def test_the_frozen_stay_in_eval_mode():
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Dropout())
    module[0].eval()  # one part is in another mode than the rest
    train_unless_frozen(module, True)
    assert all(part.training for part in module.modules())
    train_unless_frozen(module, False)
    assert not any(part.training for part in module.modules())
    module.requires_grad_(False)[1].train()
    train_unless_frozen(module, True)
    assert not any(part.training for part in module.modules())


def test_methods_of_any_model_take_what_they_take_there():
    """Names and defaults: kernels of strangers are refused unless they are asked for."""
    for name in ("set_attn_implementation", "post_init", "train"):
        ours, theirs = (inspect.signature(getattr(kind, name)) for kind in (XLLMEncoderModel, PreTrainedModel))
        assert {key: one.default for key, one in ours.parameters.items()} == {
            key: one.default for key, one in theirs.parameters.items()
        }


@pytest.mark.parametrize("kind", [XLLMEncoderModel, XLLMModel])
def test_a_model_is_initialised_once_when_all_its_parts_are_there(kind, monkeypatch):
    seen, post_init = [], PreTrainedModel.post_init

    def spied(model):
        if isinstance(model, XLLMEncoderModel):
            seen.append([name for name, _ in model.named_children()])
        post_init(model)

    monkeypatch.setattr(PreTrainedModel, "post_init", spied)
    assert [name for name, _ in kind(tiny_config()).named_children()] == seen[0]
    assert len(seen) == 1


def test_who_is_sharded():
    module = nn.Sequential(nn.Linear(2, 2))
    assert not is_sharded(module)
    module[0].bias.ds_id = 3  # as ZeRO-3 marks them
    assert is_sharded(module)
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].__class__ = type("FSDPLinear", (FSDPModule, nn.Linear), {})  # as `fully_shard` does
    assert is_sharded(module)


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_run_in_passing_leaves_no_trace(fails):
    module = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.Dropout())
    before = {name: value.clone() for name, value in module.named_buffers()}
    own = dict(module.named_buffers())
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    try:
        with _without_traces([module], torch.device("cpu")):
            module(torch.randn(5, 2))
            assert module[0].num_batches_tracked == 1
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert torch.equal(torch.rand(3), expected)
    for name, value in module.named_buffers():
        assert value is own[name]
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(("trained", "runs"), [("image", True), ("speech", False)])
def test_a_row_stands_in_for_the_converter_that_it_shares(trained, runs):
    """Of a process without videos: their converter is the images' one."""
    model = tiny_model("llama").requires_grad_(False)
    model.model.interfaces[trained].requires_grad_(True)
    assert model.model.stand_in("video") is None  # in eval mode
    model.train()
    assert (model.model.stand_in("video") is not None) == runs


@pytest.mark.parametrize("modality", ["image", "video", "speech"])
def test_a_stand_in_is_made_where_the_interface_is(modality):
    model = tiny_model("llama").requires_grad_(False)
    model.model.interfaces[modality].requires_grad_(True)
    model.train()
    assert_equal_whatever_is_made_by_default(lambda: {"zero": model.model.stand_in(modality)})


def test_random_numbers_are_kept_for_the_device_that_draws_them(monkeypatch):
    forked = []
    monkeypatch.setattr(
        torch.random, "fork_rng", lambda devices, device_type: forked.append((devices, device_type)) or nullcontext()
    )
    for device in (torch.device("cpu"), torch.device("xpu", 1)):
        with _without_traces([], device):
            pass
    assert forked == [([], "cpu"), ([torch.device("xpu", 1)], "xpu")]


def test_a_row_without_an_encoder():
    row = X2LConfig(encoder=None, encoder_hidden_size=6, input_name="values", mask_name="value_mask",
                    converter="linear", placeholder_token="<V>", token_id=115)  # fmt: skip
    model = tiny_model("llama", rows={**tiny_rows(), "status": row})
    values, mask = torch.randn(2, 3, 6), torch.tensor([[1, 1, 0], [1, 0, 0]])
    output, real = model.model.encode("status", values, mask)
    assert output.last_hidden_state is values
    assert (real.dtype, real.tolist()) == (torch.bool, mask.bool().tolist())
    assert model.model.encode("status", values)[1] is None
    features = model.get_features("status", values)
    assert features.num_placeholders.tolist() == [3, 3]
    assert [len(one) for one in model.get_features("status", values, mask).pooler_output] == [2, 1]
    assert model.model.interfaces["status"].converter.window == 1
    model.requires_grad_(False).model.interfaces["status"].requires_grad_(True)
    assert model.train().model.stand_in("status").item() == 0
    with pytest.raises(ValueError, match="modality must be one of .*status.*, got 'sound'"):
        model.get_features("sound", values)


@pytest.mark.parametrize("trains", [False, True])
def test_a_frozen_tower_keeps_no_graph(trains):
    """And missing frames are not encoded."""
    model = tiny_model("llama")
    tower = model.model.vision_tower.requires_grad_(trains)
    seen = []
    tower.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    videos, mask = torch.randn(2, FRAMES, 3, PIXELS, PIXELS), torch.tensor([[1] * FRAMES, [1, 0, 0]])
    output, real = model.model.encode("video", videos.requires_grad_(), mask)
    assert output.last_hidden_state.requires_grad == trains
    with torch.no_grad():
        assert not model.model.encode("video", videos[:, :1])[0].last_hidden_state.requires_grad
    del seen[1:]
    assert real is None
    whole = model.model.encode("video", videos, torch.ones_like(mask))[0].last_hidden_state
    assert seen == [FRAMES + 1, 2 * FRAMES]
    torch.testing.assert_close(output.last_hidden_state, whole[: FRAMES + 1])
    assert tower.post_layernorm.eps == 1e-5


@pytest.mark.parametrize("modality", ["video", "speech"])
def test_without_a_mask_all_of_an_item_is_real(modality):
    model = tiny_model("llama").eval()
    shape = (2, FRAMES, 3, PIXELS, PIXELS) if modality == "video" else (2, 37, MELS)
    inputs, ones = torch.randn(shape), torch.ones(shape[:2]).long()

    def numbers(mask=None) -> dict:
        features = model.get_features(modality, inputs, mask)
        return {name: getattr(features, name) for name in ("num_placeholders", "pooler_output", "last_hidden_state")}

    expected = numbers(ones)
    torch.testing.assert_close(numbers(), expected)
    assert len(expected["pooler_output"]) == 2
    assert_equal_whatever_is_made_by_default(numbers)


def test_a_clip_has_placeholders_by_its_length():
    """Of 16,010 samples its convolutions make 201, then 50 frames; there is a placeholder for each 320 begun."""
    row = tiny_rows()["speech"]
    row.subsampling_factor = None
    model = tiny_model("llama", rows={"speech": row}, audio_config=WAVES)
    for mask in (torch.ones(1, 16_010), None):
        features = model.get_features("speech", torch.randn(1, 16_010), mask)
        assert features.last_hidden_state.shape[1] == 50
        assert features.num_placeholders.tolist() == [51]


def test_no_tower_is_made_that_no_row_reads():
    row = X2LConfig(encoder="a", input_name="waves", converter="linear", placeholder_token="<A>", token_id=115)
    model = XLLMEncoderModel(tiny_config("llama", rows={"a": row}, extra_encoders={"a": WAVES, "b": WAVES}))
    assert (model.vision_tower, model.audio_tower, list(model.extra_towers)) == (None, None, ["a"])


def test_of_an_encoder_and_a_decoder_the_half_that_listens_is_made():
    heads = {f"{half}_attention_heads": 2 for half in ("encoder", "decoder")}
    sizes = WhisperConfig(d_model=16, encoder_layers=1, decoder_layers=1, **heads)
    assert type(XLLMEncoderModel._build_tower(sizes)) is WhisperEncoder


def test_pictures_are_known_by_their_shape_whatever_the_encoder_calls_them():
    model, pictures = tiny_model("llama").model, torch.randn(1, 3, PIXELS, PIXELS)
    expected = model.encode("image", pictures)[0].last_hidden_state
    model.vision_tower.main_input_name = "pictures"
    torch.testing.assert_close(model.encode("image", pictures)[0].last_hidden_state, expected)


def test_every_vector_of_a_picture_may_be_a_token():
    row = X2LConfig(
        encoder="vision", input_name="pixel_values", converter="linear", placeholder_token="<P>", token_id=5
    )
    model = tiny_model("llama", rows={"picture": row})
    vectors = (PIXELS // 14) ** 2 + 1
    assert model.get_image_features(torch.randn(2, 3, PIXELS, PIXELS)).num_placeholders.tolist() == [vectors] * 2


def test_encoders_alone_begin_as_those_of_a_whole_model():
    queries = XLLMEncoderModel(tiny_config()).interfaces["image"].converter.query_tokens
    assert 0 < queries.std() < 1


def test_an_automatic_device_map_cuts_beside_interfaces():
    """The map is made of a model without values; FSDP, which reads the same names later, never sees this one."""
    model = XLLMForConditionalGeneration(tiny_config("llama"))
    assert "LlamaDecoderLayer" in model._no_split_modules
    assert "X2LInterface" not in model._no_split_modules
    with torch.device("meta"):
        empty = XLLMForConditionalGeneration(tiny_config("llama"))
    assert empty._no_split_modules == model._no_split_modules | {"X2LInterface"}
    assert "X2LInterface" not in XLLMEncoderModel(tiny_config(rows={}))._no_split_modules  # of no parameters


def test_kernels_of_strangers_are_asked_for_as_they_are_given(monkeypatch):
    asked, model = [], tiny_model("llama")

    def check(self, name, *args, allow_all_kernels=False, **kwargs):
        asked.append((name, allow_all_kernels))
        return "sdpa"

    monkeypatch.setattr(XLLMForConditionalGeneration, "_check_and_adjust_attn_implementation", check)
    for allowed in (False, True):
        model.set_attn_implementation("somebody/kernel", allowed)
    assert asked == [("somebody/kernel", False), ("somebody/kernel", True)]


def test_code_from_the_hub_is_known_as_such(monkeypatch):
    assert XLLMEncoderModel.is_custom_code() is False
    monkeypatch.setattr(XLLMEncoderModel, "_auto_class", "AutoModel")
    assert XLLMEncoderModel.is_custom_code() is True


def test_what_has_no_parameters_follows_the_converter_that_it_is_in():
    model = tiny_model("llama").requires_grad_(False)
    converter = model.model.interfaces["image"].converter
    converter.dropout = nn.Dropout()
    assert not model.train().model.interfaces["image"].converter.dropout.training
    converter.query_tokens.requires_grad_(True)
    assert model.train().model.interfaces["image"].converter.dropout.training


def test_a_mode_is_set_in_a_line_with_others():
    model = XLLMEncoderModel(tiny_config())
    assert model.eval() is model.train() is model

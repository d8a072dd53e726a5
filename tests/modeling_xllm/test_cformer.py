# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The C-Former: tokens of a clip do not depend on its batch, any BERT can start it, long clips keep their context."""

from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig

from xllm.modeling_xllm import cformer as cformer_module
from xllm.modeling_xllm.cformer import CFormer
from xllm.modeling_xllm.configuration_cformer import CFormerConfig


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tiny_cformer(**fields) -> CFormer:
    defaults = {"encoder_hidden_size": 8, "cif_hidden_size": 8, "max_position_embeddings": 32, **SIZES}
    cformer = CFormer(CFormerConfig(**{**defaults, **fields})).eval()
    with torch.no_grad():
        for parameter in cformer.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return cformer


def clips(*lengths, D=8):
    hidden = torch.randn(len(lengths), max(lengths), D)
    return hidden, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_defaults_are_the_papers_sizes():
    config = CFormerConfig()
    assert (config.encoder_hidden_size, config.cif_hidden_size, config.hidden_size) == (512, 512, 768)
    assert (config.num_hidden_layers, config.max_position_embeddings) == (12, 512)
    assert (config.cif_fire_threshold, config.cif_tail_threshold, config.cif_one_token_per_frame) == (0.99, 0.5, True)
    assert (config.cif_predictor, config.cif_conv_kernel, config.cif_dropout) == ("conv", 3, 0.1)
    ours, base = config.bert_config().to_dict(), BertConfig().to_dict()  # bert-base's
    assert {name: ours[name] for name in base if ours[name] != base[name]} == {"vocab_size": 1, "use_cache": False}
    with torch.device("meta"):
        cformer = CFormer(config)
    bert = sum(p.numel() for p in cformer.bert.parameters())
    assert bert == 102_267_648 - 16_226_304 - 590_592  # bert-base-chinese without its words and pooler
    assert sum(p.numel() for p in cformer.pre_proj.parameters()) == 393_984


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cif_predictor": "lstm"}, "cif_predictor must be one of conv, dense, linear, none, got 'lstm'"),
        ({"transformer": "gpt"}, "transformer must be one of bert, none"),
        ({"cif_conv_kernel": 4}, "odd"),
        ({"cif_conv_kernel": -1}, "odd"),
        ({"cif_fire_threshold": 0.0}, "cif_fire_threshold"),
        ({"cif_fire_threshold": 1.5}, "cif_fire_threshold"),
        ({"cif_tail_threshold": -0.5}, "cif_tail_threshold"),
        ({"cif_tail_threshold": 1.5}, "cif_tail_threshold"),
        ({"num_words": 0}, "num_words must be at least 1"),
        ({"num_attention_heads": 7}, "hidden_size 768 is not a multiple"),
    ],
)
def test_bad_config_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        CFormerConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"cif_conv_kernel": 1},
        {"cif_fire_threshold": 1},
        {"cif_tail_threshold": 0},
        {"cif_tail_threshold": 1},
        {"num_words": 1},
        {"transformer": "none", "hidden_size": 512, "num_attention_heads": 7},
    ],
    ids=str,
)
def test_what_a_config_may_just_have(fields):
    assert CFormerConfig(**fields).to_dict() == {**CFormerConfig().to_dict(), **fields}


def test_is_cif_then_projection_then_bert():
    cformer = tiny_cformer()
    hidden, _ = clips(20)
    out = cformer(hidden)
    fired = cformer.cif(hidden)
    tokens = torch.relu(cformer.pre_proj(fired.embeddings))
    expected = cformer.bert(inputs_embeds=tokens, attention_mask=fired.mask.long()).last_hidden_state
    torch.testing.assert_close(out.embeddings, expected)
    assert out.embeddings.shape == (1, fired.lengths[0], 16)
    for name in ("mask", "lengths", "fire_frames", "alphas", "quantity"):
        assert torch.equal(out[name], fired[name])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("positions", [32, 6])
def test_a_clip_does_not_depend_on_its_batch(attention, positions):
    cformer = tiny_cformer(max_position_embeddings=positions)
    cformer.set_attn_implementation(attention)
    hidden, mask = clips(50, 9, 0, 23)
    out = cformer(hidden, mask)
    assert out.lengths[0] > 6  # with 6 positions the first clip is read in windows, the second is not
    assert out.lengths[2] == 0
    assert out.embeddings.isfinite().all()
    assert not out.embeddings[~out.mask].any()
    for b, length in ((0, 50), (1, 9), (3, 23)):
        alone = cformer(hidden[b : b + 1, :length])
        torch.testing.assert_close(alone.embeddings[0], out.embeddings[b, : out.lengths[b]], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("processes", [1, 2])
def test_clips_that_fire_nothing(monkeypatch, processes):
    """On several processes there is room for a token, so that every layer is run."""
    monkeypatch.setattr(cformer_module, "world_size", lambda: processes)
    cformer, width = tiny_cformer(), processes - 1
    out = cformer(torch.randn(2, 5, 8), torch.zeros(2, 5))
    assert out.embeddings.shape == (2, width, 16)
    assert out.mask.shape == out.fire_frames.shape == (2, width)
    assert not out.mask.any()
    assert out.lengths.tolist() == [0, 0]
    out.embeddings.sum().backward()
    assert not any(parameter.grad.any() for parameter in cformer.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("transformer", ["bert", "none"])
def test_clips_that_fire_nothing_reach_every_weight_beside_another_process(monkeypatch, transformer):
    """Their gradients are zero and not absent, or the processes would wait for each other; the room stays empty."""
    monkeypatch.setattr(cformer_module, "world_size", lambda: 2)
    cformer = tiny_cformer(transformer=transformer, cif_hidden_size=10)
    hidden = torch.randn(2, 5, 8)
    cformer.cif.weight_proj.bias.data.fill_(-5.0)  # five weights of less than 0.01: no token, yet not of no quantity
    cformer.cif.weight_proj.weight.data.zero_()
    out = cformer(hidden)
    assert out.quantity.gt(0).all()
    assert out.lengths.tolist() == [0, 0]
    assert not out.embeddings.any()
    out.embeddings.sum().backward()
    gradients = {name: parameter.grad for name, parameter in cformer.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert not any(gradient.any() for gradient in gradients.values())


def test_token_level_features_that_hold_nothing_have_room_beside_another_process(monkeypatch):
    monkeypatch.setattr(cformer_module, "world_size", lambda: 2)
    out = tiny_cformer(cif_predictor="none")(torch.randn(2, 0, 8))
    assert (out.embeddings.shape, out.mask.tolist()) == ((2, 1, 16), [[False], [False]])


def test_processes_are_those_of_torch_distributed(monkeypatch):
    assert cformer_module.world_size() == 1
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    assert cformer_module.world_size() == 3


@pytest.mark.parametrize("token_level", [False, True])
@pytest.mark.parametrize("mask", [None, torch.ones(2, 12)])
def test_a_graph_reads_nothing_and_stays_on_its_device(monkeypatch, token_level, mask):
    """Tensors without values refuse to be read and to meet those of another device."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    cformer = tiny_cformer().to("meta")
    mask = None if mask is None else mask.to("meta")
    assert cformer(torch.ones(2, 12, 8, device="meta"), mask, token_level=token_level).embeddings.is_meta


def test_windows_stay_on_their_device(monkeypatch):
    monkeypatch.setattr(cformer_module, "Asked", lambda _: SimpleNamespace(values=lambda: [3 + 1]))
    cformer = tiny_cformer(max_position_embeddings=8, cif_predictor="none").to("meta")
    assert cformer(torch.ones(2, 15, 8, device="meta")).embeddings.shape == (2, 15, 16)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_clip_of_one_token_does_not_depend_on_its_batch(attention):
    cformer = tiny_cformer(cif_predictor="none")
    cformer.set_attn_implementation(attention)
    hidden, mask = clips(5, 1)
    both, alone = cformer(hidden, mask), cformer(hidden[1:, :1])
    torch.testing.assert_close(both.embeddings[1:, :1], alone.embeddings)


def test_a_graph_has_room_for_a_token_per_frame_unless_targets_say_how_many(monkeypatch):
    cformer, (hidden, mask) = tiny_cformer(transformer="none"), clips(12, 6)
    expected = cformer(hidden, mask)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    wide = cformer(hidden, mask)
    assert wide.embeddings.shape == (2, 12, 8)
    torch.testing.assert_close(wide.embeddings[:, : expected.mask.shape[1]], expected.embeddings)
    assert cformer(hidden, mask, torch.tensor([5, 2])).embeddings.shape == (2, 5, 8)


def test_layers_may_be_computed_again_in_the_backward_pass():
    cformer, (hidden, mask), found = tiny_cformer().train(), clips(30, 12), []
    for again in (False, True):
        if again:
            cformer.activation_checkpointing_enable()
        torch.manual_seed(0)  # the same dropout
        found += torch.autograd.grad(cformer(hidden, mask).embeddings.square().sum(), cformer.pre_proj.weight)
    torch.testing.assert_close(*found)
    assert found[0].any()


def test_targets_set_the_number_of_tokens():
    cformer = tiny_cformer()
    hidden, mask = clips(30, 12)
    out = cformer(hidden, mask, torch.tensor([7, 3]))
    assert out.lengths.tolist() == [7, 3]
    out.embeddings.sum().backward()
    assert all(parameter.grad is not None for parameter in cformer.parameters())


def test_windows_keep_context_and_tokens_in_place():
    """The transformer replaced by one that adds the mean of its window's tokens: what each token saw is readable."""
    cformer = tiny_cformer(max_position_embeddings=8)
    seen = []

    class Spy(torch.nn.Module):
        config = cformer.bert.config

        def forward(self, inputs_embeds, attention_mask):
            seen.append(inputs_embeds.shape)
            index = inputs_embeds[..., :1]
            first = index[:, :1].expand_as(index)
            output = torch.cat([index, first, inputs_embeds[..., 2:]], -1)
            return type("Output", (), {"last_hidden_state": output})

    cformer.bert = Spy()
    lengths = torch.tensor([21, 8, 13])
    mask = torch.arange(21) < lengths[:, None]
    tokens = torch.arange(21.0)[None, :, None].expand(3, 21, 16)
    out = cformer._contextualise_windows(tokens, mask, lengths)
    assert seen == [(5 + 1 + 3, 8, 16)]  # only the windows that hold tokens of their clip
    torch.testing.assert_close(out[..., 0][mask], tokens[..., 0][mask])  # every token is where it was
    for b, length in enumerate(lengths.tolist()):
        for token in range(length):
            start = int(out[b, token, 1])
            assert start <= token < start + 8
            before, after = token - start, start + 7 - token
            # At least 2 tokens of context on each side, wherever the clip has them.
            assert before >= min(2, token)
            assert after >= min(2, length - 1 - token)
    assert not out[1, :8, 1].any()  # a clip that fits is read in one piece


def test_fc_variant_has_no_transformer():
    cformer = tiny_cformer(transformer="none", cif_hidden_size=10)
    assert cformer.config.hidden_size == 10
    hidden, mask = clips(12, 6)
    out = cformer(hidden, mask)
    torch.testing.assert_close(out.embeddings, cformer.cif(hidden, mask).embeddings)
    assert {name.split(".")[0] for name, _ in cformer.named_parameters()} == {"cif"}


def test_missing_weights_get_their_own_initialisation(tmp_path):
    """A checkpoint without the CIF: what is loaded afterwards starts as in a new C-Former, not at N(0, 0.02)."""
    cformer = tiny_cformer(cif_hidden_size=24)
    kept = {key: value for key, value in cformer.state_dict().items() if not key.startswith("cif.")}
    cformer.save_pretrained(tmp_path, state_dict=kept)
    loaded, info = CFormer.from_pretrained(tmp_path, output_loading_info=True)
    assert {key.split(".")[0] for key in info["missing_keys"]} == {"cif"}
    assert not info["unexpected_keys"]
    assert 0.4 < loaded.cif.output_proj.weight.abs().max() <= (6 / 32) ** 0.5
    conv = loaded.cif.conv.weight
    assert 0.94 < conv.abs().max() * conv[0].numel() ** 0.5 <= 1  # as torch begins a convolution
    assert not loaded.cif.weight_proj.bias.any()
    assert torch.equal(loaded.pre_proj.weight, cformer.pre_proj.weight)
    new = CFormer(cformer.config).pre_proj
    assert 0.015 < new.weight.std() < 0.025  # `initializer_range`
    assert not new.bias.any()


@pytest.mark.parametrize("kind", ["conv", "dense", "linear"])
def test_weights_are_dropped_out_of_a_predictor_with_layers(kind):
    cformer = tiny_cformer(cif_predictor=kind, cif_predictor_size=5, cif_dropout=0.5).train()
    hidden, mask = clips(20)
    first, second = (cformer.cif.predict_alphas(hidden, mask) for _ in range(2))
    assert torch.equal(first, second) is (kind == "linear")


def test_token_level_features_are_those_given():
    """Padding may hold anything."""
    hidden, mask = clips(4, 2)
    out = tiny_cformer(transformer="none", cif_predictor="none")(hidden.masked_fill(~mask[..., None], 9.0), mask)
    assert torch.equal(out.embeddings, hidden * mask[..., None])
    assert torch.equal(out.mask, mask)


def test_round_trip(tmp_path):
    cformer = tiny_cformer(cif_predictor="dense", cif_predictor_size=5)
    cformer.save_pretrained(tmp_path)
    hidden, mask = clips(20, 11)
    loaded = CFormer.from_pretrained(tmp_path)
    assert loaded.config.cif_predictor_size == 5
    assert torch.equal(loaded(hidden, mask).embeddings, cformer(hidden, mask).embeddings)

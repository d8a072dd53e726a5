# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Tokens to their placeholders, frames to their series: against plain loops."""

import copy

import pytest
import torch

from xllm import X2LConfig
from xllm.modeling_xllm.converters import ConverterOutput
from xllm.modeling_xllm.x2l_interfaces import X2LInterface, X2LOutput, join_items, place_frames, place_media


def items(lengths, owned, D=3):
    """Items of so many tokens, padded with ones, and the placeholders that they own."""
    K = max(lengths, default=0)
    mask = torch.arange(K) < torch.tensor(lengths)[:, None]
    return X2LOutput(torch.randn(len(lengths), K, D), embeddings=torch.randn(len(lengths), K, D), mask=mask,
                     num_placeholders=torch.tensor(owned))  # fmt: skip


@pytest.mark.parametrize("seed", range(6))
def test_media_are_placed_as_a_loop_would(seed):
    """Items may own more placeholders than they have tokens, or none; rows may have none."""
    torch.manual_seed(seed)
    owned = torch.randint(0, 4, (5,)).tolist()
    owned[seed % 5] = 5
    features = items([min(one, int(torch.randint(0, 5, ()))) for one in owned], owned)
    token_mask = torch.zeros(4, 10).bool()
    token_mask.view(-1)[torch.randperm(40)[: sum(owned)]] = True
    embeds, keep = place_media(token_mask, features)
    expected, filled = torch.zeros(4, 10, 3), ~token_mask
    places = iter(token_mask.nonzero().tolist())
    for item, number in enumerate(owned):
        for slot in range(number):
            row, column = next(places)
            if features.mask[item, slot : slot + 1].any():
                expected[row, column], filled[row, column] = features.embeddings[item, slot], True
    assert torch.equal(embeds, expected)
    assert torch.equal(keep, filled)


def test_placeholders_and_items_must_be_as_many():
    token_mask = torch.tensor([[True, True, False]])
    with pytest.raises(ValueError, match=r"clip: the text holds 2 placeholder tokens.* 2 item\(s\) given need 3"):
        place_media(token_mask, items([1, 1], [1, 2]), "clip")
    nothing = X2LOutput(
        embeddings=torch.zeros(0, 2, 3), mask=torch.zeros(0, 2).bool(), num_placeholders=torch.zeros(0)
    )
    embeds, keep = place_media(token_mask & False, nothing)
    assert (embeds.shape, embeds.any().item(), keep.all().item()) == ((1, 3, 3), False, True)


def test_frames_are_placed_in_their_series():
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    real = torch.arange(1.0, 7.0).view(3, 2)  # of the three real frames
    expected = [[[1, 2], [3, 4], [0, 0]], [[5, 6], [0, 0], [0, 0]]]
    assert place_frames(real, mask).tolist() == expected
    every = torch.arange(1.0, 13.0).view(6, 2)  # of all six
    assert place_frames(every, mask).tolist() == [[[1, 2], [3, 4], [0, 0]], [[7, 8], [0, 0], [0, 0]]]


def test_tokens_of_pictures_and_of_series():
    pictures = torch.randn(3, 2, 4)
    alone = X2LInterface._arrange(pictures, None)
    assert torch.equal(alone.embeddings, pictures)
    torch.testing.assert_close(alone.mask, torch.ones(3, 2).bool())  # of the same dtype, too
    assert alone.num_placeholders.tolist() == [2, 2, 2]
    series = X2LInterface._arrange(pictures, torch.tensor([[1, 1], [1, 0]]))
    assert torch.equal(series.embeddings[0], pictures[:2].flatten(0, 1))
    assert torch.equal(series.embeddings[1], torch.cat([pictures[2], torch.zeros(2, 4)]))
    assert series.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert series.num_placeholders.tolist() == [4, 2]


@pytest.mark.parametrize("turned", [False, True])
def test_items_of_two_kinds_are_joined(turned):
    both = [items([1, 3], [1, 4]), items([2], [2])]
    first, second = both[::-1] if turned else both
    for one in both:  # as wide as no item is long
        one.embeddings = one.embeddings.repeat(1, 1, 2)
    joined = join_items(first, second)
    assert joined.embeddings.shape == (3, 3, 6)
    assert joined.mask.shape == (3, 3)
    assert joined.mask.sum(1).tolist() == ([2, 1, 3] if turned else [1, 3, 2])
    assert joined.num_placeholders.tolist() == ([2, 1, 4] if turned else [1, 4, 2])
    number = len(first.mask)
    assert torch.equal(joined.embeddings[:number, : first.mask.shape[1]], first.embeddings)
    assert torch.equal(joined.embeddings[number:, : second.mask.shape[1]], second.embeddings)
    assert torch.equal(joined.mask[number:, : second.mask.shape[1]], second.mask)


@pytest.mark.parametrize("owned", [None, [4, 5]])
@pytest.mark.parametrize("mask", [None, torch.tensor([[True, True, True], [True, False, False]])])
def test_an_interface_alone(mask, owned):
    """Without a mask every vector is a real token."""
    row = X2LConfig(
        converter="linear", encoder=None, encoder_hidden_size=6, language_hidden_size=4, adapter_activation="relu"
    )
    interface, hidden = X2LInterface(row, row), torch.randn(2, 3, 6)
    output = interface(hidden, mask, num_placeholders=None if owned is None else torch.tensor(owned))
    assert torch.equal(output.embeddings, interface.adapter(interface.converter(hidden).embeddings).relu())
    torch.testing.assert_close(output.mask, torch.ones(2, 3).bool() if mask is None else mask)
    assert output.num_placeholders.tolist() == (owned or ([3, 3] if mask is None else [3, 1]))
    interface.converter.forward = lambda hidden, mask: ConverterOutput(embeddings=hidden)  # says nothing of masks
    assert torch.equal(interface(hidden, mask).mask, output.mask)


@pytest.mark.parametrize("is_shared", [False, True])
def test_query_tokens_of_pictures_and_of_a_series(is_shared):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"encoder_hidden_size": 6}
    row = X2LConfig(converter="qformer", encoder_hidden_size=6, language_hidden_size=4, num_query_tokens=2,
                    qformer_config=sizes)  # fmt: skip
    interface, hidden = X2LInterface(row, row).eval(), torch.randn(2, 3, 6)
    if is_shared:
        owner, interface = interface, X2LInterface(copy.copy(row), row)
        interface.share(owner)
    pictures, series = interface(hidden), interface(hidden, frame_mask=torch.tensor([[1, 1, 0]]))
    assert (pictures.embeddings.shape, pictures.num_placeholders.tolist()) == ((2, 2, 4), [2, 2])
    assert torch.equal(series.embeddings[0], torch.cat([*pictures.embeddings, torch.zeros(2, 4)]))
    assert series.num_placeholders.tolist() == [4]


def test_targets_reach_the_converter():
    sizes = {"cif_hidden_size": 6, "transformer": "none"}
    row = X2LConfig(
        converter="cformer", encoder=None, encoder_hidden_size=6, language_hidden_size=4, cformer_config=sizes
    )
    row.converter_config.encoder_hidden_size = 6
    output = X2LInterface(row, row)(torch.randn(2, 5, 6), target_lengths=torch.tensor([4, 2]))
    assert output.mask.sum(1).tolist() == [4, 2]
    assert output.num_placeholders.tolist() == [5, 5]


def test_masks_that_nobody_gave_are_where_the_features_are():
    row = X2LConfig(converter="linear", encoder=None, encoder_hidden_size=6, language_hidden_size=4)
    hidden = torch.zeros(2, 3, 6, device="meta")
    assert X2LInterface(row, row).to("meta")(hidden).mask.is_meta
    assert X2LInterface._arrange(hidden, None).mask.is_meta


def test_a_shared_converter_computes_as_precisely_as_its_owner():
    row = X2LConfig(converter="linear", encoder=None, encoder_hidden_size=6, language_hidden_size=4)
    owner, other, hidden = X2LInterface(row, row).double(), X2LInterface(copy.copy(row), row), torch.randn(1, 3, 6)
    other.share(owner)
    tokens = owner.converter(hidden.double()).embeddings
    assert torch.equal(other(hidden).embeddings, other.adapter(tokens.float()))

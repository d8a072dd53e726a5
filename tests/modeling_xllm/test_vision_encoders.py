# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How image encoders read pictures, patches and maps, by hand."""

from types import SimpleNamespace

import pytest
import torch

from xllm.modeling_xllm.vision_encoders import blank_picture, encode_pictures, reads_pictures


class Tower:
    """Gives back what it was given, or a map of it; remembers the arguments."""

    dtype, main_input_name = torch.float32, "pixel_values"

    def __init__(self, kind="vit", shape=None):
        self.config, self.shape, self.given = SimpleNamespace(model_type=kind), shape, None

    def __call__(self, pictures, **kwargs):
        self.given = kwargs
        return SimpleNamespace(last_hidden_state=pictures.view(self.shape or pictures.shape))


def test_a_map_is_read_row_by_row():
    outputs, mask = encode_pictures(Tower(), torch.arange(12.0).view(1, 2, 2, 3), extra=1)  # (N, E, H, W)
    assert outputs.last_hidden_state.tolist() == [[[p, p + 6] for p in range(6)]]
    assert mask is None
    sequence = encode_pictures(tower := Tower(shape=(1, 4, 3)), torch.arange(12.0), extra=1)[0].last_hidden_state
    assert sequence.tolist() == torch.arange(12.0).view(1, 4, 3).tolist()
    assert tower.given == {"extra": 1}


def test_patches_say_where_they_stand():
    """A picture of two rows of three patches of one value, and one of a row of two."""
    places = torch.tensor([[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]])
    other = torch.tensor([[1, 1], [1, 2], *[[0, 0]] * 4])
    values = torch.arange(12.0).view(2, 6, 1)
    pictures = torch.cat([values, torch.stack([places, other])], -1)
    tower = Tower("siglip2_vision_model")
    outputs, mask = encode_pictures(tower, pictures)
    assert torch.equal(outputs.last_hidden_state, values)
    assert mask.tolist() == [[True] * 6, [True] * 2 + [False] * 4]
    assert tower.given["pixel_attention_mask"].tolist() == mask.long().tolist()
    assert tower.given["spatial_shapes"].tolist() == [[2, 3], [1, 2]]
    pictures[1, 2, -2:] = torch.tensor([2, 1])  # three patches of a grid of two by two
    with pytest.raises(ValueError, match="rows and columns of patches are no grid"):
        encode_pictures(tower, pictures)
    with pytest.raises(ValueError, match=r"reads patches \(N, P, patch \+ 2\), got \(1, 3, 4, 4\)"):
        encode_pictures(tower, torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        ({"image_size": 28}, (1, 3, 28, 28)),
        ({"image_size": (4, 6), "num_channels": 1}, (1, 1, 4, 6)),
        ({"image_size": None}, (1, 3, 224, 224)),
        ({}, (1, 3, 224, 224)),
    ],
)
def test_blank_pictures(fields, shape):
    picture = blank_picture(SimpleNamespace(model_type="vit", **fields))
    assert picture.shape == shape
    assert not picture.any()


def test_a_blank_picture_of_patches_is_one_patch():
    picture = blank_picture(SimpleNamespace(model_type="siglip2_vision_model", patch_size=3))
    assert picture.tolist() == [[[0.0] * 27 + [1.0, 1.0]]]


def test_who_reads_pictures():
    assert reads_pictures(Tower())
    assert not reads_pictures(SimpleNamespace(main_input_name="input_features"))

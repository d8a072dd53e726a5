# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pictures are read without the copies that transformers' own image processors make, and come out the same."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessor, CLIPImageProcessor, SiglipImageProcessor
from transformers.image_processing_backends import TorchvisionBackend

from xllm.processing.picture_features import extract_pictures


def pictures(mode="RGB"):
    """Larger and smaller than what they become, wide, high and as it is."""
    noise = np.random.default_rng(0)
    sizes = ((48, 64), (300, 20), (7, 9), (32, 32))
    return [Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8)).convert(mode) for size in sizes]


PROCESSORS = [
    BlipImageProcessor(size={"height": 32, "width": 32}),
    BlipImageProcessor(size={"height": 24, "width": 40}, resample=0, do_normalize=False),
    BlipImageProcessor(size={"height": 32, "width": 32}, do_rescale=False),
    CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    SiglipImageProcessor(size={"height": 32, "width": 32}),
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: type(one).__name__)
def test_pixels_are_those_of_the_processor_to_the_last_bit(processor):
    before = processor.to_dict()
    for given in (pictures(), pictures("L"), pictures("RGBA"), [np.array(one) for one in pictures()]):
        expected = processor(given, return_tensors="pt")["pixel_values"]
        got = extract_pictures(processor, given, return_tensors="pt")["pixel_values"]
        assert torch.equal(got, expected)
        assert got.is_contiguous()
    assert processor.to_dict() == before
    assert type(processor).__name__ in ("BlipImageProcessor", "CLIPImageProcessor", "SiglipImageProcessor")


def test_a_call_may_change_what_is_done():
    processor, given = PROCESSORS[0], [pictures()[3]] * 2
    for changes in ({"do_resize": False}, {"size": {"height": 8, "width": 16}}, {"do_rescale": False}):
        expected = processor(given, return_tensors="pt", **changes)["pixel_values"]
        assert torch.equal(
            extract_pictures(processor, given, return_tensors="pt", **changes)["pixel_values"], expected
        )
    apart = extract_pictures(processor, pictures())["pixel_values"]
    assert all(torch.equal(*pair) for pair in zip(apart, processor(pictures())["pixel_values"]))


def test_a_transparent_colour_is_laid_on_white():
    """RGB with a colour that is none, as a PNG may say."""
    picture = Image.new("RGB", (8, 8), "red")
    picture.info["transparency"] = (255, 0, 0)
    got = extract_pictures(PROCESSORS[0], [picture], return_tensors="pt")["pixel_values"]
    assert torch.equal(got, PROCESSORS[0]([picture], return_tensors="pt")["pixel_values"])
    assert got.amin() > 1


@pytest.mark.parametrize("own", ["process_image", "_preprocess", "resize"])
def test_a_processor_with_a_way_of_its_own_keeps_it(own):
    called = []

    def method(self, *args, **kwargs):
        called.append(kwargs["image"] if own == "resize" else None)
        return getattr(TorchvisionBackend, own)(self, *args, **kwargs)

    processor = type("Own", (BlipImageProcessor,), {own: method})(size={"height": 32, "width": 32})
    extract_pictures(processor, pictures(), return_tensors="pt")
    assert called
    if own == "resize":
        assert all(one.is_contiguous() for one in called), "it may rely upon that"


def test_rgb_pictures_are_not_copied_plane_by_plane(monkeypatch):
    seen = []
    resize = TorchvisionBackend.resize
    monkeypatch.setattr(
        TorchvisionBackend, "resize", lambda self, image, **how: seen.append(image) or resize(self, image, **how)
    )
    extract_pictures(PROCESSORS[0], pictures(), return_tensors="pt")
    assert [one.stride()[1] for one in seen] == [1] * 4, "three bytes a pixel, as in the picture"

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A tiny model whose answers depend on what is asked, served."""

import pytest
import torch
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image
from serving_fixtures import running

from xllm.assembly.opening import load_checkpoint
from xllm.cli import main
from xllm.serving import Limits


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """A checkpoint as `xllm init` makes it; not to be written to."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    assert main(["init", str(folder), "--preset", "tiny"]) == 0
    return str(folder)


@pytest.fixture(scope="session")
def loaded(folder):
    """Its model and processor."""
    model, processor = load_checkpoint(folder)
    # With weights as they are drawn, everything is answered alike.
    with torch.no_grad():
        for weight in model.model.language_model.parameters():
            weight.mul_(6 if weight.dim() > 1 else 1)
    return model, processor


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """A picture, two sounds, a film, and what is none of these."""
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (40, 30), (255, 0, 0)).save(folder / "red.png")
    write_wav(folder / "low.wav", [sine(frequency=200)])
    write_wav(folder / "high.wav", [sine(frequency=1000)])
    write_video(folder / "clip.mp4", grey_frames(10))
    (folder / "broken.wav").write_bytes(b"not a sound")
    return folder


@pytest.fixture(scope="session")
def serving(loaded, media):
    """One server for all tests that need no settings of their own."""
    with running(loaded, Limits(new_tokens=64)) as server:
        yield server

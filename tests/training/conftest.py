# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A tiny checkpoint, and media files made on the spot, for the tests of training."""

import wave

import av
import numpy as np
import pytest
import torch
from PIL import Image

from xllm.assembly.opening import load_checkpoint
from xllm.assembly.tiny import build_tiny


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """Folder of the tiny preset: ChatGLM, image, video and speech rows, random weights."""
    torch.manual_seed(0)
    folder = build_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")
    # Whether a random CIF fires at all depends on the processor, whose kernels draw: here every second frame fires.
    model = load_checkpoint(str(folder))[0]
    model.get_parameter("model.interfaces.speech.converter.cif.weight_proj.weight").data /= 100
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_processor(tiny_checkpoint):
    return load_checkpoint(str(tiny_checkpoint))[1]


@pytest.fixture
def tiny(tiny_checkpoint):
    """(model, processor), fresh: the test may train it."""
    return load_checkpoint(str(tiny_checkpoint))


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """A folder with red.png, blue.png, low.wav, high.wav, clip.mp4 and broken.wav."""
    folder = tmp_path_factory.mktemp("media")
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (40, 30), color).save(folder / f"{name}.png")
    for name, hertz in (("low", 200), ("high", 1000)):
        samples = (8000 * np.sin(2 * np.pi * hertz * np.arange(6400) / 16_000)).astype(np.int16)
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(samples.tobytes())
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for level in range(10):
            picture = np.full((32, 32, 3), 20 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    (folder / "broken.wav").write_bytes(b"not a sound")
    return folder

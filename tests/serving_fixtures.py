# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A server in a thread of the test's process, and what its clients send."""

import base64
import contextlib
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import openai
import torch
import uvicorn
from media_files import grey_frames, sine, write_video, write_wav
from PIL import Image

from xllm.assembly.opening import load_checkpoint
from xllm.serving import Limits, MediaAccess, Service, create_app


NAME = "tiny-x"


def load_lively(folder):
    """Model and processor of a tiny checkpoint whose answers depend on what is asked."""
    model, processor = load_checkpoint(folder)
    # With weights as they are drawn, everything is answered alike.
    with torch.no_grad():
        for weight in model.model.language_model.parameters():
            weight.mul_(6 if weight.dim() > 1 else 1)
    return model, processor


def write_media(folder):
    """A picture, two sounds, a film, and what is none of these."""
    Image.new("RGB", (40, 30), (255, 0, 0)).save(folder / "red.png")
    write_wav(folder / "low.wav", [sine(frequency=200)])
    write_wav(folder / "high.wav", [sine(frequency=1000)])
    write_video(folder / "clip.mp4", grey_frames(10))
    (folder / "broken.wav").write_bytes(b"not a sound")
    return folder


@dataclass
class Running:
    """A server that runs in a thread of the test's process."""

    url: str
    service: Service
    server: uvicorn.Server

    def client(self, **options: Any) -> openai.OpenAI:
        """An `openai` client of it."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60, **options)


@contextlib.contextmanager
def running(loaded, limits: Limits | None = None, allowed=(), **guard: Any):
    """Serves until the block ends."""
    limits = limits or Limits()
    service = Service(*loaded, NAME, MediaAccess(allowed, limits), limits)
    with in_thread(create_app(service, **guard), log_level="error", timeout_graceful_shutdown=5) as (url, server):
        yield Running(url, service, server)


@contextlib.contextmanager
def in_thread(app, **settings):
    """An ASGI application on a free port: its address, and uvicorn's server."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, ws="none", **settings))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(20)


def data_url(path, kind: str) -> str:
    """A file as a data: URL."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def parts_of(media) -> list[dict]:
    """Image, sound twice and a video of ten frames, as `openai` clients write them."""
    low, high = (base64.b64encode((media / name).read_bytes()).decode() for name in ("low.wav", "high.wav"))
    return [
        {"type": "image_url", "image_url": {"url": data_url(media / "red.png", "image/png")}},
        {"type": "input_audio", "input_audio": {"data": low, "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{high}"}},
        {"type": "video_url", "video_url": {"url": data_url(media / "clip.mp4", "video/mp4")}},
        {"type": "text", "text": "What is this?"},
    ]


def own_answer(loaded, media, new: int = 8) -> tuple[str, int]:
    """What the model itself says to `parts_of`, and the length of the prompt."""
    model, processor = loaded
    content = [
        {"type": "image", "path": str(media / "red.png")},
        {"type": "audio", "path": str(media / "low.wav")},
        {"type": "audio", "path": str(media / "high.wav")},
        {"type": "video", "path": str(media / "clip.mp4")},
        {"type": "text", "text": "What is this?"},
    ]
    inputs = processor.encode_conversations([[{"role": "user", "content": content}]])
    length = inputs["input_ids"].shape[1]
    output = model.generate(**inputs, max_new_tokens=new, do_sample=False)[0, length:]
    return processor.decode(output, skip_special_tokens=True), length


def chat(client, parts, **options):
    """One question."""
    options = {"max_tokens": 8, "temperature": 0, **options}
    return client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": parts}], **options)


def post(server: Running, path: str, body, headers=()) -> tuple[int, str]:
    """Status and text of a reply to whatever body; `None` asks with GET."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, content, dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One tiny model for all tests of the page, a page server and a browser for those of a file."""

import pytest
from page_fixtures import browser, serving_page
from serving_fixtures import load_lively, write_media

from xllm.cli import main


pytest.importorskip("gradio", reason="NO TESTS OF THE PAGE: pip install 'xllm-transformers[page]'")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> str:
    """A checkpoint as `xllm init` makes it."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    assert main(["init", str(folder), "--preset", "tiny"]) == 0
    return str(folder)


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """A picture, two sounds, a film, and what is none of these."""
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def served(checkpoint, media, tmp_path_factory):
    """The page of the tiny model."""
    from xllm.page.chat_page import ChatPage, offered
    from xllm.page.looks import Looks
    from xllm.serving import Limits, MediaAccess, Service

    folder = tmp_path_factory.mktemp("uploads")
    model, processor = load_lively(checkpoint)
    limits = Limits(new_tokens=400, body_bytes=4 << 20)
    service = Service(model, processor, "tiny-x", MediaAccess([str(folder)], limits), limits)
    looks = Looks(model, processor, folder, limits)
    examples = offered([f"{media / 'red.png'}:What colour?"], model.config.modalities, folder)

    def close() -> None:
        looks.close()
        service.close()

    def build(language: str):
        return ChatPage(service, looks, language, examples).build()

    with serving_page(build, folder, service, limits=limits, close=close) as page:
        yield page


@pytest.fixture(scope="module")
def chromium(media):
    """A browser whose microphone hears a tone; Playwright has a loop in this thread until it is closed."""
    with browser(media / "high.wav") as found:
        yield found

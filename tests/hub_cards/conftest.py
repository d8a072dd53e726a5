# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A Hub of one's own and an empty cache for each test."""

import huggingface_hub
import pytest
import transformers
from hub_server import WRITER, HubServer
from huggingface_hub import constants

from xllm import XLLMForConditionalGeneration, XLLMProcessor
from xllm.assembly.presets import build_tiny
from xllm.hub_cards.publish import publish


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running `HubServer` that the clients in this process talk to, with the writer's token."""
    with HubServer() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setenv("HF_TOKEN", WRITER)
        yield server


@pytest.fixture
def interfaces_folder(hub, tiny_folder, tmp_path):
    """A checkpoint of interfaces whose towers are in the Hub repository "user/base"."""
    publish(tiny_folder, "user/base", tag="v1", license="mit")
    folder = tmp_path / "interfaces"
    XLLMForConditionalGeneration.from_pretrained("user/base", revision="v1").save_interfaces(
        folder, base="user/base@v1"
    )
    XLLMProcessor.from_pretrained(tiny_folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The tiny preset as a folder; tests must not write there."""
    return build_tiny(tmp_path_factory.mktemp("tiny") / "checkpoint")

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A tiny model whose answers depend on what is asked, served."""

import pytest
from serving_fixtures import load_lively, running, write_media

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
    return load_lively(folder)


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """A picture, two sounds, a film, and what is none of these."""
    return write_media(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="session")
def serving(loaded, media):
    """One server for all tests that need no settings of their own."""
    with running(loaded, Limits(new_tokens=64)) as server:
        yield server

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the tests of commands share."""

import pytest

from xllm.cli import main


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> str:
    """A checkpoint as `xllm init` makes it; not to be written to."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    assert main(["init", str(folder), "--preset", "tiny"]) == 0
    return str(folder)

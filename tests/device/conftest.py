# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A small device, and its checkpoint."""

import json

import pytest
from shipped_status import shipped_status
from small_device import COMMANDS, STATUS

from xllm.cli import main


@pytest.fixture(scope="module")
def status_module():
    """The module that is shipped, imported."""
    with shipped_status() as module:
        yield module


@pytest.fixture(scope="module")
def device_file(tmp_path_factory):
    """The device as a file for `xllm init`."""
    path = tmp_path_factory.mktemp("device") / "phone.json"
    path.write_text(json.dumps({"status": STATUS, "commands": COMMANDS}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def device_folder(status_module, device_file):
    """The tiny preset with a row for its status; not to be written to."""
    folder = device_file.parent / "model"
    assert main(["init", str(folder), "--preset", "tiny", "--modality", f"status={device_file}"]) == 0
    return folder

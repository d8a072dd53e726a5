# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A Hub of one's own and an empty cache for each test."""

import json
import os
import site
import subprocess
import sys
import venv

import huggingface_hub
import pytest
import transformers
from hub_server import WRITER, HubServer
from huggingface_hub import constants

from xllm import XLLMForConditionalGeneration, XLLMProcessor
from xllm.assembly.tiny import build_tiny
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


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory):
    """A Python with the packages of this one, but not what is installed in editable mode here.

    Folders that a .pth file names are searched; .pth files in those folders are not read.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = [path for path in {*sys.path, *site.getsitepackages()} if path.endswith("site-packages")]
    (folder / "lib" / version / "site-packages" / "shared.pth").write_text("\n".join(packages) + "\n")
    python = folder / "bin" / "python"
    found = subprocess.run(
        [python, "-P", "-c", "import importlib.util; print(importlib.util.find_spec('xllm'))"],
        capture_output=True, text=True, check=True, cwd=folder, env=_without(os.environ),
    )  # fmt: skip
    if found.stdout.strip() != "None":
        pytest.skip("the package is installed as a copy in site-packages and cannot be hidden")
    return python


def _without(environment):
    return {name: value for name, value in environment.items() if name not in ("HF_HUB_OFFLINE", "PYTHONPATH")}


@pytest.fixture
def bare(bare_python, hub, tmp_path):
    """Runs code on that Python with the tests' Hub; returns what its last line says."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    def run(code: str, *arguments: str):
        result = subprocess.run(
            [bare_python, "-P", "-c", code, *arguments],
            env=_without(os.environ) | settings, capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout.splitlines()[-1])

    return run

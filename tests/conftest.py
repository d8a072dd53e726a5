# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Every test runs offline, on one thread, from a fixed seed."""

import asyncio
import os
import signal
from collections import Counter


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import xllm  # noqa: F401 (registers the Auto classes)


# Set for good by tokenizers at a fork, and by Gradio, DeepSpeed and scikit-learn when they are imported.
LIBRARIES_OWN = (
    "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY", "DS_ACCELERATOR", "PYTORCH_NVML_BASED_CUDA_CHECK",
    "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Files of slow tests begin first: `--dist loadfile` gives a file to one process, and all wait for the last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _state() -> dict:
    """What all tests of a process share, and a library may read again at any time."""
    state = {f"environment variable {name}": value for name, value in os.environ.items()}
    state.pop("environment variable PYTEST_CURRENT_TEST", None)
    state["working directory"] = os.getcwd()
    state["loop running in the main thread"] = asyncio._get_running_loop()
    state["default dtype"], state["gradients"] = torch.get_default_dtype(), torch.is_grad_enabled()
    state["deterministic algorithms"] = torch.are_deterministic_algorithms_enabled()
    state |= {f"handler of {number.name}": signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return state


@pytest.fixture(autouse=True, scope="module")
def _left_as_found():
    """No file of tests changes the process for those after it: which these are differs from run to run."""
    before = _state()
    yield
    after = _state()
    changed = {name for name in before | after if before.get(name, ...) != after.get(name, ...)}
    changed = {name for name in changed if not name.endswith(LIBRARIES_OWN)}
    assert not changed, f"left otherwise than found: {', '.join(sorted(changed))}"

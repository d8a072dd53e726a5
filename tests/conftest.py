# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Every test runs offline, on one thread, from a fixed seed."""

import asyncio
import os
import signal
import sys
from collections import Counter


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

import xllm  # noqa: F401 (registers the Auto classes)


def pytest_collection_modifyitems(items):
    """Files of slow tests begin first: `--dist loadfile` gives a file to one process, and all wait for the last."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    """What a file imports at its top is there for all others, and this module registers a kind of media."""
    if "xllm.device.device_status" in sys.modules:
        raise pytest.UsageError("a file of tests imports xllm.device.device_status at its top: see shipped_status.py")


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def _state() -> dict:
    """What all tests of a process share, and a library may read again at any time."""
    state = {"working directory": os.getcwd(), "loop of the main thread": asyncio._get_running_loop()}
    state["default dtype"], state["gradients"] = torch.get_default_dtype(), torch.is_grad_enabled()
    state["deterministic algorithms"] = torch.are_deterministic_algorithms_enabled()
    state |= {f"handler of {number.name}": signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    return state


@pytest.fixture(autouse=True, scope="module")
def _left_as_found():
    """No file of tests changes the process for those after it: which these are differs from run to run."""
    before, environment = _state(), dict(os.environ)
    yield
    # Libraries set variables too, when they are imported or begin a process.
    for name in os.environ.keys() - environment.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update({name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"})
    changed = [name for name, value in _state().items() if value != before[name]]
    assert not changed, f"left otherwise than found: {', '.join(changed)}"

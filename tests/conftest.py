# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Every test runs offline, on one thread, from a fixed seed."""

import os
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


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)

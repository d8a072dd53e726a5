# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Two processes of gloo that hold different modalities train as one process does."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, limit: int = 600) -> list[dict]:
    """Lines of JSON of a script."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "zero2"])
def test_any_mixture_of_modalities_is_trained_as_by_one_process(kind):
    if kind.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    lines = run(str(ROOT / "benchmarks/two_processes.py"), "--mixes", "40", "--kinds", kind)
    assert {line["task"] for line in lines[:-1]} == {
        "align", "integrate", "one modality", "mute", "trained encoders",
    }  # fmt: skip
    assert lines[-1]["mixes"] == 40
    assert lines[-1]["worst"] <= 1e-6

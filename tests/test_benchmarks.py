# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks that need other machines than CI's: their arithmetic, and that they run at tiny sizes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from xllm import freeze_for_stage


BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ["chatglm", "qwen3"])
def test_the_arithmetic_of_a_step_is_what_torch_counts(gpu, name, stage):
    model = gpu.build(gpu.text_configs(name, "tiny")[0], "tiny", "cpu")
    freeze_for_stage(model, stage)
    batch = gpu.rows_of(model.train(), 2, stage, "cpu")
    with FlopCounterMode(display=False) as counter:
        gpu.training_step(model, batch, "cpu")()
    assert gpu.step_flops(model, batch) == pytest.approx(counter.get_total_flops(), rel=0.15)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_benchmark_says_so():
    child = subprocess.run([sys.executable, BENCHMARKS / "gpu.py"], capture_output=True, text=True, check=False)
    assert child.returncode == 2
    assert child.stdout == ""
    assert "no GPU here" in child.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu():
    command = [
        sys.executable,
        BENCHMARKS / "gpu.py",
        "--device",
        "cpu",
        "--size",
        "tiny",
        "--models",
        "qwen3",
        "--json",
    ]
    figures = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [line["what"] for line in figures["lines"]] == [
        "step of stage 2", "step of stage 3", "decode B1", "decode B2", "step", "decode B1", "decode B2",
    ]  # fmt: skip
    assert all(0 < line.get("mfu", line.get("of_bound")) < 1 for line in figures["lines"])

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The benchmarks that need other machines than CI's: their arithmetic, and that they run at tiny sizes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from media_files import write_wav
from torch.utils.flop_counter import FlopCounterMode

from xllm import freeze_for_stage


BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def benchmark(name: str):
    """A script of benchmarks/ as a module."""
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def gpu():
    return benchmark("gpu")


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("name", ["chatglm", "qwen3"])
def test_the_arithmetic_of_a_step_is_what_torch_counts(gpu, name, stage):
    model = gpu.build(gpu.text_configs(name, "tiny")[0], "tiny", "cpu")
    freeze_for_stage(model, stage)
    batch = gpu.rows_of(model.train(), 2, stage, "cpu")
    with FlopCounterMode(display=False) as counter:
        gpu.training_step(model, batch, "cpu")()
    assert gpu.step_flops(model, batch) == pytest.approx(counter.get_total_flops(), rel=0.15)


@pytest.mark.slow
def test_sounds_that_were_left_out_are_told_apart(tmp_path, capsys):
    """Tones, noise and clicks, of other pitch and loudness in each fold: told by the model and by the linear probe."""
    rng, rows = np.random.default_rng(0), []
    for fold in (1, 2):
        for number in range(4):
            noise = 0.2 * rng.standard_normal(16_000)
            tone = np.sin(2 * np.pi * rng.uniform(300, 500) * np.arange(16_000) / 16_000)
            clicks = np.zeros(16_000)
            clicks[rng.integers(0, 16_000, 8)] = 1.0
            made = {"tone": tone + 0.01 * noise, "noise": noise, "clicks": clicks + 0.001 * noise}
            for label, samples in made.items():
                path = write_wav(tmp_path / f"{fold}{number}{label}.wav", [rng.uniform(0.1, 0.5) * samples])
                rows.append({"file": path.name, "label": label, "fold": fold})
    (tmp_path / "manifest.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    bench, records = benchmark("sound"), tmp_path / "records.jsonl"
    quick = ["--convert-steps", "50", "--steps", "300", "--dropout", "0.1", "--text-steps", "200", "--variants", "4"]
    quick += ["--records", str(records)]
    half = bench.main([str(tmp_path), "--fold", "1", *quick])
    found = bench.main([str(tmp_path), "--fold", "2", *quick])
    assert (half[bench.HEAR]["n"], found[bench.HEAR]["n"]) == (12, 24)
    assert min(found[bench.HEAR]["model"], found[bench.HEAR]["probe"]) >= 0.9
    assert found[bench.HEAR]["chance"] == pytest.approx(1 / 3)
    assert found[bench.FIRST]["model"] > 0.6
    assert "left out (seed, fold): (0, 1), (0, 2)" in capsys.readouterr().out


def test_settings_are_chosen_without_the_sounds_that_are_left_out(monkeypatch):
    bench, heard = benchmark("sound"), []

    class Split:
        def __init__(self, folder, seen, unseen, *more):
            heard.append(({clip[2] for clip in seen}, {clip[2] for clip in unseen}))
            self.asked = unseen

        def answers(self, *settings):
            return settings

        def probes(self):
            return {bench.HEAR: {C: C == 0.3 for C in bench.PROBES}, bench.FIRST: dict.fromkeys(bench.PROBES, 1)}

        def right(self, said, question=None):
            return said[0] - said[1] if question is None else said

    monkeypatch.setattr(bench, "Split", Split)
    args = bench.parse(["folder", "--convert-steps", "0", "300", "--steps", "200", "600", "--dropout", "0.1"])
    clips = [(None, "rain", fold) for fold in (1, 2, 3)]
    assert bench.choose(None, clips, 1, args) == {
        "settings": (300, 200, 0.1), "probes": {bench.HEAR: 0.3, bench.FIRST: 0.1}
    }  # fmt: skip
    assert heard == [({3}, {2}), ({2}, {3})]
    with pytest.raises(ValueError, match="fold 1 leaves one fold, so none to choose on"):
        bench.choose(None, clips[:2], 1, args)


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

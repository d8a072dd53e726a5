# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Kills a training run again and again, and lets it go on: are the weights those of a run in one piece?

    python benchmarks/kills.py --runs 50

Each run trains the tiny preset through two stages (stage 1 of speech with its encoder and heads, then stage 2; two
epochs each, gradient accumulation, a checkpoint after every step) in a process of its own, which is killed (SIGKILL),
started again with `resume=True`, killed again, and so on, `--kills` times; then it may finish. Every other kill comes
after a random time, the others at a random call that writes (torch.save, fsync, rename, removal of a folder).
Printed: how many of the runs ended with the same SHA-256 over all tensors, and how many kills came while a checkpoint
was being written.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import wave
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers.utils import logging

from xllm.assembly.tiny import build_tiny
from xllm.training.train import train


STAGES = ("stage1-speech", "stage2-speech")


def make_recipe(folder: Path, workers: int) -> dict:
    """A model, six clips and the recipe over both."""
    for name, hertz in (("low", 200), ("high", 1000)):
        samples = (8000 * np.sin(2 * np.pi * hertz * np.arange(6400) / 16_000)).astype(np.int16)
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(samples.tobytes())
    rows = [f"{name}.wav,{name[:length]}\n" for length in (1, 2, 3) for name in ("low", "high")]
    (folder / "clips.csv").write_text("file,text\n" + "".join(rows), encoding="utf-8")
    trainer = {
        "num_train_epochs": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "logging_steps": 1,
        "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "use_cpu": True,
        "dataloader_num_workers": workers,
    }  # fmt: skip
    return {
        "model": str(build_tiny(folder / "model")),
        "trainer": trainer,
        "data": {"train": str(folder / "clips.csv"), "augment": ["gain"]},
        "stages": [
            {"stage": 1, "modalities": ["speech"], "train_encoder": True},
            {"stage": 2, "modalities": ["speech"]},
        ],
    }


def digest(output: Path) -> str:
    """SHA-256 over names and bytes of all tensors of both stages, heads too."""
    found = hashlib.sha256()
    for stage in STAGES:
        for path in sorted((output / stage).glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in sorted(file.keys()):
                    found.update(f"{stage} {path.name} {name}".encode())
                    found.update(file.get_tensor(name).contiguous().view(-1).numpy().tobytes())
    return found.hexdigest()


def count_writes(kill_at: int, counted: torch.Tensor) -> None:
    """Count the calls that write, and kill this process at one of them."""

    def counting(original):
        def call(*args, **kwargs):
            counted.add_(1)
            if int(counted) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    for target, name in ((torch, "save"), (os, "fsync"), (os, "replace"), (os, "rename"), (shutil, "rmtree")):
        setattr(target, name, counting(getattr(target, name)))


def run(recipe: dict, output: Path, counted: torch.Tensor, seconds: float | None = None, kill_at: int = 0) -> int:
    """Train in a process of its own, killed after so many seconds or at a call; its status, negative if killed."""
    counted.zero_()
    if (pid := os.fork()) == 0:
        status = 1
        try:
            count_writes(kill_at, counted)
            train({**recipe, "output_dir": str(output)}, progress=False, resume=True)
            status = 0
        except BaseException:  # noqa: BLE001
            traceback.print_exc()
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> None:
    """Print a line per run and the two counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=1, help="of each run, before it may finish")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    rng, same, half = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_recipe(folder, args.workers)
        counted = torch.zeros((), dtype=torch.long).share_memory_()
        began = time.monotonic()
        if run(recipe, folder / "whole", counted):
            raise SystemExit("the run in one piece has failed")
        seconds, writes, expected = time.monotonic() - began, int(counted), digest(folder / "whole")
        for number in range(args.runs):
            output, moments = folder / f"run{number}", []
            for kill in range(args.kills):
                if (number + kill) % 2:
                    moments.append(f"at write {rng.randint(1, writes)}")
                    run(recipe, output, counted, kill_at=int(moments[-1].split()[-1]))
                else:
                    moments.append(f"after {rng.uniform(0, 1.1 * seconds):.2f} s")
                    run(recipe, output, counted, float(moments[-1].split()[1]))
                half += any(output.glob("*/.saving"))
            is_same = run(recipe, output, counted) == 0 and digest(output) == expected
            same += is_same
            result = "the same weights" if is_same else "DIFFERENT"
            print(f"run {number}: killed {', '.join(moments)}; {result}", flush=True)  # noqa: T201
            shutil.rmtree(output)
    print(f"{same} of {args.runs} runs ended with the weights of the run in one piece ({expected[:12]})")  # noqa: T201
    print(f"{half} of {args.runs * args.kills} kills came while a checkpoint was being written")  # noqa: T201
    sys.exit(same < args.runs)


if __name__ == "__main__":
    main()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Command lines on one process and on two of gloo, and how far what they have learnt lies apart."""

import atexit
import functools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.distributed import TCPStore

from xllm import XLLMForConditionalGeneration


ROOT = Path(__file__).resolve().parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def surroundings() -> dict[str, str]:
    """The environment of a script: it finds our modules, and no GPU."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}


def run(*arguments: str, limit: int = 600) -> subprocess.CompletedProcess:
    """A script that must end well."""
    done = subprocess.run(
        [sys.executable, *arguments], env=surroundings(), capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@functools.cache
def forker() -> subprocess.Popen:
    """The process that forks; there is one for all tests of this process."""
    script, pipe = str(ROOT / "tests/warm_ranks.py"), subprocess.PIPE
    process = subprocess.Popen([sys.executable, script], env=surroundings(), stdin=pipe, stdout=pipe, text=True)
    atexit.register(process.communicate)
    return process


def run_warm(*arguments: str, processes: int = 2, limit: int = 600) -> subprocess.CompletedProcess:
    """A script that must end well, on ranks as torchrun has them, or in one process; see warm_ranks.py."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # torchrun keeps it so too
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared |= {"TORCHELASTIC_RESTART_COUNT": "0", "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [{**shared, "RANK": number, "LOCAL_RANK": number} for number in map(str, range(processes))]
    with TemporaryDirectory() as folder:
        outputs = [Path(folder, name) for name in ("out", "err")]
        for path in outputs:
            path.touch()
        request = {"arguments": list(map(str, arguments)), "outputs": list(map(str, outputs)), "limit": limit}
        request["environments"] = [{**surroundings(), **(own if processes > 1 else {})} for own in ranks]
        print(json.dumps(request), file=forker().stdin, flush=True)
        codes = json.loads(forker().stdout.readline())
        out, err = (path.read_text() for path in outputs)
    ends = ", ".join(f"Signal {-code}" if code < 0 else f"status {code}" for code in codes)
    assert not any(codes), f"{out[-2000:]}{err[-4000:]}\n{ends}"
    return subprocess.CompletedProcess(arguments, 0, out, err)


SEVERAL = str(ROOT / "tests/several_runs.py")


def several(folder: Path, *lines, processes: int = 2, torchrun: bool = False) -> subprocess.CompletedProcess:
    """Command lines of `xllm`, see several_runs.py, on one process or on several."""
    path = folder / "lines.json"
    path.write_text(json.dumps(lines))
    return run(*TORCHRUN, SEVERAL, str(path)) if torchrun else run_warm(SEVERAL, str(path), processes=processes)


def without_dropout(model):
    """The model; what chance leaves out would depend on the processes."""
    for row in model.config.modalities.values():
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "cif_dropout"):
            if hasattr(row.converter_config, name):
                setattr(row.converter_config, name, 0.0)
    return model


def write_data(folder: Path, media: Path) -> None:
    """Pictures, clips and their texts, and DeepSpeed's configurations."""
    for index in range(4):
        picture = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    captions = ("a", "red dog", "one of many words", "b c")  # a mean of means over processes is not that of all words
    (folder / "pictures.csv").write_text("file,text\n" + "".join(f"{i}.png,{c}\n" for i, c in enumerate(captions)))
    (folder / "speech.csv").write_text("file,text\n" + f"{media}/low.wav,lo\n{media}/high.wav,hi\n" * 2)
    for stage in (2, 3):
        zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
        (folder / f"zero{stage}.json").write_text(json.dumps({"zero_optimization": zero}))


def engine_of(kind: str, folder: Path) -> list[str]:
    """What is added to a command line."""
    if kind.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    known = {"ddp": [], "fsdp": ["trainer.fsdp=true"]}
    return known.get(kind, [f"trainer.deepspeed={folder / kind}.json"])


# With its usual epsilon Adam blows up the rounding of the smallest gradients.
TRAINER = {
    "num_train_epochs": 2, "per_device_train_batch_size": 1, "learning_rate": 0.5, "adam_epsilon": 1.0,
    "weight_decay": 0.1, "logging_steps": 1, "use_cpu": True, "save_steps": 1,
}  # fmt: skip


def write_recipe(folder: Path, name: str, stages: list[dict], model: str = "model", **keys) -> str:
    """The file of a recipe for a model beside it."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps({"model": str(folder / model), "trainer": TRAINER, "stages": stages, **keys}))
    return str(path)


def sources(folder: Path) -> list[dict]:
    """Pictures and speech, whose prompts are drawn anew in each epoch."""
    prompts = ["one", "two", "three", ""]
    common = {"prompts": prompts, "text_equivalent": "{text}"}
    return [{"path": str(folder / f"{name}.csv"), **common} for name in ("pictures", "speech")]


# What one process says to take the steps that two take.
ALONE = "trainer.gradient_accumulation_steps=2"


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    model = XLLMForConditionalGeneration.from_pretrained(folder)
    heads = [load_file(path) for path in folder.glob("*heads.safetensors")]
    return {name: tensor for part in [model.state_dict(), *heads] for name, tensor in part.items()}


def difference(before: dict, one: dict, two: dict) -> float:
    """How far `two` is from `one`, relative to how far that went; they hold the same, and went somewhere."""
    assert one.keys() == two.keys()
    moved = sum(float((one[key] - before[key]).double().square().sum()) for key in one.keys() & before.keys())
    assert moved > 1e-6
    return (sum(float((one[key] - two[key]).double().square().sum()) for key in one) / moved) ** 0.5

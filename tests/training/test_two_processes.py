# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Two processes of gloo train as one does: any mixture of modalities, a recipe of two stages with all its files."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xllm import XLLMForConditionalGeneration


ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run(*arguments: str, limit: int = 600) -> subprocess.CompletedProcess:
    """A script that must end well."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=limit, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "zero2", "zero3"])
def test_any_mixture_of_modalities_is_trained_as_by_one_process(kind):
    if kind.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    done = run(str(ROOT / "benchmarks/two_processes.py"), "--mixes", "40", "--kinds", kind)
    *lines, last = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {line["task"] for line in lines} == {"align", "integrate", "one modality", "mute", "trained encoders"}
    assert last["mixes"] == 40
    assert last["worst"] <= 1e-6


@pytest.fixture
def recipe(tiny_checkpoint, media, tmp_path) -> Path:
    """Two stages over a ChatGLM without dropout; two epochs, whose prompts are drawn anew."""
    model = XLLMForConditionalGeneration.from_pretrained(tiny_checkpoint)
    for row in model.config.modalities.values():
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "cif_dropout"):
            if hasattr(row.converter_config, name):
                setattr(row.converter_config, name, 0.0)
    for path in tiny_checkpoint.iterdir():
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    model.save_pretrained(tmp_path / "model")
    for index in range(4):
        picture = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{index}.png")
    pictures = "".join(f"{index}.png,red {index}\n" for index in range(4))
    (tmp_path / "pictures.csv").write_text(f"file,text\n{pictures}")
    (tmp_path / "speech.csv").write_text("file,text\n" + f"{media}/low.wav,lo\n{media}/high.wav,hi\n" * 2)
    prompts = ["one", "two", "three", ""]
    sources = [{"path": str(tmp_path / f"{name}.csv"), "prompts": prompts} for name in ("pictures", "speech")]
    stages = [
        {"stage": 1, "modalities": ["speech"], "data": {"train": str(tmp_path / "speech.csv")}},
        {
            "stage": 3,
            "data": {"train": sources},
            "evaluate": {"name": "all", "task": "qa", "data": str(tmp_path / "pictures.csv"), "max_new_tokens": 1},
        },
    ]
    trainer = {
        "num_train_epochs": 2, "per_device_train_batch_size": 1, "learning_rate": 1e-3, "weight_decay": 0.1,
        "logging_steps": 1, "use_cpu": True, "save_strategy": "epoch",
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"model": str(tmp_path / "model"), "trainer": trainer, "stages": stages}))
    return path


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return XLLMForConditionalGeneration.from_pretrained(folder).state_dict()


@pytest.mark.slow
def test_a_recipe_of_two_stages_gives_what_one_process_gives(recipe, tmp_path):
    """What no data feeds, the video interface, is not decayed either."""
    train = ("-m", "xllm", "train", str(recipe))
    run(*train, f"output_dir={tmp_path / 'one'}", "trainer.gradient_accumulation_steps=2")
    done = run(*TORCHRUN, *train, f"output_dir={tmp_path / 'two'}")
    assert done.stdout.count("last loss") == 2  # a line per stage, of the first process
    assert done.stderr.count("stage 3 (image+speech+video): step 4/8") == 1
    folders = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert folders == sorted(path.name for path in (tmp_path / "two").iterdir())
    before = weights_of(tmp_path / "model")
    for name in folders:
        one, two = weights_of(tmp_path / "one" / name), weights_of(tmp_path / "two" / name)
        update = sum(float((one[key] - before[key]).double().square().sum()) for key in one)
        assert update > 1e-4
        assert sum(float((one[key] - two[key]).double().square().sum()) for key in one) <= 1e-12 * update
        assert all(torch.equal(two[key], before[key]) for key in two if ".video." in key)
        configs = [json.loads((tmp_path / run_ / name / "config.json").read_text()) for run_ in ("one", "two")]
        assert configs[0]["lineage"] == configs[1]["lineage"]
        receipts = [(tmp_path / run_ / name / "frozen.json").read_text() for run_ in ("one", "two")]
        assert receipts[0] == receipts[1]
    results = [json.loads((tmp_path / run_ / folders[1] / "results.json").read_text()) for run_ in ("one", "two")]
    assert results[0] == results[1]
    assert len((tmp_path / "two" / folders[1] / "log.jsonl").read_text().splitlines()) == 9


@pytest.mark.slow
def test_two_processes_share_the_features_of_pictures(recipe, tmp_path):
    """Four pictures in two epochs of stage 3, read by whichever process gets them: the weights are the same."""
    train = (*TORCHRUN, "-m", "xllm", "train", str(recipe))
    run(*train, f"output_dir={tmp_path / 'without'}")
    run(*train, f"output_dir={tmp_path / 'with'}", f"stages.1.data.cache_features={tmp_path / 'features'}")
    for folder in sorted((tmp_path / "without").iterdir()):
        without, cached = weights_of(folder), weights_of(tmp_path / "with" / folder.name)
        assert [key for key, value in without.items() if not torch.equal(value, cached[key])] == []
        entries = [json.loads(line) for line in (tmp_path / "with" / folder.name / "log.jsonl").open()]
    assert entries[-1]["features_read"] > 0
    assert "features_damaged" not in entries[-1]


WAITS = """
import time
from datetime import timedelta
from torch import distributed
from xllm.training.trainers.processes import first_alone
distributed.init_process_group("gloo", timeout=timedelta(seconds=8))
with first_alone() as is_first:
    if is_first:
        time.sleep(12)
distributed.barrier()
if distributed.get_rank() == 1:
    print("waited", flush=True)
"""


@pytest.mark.slow
def test_the_others_wait_longer_for_the_first_than_for_a_collective():
    assert "waited" in run(*TORCHRUN, "--no-python", sys.executable, "-c", WAITS).stdout

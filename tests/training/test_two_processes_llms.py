# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Llama and Qwen3 under every engine, towers in half precision, `accelerate launch`, fewer processes than before."""

import json
from pathlib import Path

import pytest
import torch
from process_runs import (
    ALONE,
    TRAINER,
    difference,
    engine_of,
    run,
    several,
    sources,
    weights_of,
    without_dropout,
    write_data,
    write_recipe,
)
from processor_parts import composed

from xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.tower_sources import part_of


pytestmark = pytest.mark.slow

LLMS = ("llama", "qwen3")
BRIEF = {**TRAINER, "num_train_epochs": 1}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(media, tmp_path_factory) -> Path:
    """A model over each language model, the second one's towers also by their source alone, and a recipe for each."""
    folder = tmp_path_factory.mktemp("llms")
    write_data(folder, media)
    stages = [{"stage": stage, "data": {"train": sources(folder)}} for stage in (2, 3)]
    for name in LLMS:
        config, processor = composed(CHATML, ["<|im_end|>", "<|im_start|>"], name)
        torch.manual_seed(0)
        model = without_dropout(XLLMForConditionalGeneration(config))
        for kind in (name, f"{name}-named"):
            model.save_pretrained(folder / kind) if kind == name else _name_towers(model, folder / name, folder / kind)
            processor.save_pretrained(folder / kind)
        write_recipe(folder, f"{name}-recipe", stages, model=name, trainer=BRIEF)
    write_recipe(folder, "bf16-recipe", stages, model="qwen3-named", trainer=BRIEF, dtype="bfloat16")
    return folder


def _name_towers(model, source: Path, target: Path) -> None:
    parts = {part_of(name) for name, _ in model.named_parameters()} - {"interfaces"}
    model.config.towers = {part: {"name_or_path": str(source), "revision": None} for part in parts}
    model.save_interfaces(target)
    model.config.towers = None


RECIPES = (*LLMS, "bf16")
STAGES = ("stage2-all", "stage3")


def lines(folder: Path, output: str, *added: str, names=RECIPES) -> list[list[str]]:
    recipes = [(name, str(folder / f"{name}-recipe.yaml")) for name in names]
    return [["train", path, f"output_dir={folder / output / name}", *added] for name, path in recipes]


@pytest.fixture(scope="module")
def one(folder) -> Path:
    """The runs of one process."""
    several(folder, *lines(folder, "one", ALONE), processes=1)
    return folder / "one"


def apart(folder: Path, one: Path, two: Path, name: str) -> list[float]:
    start = weights_of(folder / ("qwen3-named" if name == "bf16" else name))
    return [difference(start, *(weights_of(run / name / stage) for run in (one, two))) for stage in STAGES]


@pytest.mark.parametrize("kind", ["fsdp", "zero2", "zero3"])
def test_llama_and_qwen3_under_an_engine(kind, folder, one):
    """And, with bfloat16 in every tower, the interfaces in full precision; rounding is that of the towers then."""
    several(folder, *lines(folder, kind, *engine_of(kind, folder)))
    for name in LLMS:
        assert max(apart(folder, one, folder / kind, name)) <= 1e-6, name
    assert max(apart(folder, one, folder / kind, "bf16")) <= 2e-2
    config = json.loads((folder / kind / "bf16" / "stage3" / "config.json").read_text())
    assert config["towers"].keys() == {"vision_tower", "audio_tower", "language_model"}
    weights = weights_of(folder / kind / "bf16" / "stage3")
    assert {value.dtype for key, value in weights.items() if ".interfaces." in key} == {torch.float32}


def test_accelerate_launch_is_torchrun(folder, one):
    """As on several GPUs; with --cpu accelerate starts one process, whatever number it is given."""
    launch = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "xllm"]
    (line,) = lines(folder, "launched", names=["llama"])
    done = run(*launch, *line)
    assert max(apart(folder, one, folder / "launched", "llama")) <= 1e-6
    assert len(done.stdout.splitlines()) == 2  # a line per stage: the first process alone prints


def test_a_run_of_two_processes_goes_on_with_one(folder, one):
    """Killed in step 3 of 4; a step takes as many batches as before. A run of an engine goes on with that engine."""
    (line,) = lines(folder, "fewer", names=["qwen3"])
    with pytest.raises(AssertionError, match="Signal 9"):
        several(folder, {"kill": [1, 3]}, line)
    with pytest.raises(AssertionError, match="a step takes 1 batches .* in the run to go on with 2 "):
        several(folder, [*line, "--resume"], processes=1)
    done = several(folder, [*line, ALONE, "--resume"], processes=1)
    assert "was saved by 2 processes and goes on with 1" in done.stderr
    assert "stage2-all/checkpoint-2" in done.stderr
    assert max(apart(folder, one, folder / "fewer", "qwen3")) <= 1e-6
    (line,) = lines(folder, "fewer-zero2", *engine_of("zero2", folder), names=["qwen3"])
    with pytest.raises(AssertionError, match="Signal 9"):
        several(folder, {"kill": [1, 3]}, line)
    (line,) = lines(folder, "fewer-zero2", ALONE, names=["qwen3"])
    with pytest.raises(AssertionError, match="trainer.deepspeed is None, but the run to go on with has"):
        several(folder, [*line, "--resume"], processes=1)

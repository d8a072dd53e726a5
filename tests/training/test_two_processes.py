# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Two processes of gloo train as one does: any mixture of modalities, a recipe of two stages with all its files."""

import json
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from process_runs import (
    ALONE,
    ROOT,
    TORCHRUN,
    difference,
    engine_of,
    run,
    run_warm,
    several,
    sources,
    weights_of,
    without_dropout,
    write_data,
    write_recipe,
)

from xllm import XLLMForConditionalGeneration
from xllm.training.inspection.run_state import RunState


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp", "zero2", "zero3"])
def test_any_mixture_of_modalities_is_trained_as_by_one_process(kind):
    if kind.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    launch = run if kind == "ddp" else run_warm  # the first starts its own torchrun
    done = launch(str(ROOT / "benchmarks/two_processes.py"), "--mixes", "40", "--kinds", kind)
    *lines, last = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {line["task"] for line in lines} == {"align", "integrate", "one modality", "mute", "trained encoders"}
    assert last["mixes"] == 40
    assert last["worst"] <= 1e-6


ENGINES = ["ddp", "fsdp", "zero2", "zero3"]


@pytest.fixture(scope="module")
def folder(tiny_checkpoint, media, tmp_path_factory) -> Path:
    """A ChatGLM without dropout in `model`, pictures, clips and texts, DeepSpeed's configurations."""
    folder = tmp_path_factory.mktemp("processes")
    model = XLLMForConditionalGeneration.from_pretrained(tiny_checkpoint)
    shutil.copytree(tiny_checkpoint, folder / "model")
    without_dropout(model).save_pretrained(folder / "model")
    write_data(folder, media)
    return folder


@pytest.fixture(scope="module")
def recipe(folder) -> str:
    """All three stages, of speech, of pictures, and of both."""
    pictures = str(folder / "pictures.csv")
    evaluation = {"name": "all", "task": "qa", "data": pictures, "max_new_tokens": 1}
    stages = [
        {"stage": 1, "modalities": ["speech"], "data": {"train": str(folder / "speech.csv")}},
        {
            "stage": 1,
            "modalities": ["image"],
            "data": {"train": pictures},
            "trainer": {"per_device_train_batch_size": 2},
        },
        {"stage": 2, "data": {"train": sources(folder), "eval": pictures}},
        {"stage": 3, "data": {"train": sources(folder)}, "evaluate": evaluation},
    ]
    return write_recipe(folder, "recipe", stages)


# The contrast of stage 1 is between all that is in a step.
CONTRAST = ["stages.1.trainer.per_device_train_batch_size=4", "stages.1.trainer.gradient_accumulation_steps=1"]


@pytest.fixture(scope="module")
def one(recipe, folder) -> Path:
    """The run of one process."""
    several(folder, ["train", recipe, f"output_dir={folder / 'one'}", ALONE, *CONTRAST], processes=1)
    return folder / "one"


STAGES = ("stage1-speech", "stage1-image", "stage2-all", "stage3")


def compare(one: Path, two: Path, before: Path) -> None:
    """Every stage of two runs: weights, heads, lineage, receipt, and the files that a stage leaves."""
    start = weights_of(before)
    for name in STAGES:
        assert difference(start, weights_of(one / name), weights_of(two / name)) <= 1e-6, name
        lineages = [json.loads((run / name / "config.json").read_text())["lineage"] for run in (one, two)]
        for entries in zip(*lineages, strict=True):  # fingerprints of what was trained are bits
            kept = [{key: entry[key] for key in ("stage", "modalities", "data")} for entry in entries]
            assert kept[0] == kept[1]
        receipts = [json.loads((run / name / "frozen.json").read_text()) for run in (one, two)]
        assert receipts[0]["tensors"].keys() == receipts[1]["tensors"].keys()
        assert all(receipt["before"] == receipt["after"] for receipt in receipts)
        files = [sorted(path.name for path in (run / name).iterdir()) for run in (one, two)]
        assert files[0] == files[1]
    results = [json.loads((run / "stage3" / "results.json").read_text()) for run in (one, two)]
    assert results[0] == results[1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINES)
def test_all_stages_of_a_recipe_give_what_one_process_gives(kind, recipe, one, folder):
    """Saved as ordinary checkpoints, evaluated, described; the first process alone prints."""
    line = ["train", recipe, f"output_dir={folder / kind}", *engine_of(kind, folder)]
    done = several(folder, line, torchrun=kind != "zero2")  # for ZeRO, ZeRO-3 has it
    compare(one, folder / kind, folder / "model")
    found = RunState(folder / kind)
    found.look()
    looks = {name: (one.state, one.record["processes"], one.warnings) for name, one in found.stages.items()}
    assert looks == dict.fromkeys(STAGES, ("done", 2, {}))
    assert len(done.stdout.splitlines()) == 5  # a line per stage, and one of the evaluation
    assert done.stderr.count("stage 3 (image+speech+video): step 4/8") == 1
    before, after = weights_of(folder / "model"), weights_of(folder / kind / "stage3")
    assert all(torch.equal(after[key], before[key]) for key in after if ".video." in key)  # what no data feeds
    log = [json.loads(line) for line in (folder / kind / "stage2-all" / "log.jsonl").open()]
    assert sum("eval_loss" in entry for entry in log) == 2
    assert sum("loss" in entry for entry in log) == 8


@pytest.mark.slow
def test_muon_on_two_processes_steps_as_on_one(folder):
    optim = [{"match": "interfaces", "muon": True, "lr": 0.01}]
    stages = [{"stage": 2, "data": {"train": sources(folder)}, "optim": optim}]
    path = write_recipe(folder, "muon", stages)
    several(folder, ["train", path, f"output_dir={folder / 'muon-one'}", ALONE], processes=1)
    several(folder, ["train", path, f"output_dir={folder / 'muon-two'}"])
    start = weights_of(folder / "model")
    one, two = (weights_of(folder / name / "stage2-all") for name in ("muon-one", "muon-two"))
    assert difference(start, one, two) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINES)
def test_a_process_killed_in_the_middle_ends_the_run_and_it_goes_on(kind, recipe, one, folder):
    """SIGKILL for the second process in step 6 of stage 2."""
    line = ["train", recipe, f"output_dir={folder / 'killed'}-{kind}", *engine_of(kind, folder)]
    begun = time.monotonic()
    with pytest.raises(AssertionError, match="Signal 9"):
        several(folder, {"kill": [1, 6]}, line, torchrun=kind == "ddp")
    assert time.monotonic() - begun < 300
    done = several(folder, [*line, "--resume"])
    assert "stage2-all/checkpoint-5" in done.stderr
    compare(one, Path(f"{folder / 'killed'}-{kind}"), folder / "model")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINES)
def test_a_module_that_gives_nan_on_one_process_is_named(kind, folder):
    """In step 3, the second one; where an engine holds the model, from what is at home."""
    stage = {"stage": 2, "modalities": ["image"], "data": {"train": str(folder / "pictures.csv")}}
    line = ["train", write_recipe(folder, "poison", [stage]), f"output_dir={folder / 'poison'}-{kind}"]
    with pytest.raises(AssertionError) as failed:
        several(folder, {"poison": ["model.interfaces.image.adapter", 1, 3]}, [*line, *engine_of(kind, folder)])
    text = (
        "xllm train: stage 2 (image), step 3: the loss is nan: first in the output of model.interfaces.image.adapter; "
    )
    assert text in str(failed.value)
    assert (Path(f"{folder / 'poison'}-{kind}") / "stage2-image" / "checkpoint-2").is_dir()


# Name -> a stage, and what it adds to the command line of one process.
WAYS = {
    "lora and rates": {
        "stage": 3,
        "lora": {"r": 2},
        "optim": [{"match": "*.adapter", "lr": 1e-2}, {"match": "re:.*lora_B.*", "lr": 5e-3, "weight_decay": 0.0}],
    },
    "merged": {"stage": 3, "lora": {"r": 2, "dora": True, "merge": True}},
    "reset": {"stage": 2, "reset": ["image"], "modalities": ["image", "speech"]},
    "distilled": {"stage": 3, "distill": {"weight": 0.5}},
}


def ways(folder: Path, names, output: Path, *added: str) -> list[list[str]]:
    """A command line for each of the named ways."""
    lines = []
    for name in names:
        data = {"train": sources(folder)}
        path = write_recipe(folder, name, [{**WAYS[name], "data": data, "name": "stage"}])
        lines.append(["train", path, f"output_dir={output / name}", *added])
    return lines


@pytest.fixture(scope="module")
def ways_of_one(folder) -> Path:
    several(folder, *ways(folder, WAYS, folder / "ways", ALONE), processes=1)
    return folder / "ways"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ENGINES)
def test_adapters_rates_and_teachers_give_what_one_process_gives(kind, ways_of_one, folder):
    names = [name for name in WAYS if name != "distilled" or kind in ("ddp", "zero2")]
    several(folder, *ways(folder, names, folder / f"ways-{kind}", *engine_of(kind, folder)))
    before = weights_of(folder / "model")
    for name in names:
        mine, other = weights_of(ways_of_one / name / "stage"), weights_of(folder / f"ways-{kind}" / name / "stage")
        assert difference(before, mine, other) <= 1e-6, name


@pytest.mark.slow
def test_two_processes_share_the_features_of_pictures(recipe, folder):
    """Four pictures in two epochs of stage 3, read by whichever process gets them: the weights are the same."""
    data = {"train": sources(folder)}
    path = write_recipe(folder, "cached", [{"stage": 3, "data": data}])
    without = ["train", path, f"output_dir={folder / 'without'}"]
    cached = ["train", path, f"output_dir={folder / 'with'}", f"data.cache_features={folder / 'features'}"]
    several(folder, without, cached)
    weights = [weights_of(folder / name / "stage3") for name in ("without", "with")]
    assert [key for key, value in weights[0].items() if not torch.equal(value, weights[1][key])] == []
    entries = [json.loads(line) for line in (folder / "with" / "stage3" / "log.jsonl").open()]
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

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The shipped recipes, the paper's and its ablations, run as they are on the tiny preset: only the steps are fewer."""

import json

import pytest
import torch

from xllm import XLLMForConditionalGeneration
from xllm.assembly.opening import load_checkpoint
from xllm.assembly.tiny import build_tiny
from xllm.training.recipes.recipe import find_recipe, load_recipe, shipped_recipes
from xllm.training.stages import StageError
from xllm.training.starts import reset_interfaces
from xllm.training.train import check, train


@pytest.fixture
def files(media):
    """Data for each variable of a recipe, by the variable or by the recipe."""
    rows = [
        {"file": f"{name}.wav", "group": "digits_en", "text": text, "speaker": speaker, "take": take}
        for name, text in (("low", "one"), ("high", "two"))
        for speaker in ("ann", "bob")
        for take in (0, 20)
    ]
    (media / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (media / "recordings.csv").write_text("file,text\nlow.wav,low\nhigh.wav,high\n")
    (media / "sounds.csv").write_text("file,text\nlow.wav,a hum\nhigh.wav,a whistle\n")
    (media / "images.csv").write_text("file,text\nred.png,red\nblue.png,blue\n")
    (media / "videos.csv").write_text("file,text\nclip.mp4,grey\nclip.mp4,getting brighter\n")
    content = [{"type": "image", "path": "red.png"}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    (media / "instructions.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 2)
    kinds = {"recordings": "csv", "images": "csv", "videos": "csv", "sounds": "csv", "instructions": "jsonl"}
    found = {kind: str(media / f"{kind}.{suffix}") for kind, suffix in kinds.items()}
    stages = {"image": "images", "video": "videos", "sound": "sounds", "speech": "recordings"}
    stages["stage3"] = "instructions"
    return {"data_root": str(media), **found, **{name: found[kind] for name, kind in stages.items()}}


def overrides(name, files, tiny_checkpoint, output) -> list[str]:
    given = [f"output_dir={output}", "trainer.max_steps=2"]
    if name == "spoken_digits":
        return [*given, f"data_root={files['data_root']}"]
    given.append(f"model={tiny_checkpoint}")
    if name.startswith("ablation"):
        text = find_recipe(name).read_text()
        return [*given, *(f"{key}={files[key]}" for key in files if f"{key}: null" in text)]
    return [*given, f"train={files[name.rpartition('_')[2]]}"]


@pytest.mark.parametrize("name", shipped_recipes())
def test_it_runs_on_the_tiny_preset(name, files, tiny_checkpoint, tmp_path):
    if name.endswith("_sound"):  # of a row that the tiny preset has when asked
        tiny_checkpoint = build_tiny(tmp_path / "hears", kinds=["sound"])
    result = train(name, overrides(name, files, tiny_checkpoint, tmp_path / "out"), progress=False)
    for stage in result.stages:
        entries = [json.loads(line) for line in (stage.folder / "log.jsonl").read_text().splitlines()]
        assert entries[-1]["step"] == 2
        assert all(torch.tensor(entry["loss"]).isfinite() for entry in entries if "loss" in entry)
    model = load_checkpoint(str(result.checkpoint))[0]
    stages = load_recipe(name, overrides(name, files, tiny_checkpoint, tmp_path)).stages
    assert len(model.config.lineage) == len(stages)
    assert [entry["stage"] for entry in model.config.lineage] == [int(stage.stage) for stage in stages]


def test_a_reset_interface_is_like_that_of_a_new_model(tiny_checkpoint):
    model = load_checkpoint(str(tiny_checkpoint))[0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.model.interfaces.parameters():
            parameter.fill_(7.0)
    reset_interfaces(model, ["image", "speech"])
    new = XLLMForConditionalGeneration(model.config).state_dict()
    for name, tensor in model.state_dict().items():
        if not name.startswith(("model.interfaces.image.", "model.interfaces.speech.")):
            assert bool((tensor == (7.0 if "interfaces" in name else before[name])).all()), name
        elif tensor.numel() > 500:
            assert float(tensor.std()) == pytest.approx(float(new[name].std()), rel=0.2, abs=1e-6), name
            assert not torch.equal(tensor, before[name])
        else:
            assert float(tensor.abs().max()) <= max(5 * float(new[name].abs().max()), 1e-6), name


def test_the_ablation_without_initialisation_starts_from_other_weights(files, tiny_checkpoint, tmp_path):
    """Learning nothing, the one run keeps the interface that it is given, the other does not."""
    first = {}
    for name in ("ablation_little_data", "ablation_no_init"):
        given = [*overrides(name, files, tiny_checkpoint, tmp_path / name), "trainer.learning_rate=0.0"]
        first[name] = load_checkpoint(str(train(name, given, progress=False).stages[0].folder))[0].state_dict()
    base = load_checkpoint(str(tiny_checkpoint))[0].state_dict()
    kept, reset = (
        {key.split(".")[2] for key in base if not torch.equal(base[key], state[key])} for state in first.values()
    )
    assert (kept, reset) == (set(), {"image"})
    assert len(first["ablation_no_init"]) == len(base)


def test_only_what_is_trained_is_reset(files, tiny_checkpoint, tmp_path):
    recipe = {
        "model": str(tiny_checkpoint), "output_dir": str(tmp_path), "stage": 2, "modalities": ["image"],
        "data": {"train": files["image"]},
    }  # fmt: skip
    with pytest.raises(StageError, match="reset: this stage does not train speech"):
        check({**recipe, "reset": ["speech"]})
    with pytest.raises(StageError, match="no row 'sound'"):
        check({**recipe, "reset": ["sound"]})

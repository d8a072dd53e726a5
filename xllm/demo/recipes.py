# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo's stages as recipes: the same that `xllm train` takes, written beside the results."""

from pathlib import Path
from typing import Any

from xllm.demo.settings import DemoScale, Optimisation


# Interfaces that are trained one after the other; branches do not need each other.
BRANCHES = {"image": ("image", "video"), "speech": ("speech",)}


def _trainer(plan: Optimisation) -> dict[str, Any]:
    return {
        "max_steps": plan.steps,
        "per_device_train_batch_size": plan.batch_size,
        "learning_rate": plan.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "weight_decay": 0.01,
        "adam_beta2": 0.98,
        "logging_steps": max(1, plan.steps // 20),
        "use_cpu": True,
    }


def _data(number: int) -> dict[str, bool]:
    return {"cache_media": True, **({} if number == 1 else {"packing": True})}


def _optim(plan: Optimisation) -> list[dict[str, Any]]:
    """Muon for all matrices; a converter that has learnt already moves more slowly than its adapter."""
    entries = [{"match": "*", "muon": True, "lr": plan.muon_rate * plan.learning_rate}]
    if plan.converter_rate != 1.0:
        rate = plan.converter_rate * plan.learning_rate
        entries = [
            {"match": "interfaces.*.converter", "muon": True, "lr": plan.muon_rate * rate},
            {"match": "interfaces.*.converter", "lr": rate},
            *entries,
        ]
    return entries


def stage(number: int, modality: str, data: Path, plan: Optimisation, **more: Any) -> dict[str, Any]:
    """Stage 1 or 2 of one modality, from the file of `data` that is written for it."""
    name = {1: "convert", 2: "align"}[number]
    return {
        "stage": number,
        "modalities": [modality],
        "data": {"train": [{"path": str(data / f"{name}_{modality}.jsonl")}], **_data(number)},
        "trainer": _trainer(plan),
        "optim": _optim(plan),
        **more,
    }


def branch(name: str, output: Path, scale: DemoScale, seed: int) -> dict[str, Any]:
    """Stages 1 and 2 of the modalities of a branch."""
    data = output / "data"
    if name == "speech":
        # The second stage is to be no worse than the first one, which answers by its own heads.
        test = {"path": str(data / "test_speech.jsonl")}
        unseen = [{"name": "unseen_voices", "task": "asr", "data": [test], "max_new_tokens": 24, "batch_size": 50}]
        stages = [
            # The encoder is frozen: CTC would only train a head that is thrown away.
            stage(1, "speech", data, scale.speech_convert, objective={"ctc_weight": 0.0}, evaluate=unseen),
            stage(2, "speech", data, scale.speech_align, evaluate=unseen),
        ]
    else:
        objective = {"projection_size": 64, "max_text_length": 8}
        stages = [
            stage(1, "image", data, scale.image_convert, objective=objective),
            stage(2, "image", data, scale.image_align),
            # As in the paper, the video interface starts from the image's and needs no first stage of its own.
            stage(2, "video", data, scale.video_align, init_from={"video": "image"}),
        ]
    return {"model": str(output / "base"), "output_dir": str(output / "stages" / name), "seed": seed, "stages": stages}


def integration(aligned: Path, output: Path, scale: DemoScale, seed: int) -> dict[str, Any]:
    """Stage 3 over all modalities: questions about image and speech together, and those of stage 2 again."""
    path = str(output / "data" / "integrate.jsonl")
    last = {
        "stage": 3,
        "data": {"train": [{"path": path}], **_data(3)},
        # The only stage that has the machine to itself.
        "trainer": {**_trainer(scale.integrate), "dataloader_num_workers": 1},
        "optim": _optim(scale.integrate),
    }
    return {"model": str(aligned), "output_dir": str(output / "stages"), "seed": seed, "stages": [last]}


def last_checkpoint(name: str, output: Path) -> Path:
    """The checkpoint that a finished branch leaves."""
    return output / "stages" / name / f"stage2-{BRANCHES[name][-1]}"

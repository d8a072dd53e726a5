# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The runner: stages hand over to each other, frozen parts stay, logs and plots are left, bad input leaves nothing."""

import io
import json
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from xllm import XLLMForConditionalGeneration, XLLMProcessor
from xllm.assembly.opening import CheckpointError, load_checkpoint
from xllm.modeling_xllm.tower_sources import part_of
from xllm.modeling_xllm.weight_files import read_json
from xllm.training import running
from xllm.training.batches.collator import XLLMDataCollator
from xllm.training.data import row_files
from xllm.training.data.sources import DataError, read_rows
from xllm.training.evaluation.evaluation import run_evaluation
from xllm.training.recipes.recipe import EvaluationSpec, RecipeError, SourceSpec, load_recipe
from xllm.training.stages import LANGUAGE_MODEL, StageError, freeze_for_stage
from xllm.training.train import check, prepare_all, run_stage, train, write_summary
from xllm.training.trainers.callbacks import ProgressCallback, loss_curves
from xllm.training.trainers.watch import losses_of_rows, modalities_of_rows


QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2}


@pytest.fixture
def table(media):
    """A table of two recordings and one of two pictures."""
    (media / "speech.csv").write_text("file,text\nlow.wav,low\nhigh.wav,high\n")
    (media / "pictures.csv").write_text("file,text\nred.png,red\nblue.png,blue\n")
    return SimpleNamespace(speech=str(media / "speech.csv"), pictures=str(media / "pictures.csv"))


def tensors(folder):
    return XLLMForConditionalGeneration.from_pretrained(folder).state_dict()


def changed(before, after):
    assert before.keys() == after.keys()
    return sorted({".".join(name.split(".")[:4]) for name in before if not torch.equal(before[name], after[name])})


def test_three_stages_in_one_command(tiny_checkpoint, table, tmp_path):
    recipe = {
        "model": str(tiny_checkpoint),
        "output_dir": str(tmp_path / "out"),
        "trainer": QUICK,
        "stages": [
            {"stage": 1, "modalities": ["speech"], "train_encoder": True, "data": {"train": table.speech}},
            {"stage": 2, "modalities": ["speech"], "data": {"train": table.speech, "eval": table.speech}},
            {"stage": 3, "modalities": ["speech", "image"], "data": {"train": [table.speech, table.pictures]}},
        ],
    }
    result = train(recipe, progress=False)
    folders = [tmp_path / "out" / name for name in ("stage1-speech", "stage2-speech", "stage3-speech-image")]
    assert [stage.folder for stage in result.stages] == folders
    assert result.checkpoint == folders[-1]
    states = [tensors(folder) for folder in (tiny_checkpoint, *folders)]
    speech = "model.interfaces.speech."
    first = changed(states[0], states[1])
    assert any(name.startswith("model.audio_tower") for name in first)
    assert all(name.startswith((speech + "converter", "model.audio_tower")) for name in first)
    assert changed(states[1], states[2]) == [speech + "adapter", speech + "converter"]
    assert changed(states[2], states[3]) == ["model.interfaces.image.adapter", speech + "adapter"]

    entries = [json.loads(line) for line in (folders[0] / "log.jsonl").read_text().splitlines()]
    assert {"step", "loss", "ce_loss", "quantity_loss", "ctc_loss", "learning_rate"} <= set(entries[0])
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2]
    entries = [json.loads(line) for line in (folders[1] / "log.jsonl").read_text().splitlines()]
    assert any("eval_loss" in entry for entry in entries)
    logged = {key for line in (folders[2] / "log.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert {"loss_image", "loss_speech"} <= logged
    for folder in folders:
        assert Image.open(folder / "losses.png").size == (960, 600)
        assert not (folder / ".saving").exists()
    assert (folders[0] / "speech_recognition_heads.safetensors").exists()

    model, processor = load_checkpoint(str(result.checkpoint))
    assert isinstance(processor, XLLMProcessor)
    assert model.config.stage == {"stage": 3, "modalities": ["image", "speech"]}


def test_stage_1_of_images_leaves_the_rest_alone(tiny_checkpoint, table, tmp_path):
    recipe = {
        "model": str(tiny_checkpoint),
        "output_dir": str(tmp_path),
        "stage": 1,
        "modalities": ["image"],
        "objective": {"projection_size": 8},
        "data": {"train": table.pictures},
        "trainer": QUICK,
    }
    folder = train(recipe, progress=False).checkpoint
    assert changed(tensors(tiny_checkpoint), tensors(folder)) == ["model.interfaces.image.converter"]
    entry = json.loads((folder / "log.jsonl").read_text().splitlines()[0])
    assert entry["loss"] == pytest.approx(entry["itc_loss"] + entry["itm_loss"] + entry["itg_loss"], abs=1e-3)
    assert (folder / "qformer_pretraining_heads.safetensors").exists()


def test_video_starts_from_the_image_interface(tiny, media, tmp_path):
    model, processor = tiny
    interfaces = model.model.interfaces
    data = {"train": {"dataset": [{"file": str(media / "clip.mp4"), "text": "grey"}]}}
    stage = {"stage": 2, "modalities": ["video"], "init_from": {"video": "image"}, "data": data}
    run_stage(
        model, processor, {**stage, "trainer": {**QUICK, "learning_rate": 0.0}}, tmp_path, progress=False, save=False
    )
    assert torch.equal(interfaces["video"].adapter.weight, interfaces["image"].adapter.weight)
    assert torch.equal(interfaces["video"].converter.query_tokens, interfaces["image"].converter.query_tokens)
    assert not (tmp_path / "config.json").exists()


def test_language_model_on_text_alone(tiny, tmp_path):
    model, processor = tiny
    rows = [{"text": "one"}, {"text": "two"}]
    source = {"dataset": rows, "modality": "text", "prompts": ["repeat: {text}"]}
    model.requires_grad_(False)
    parts = {
        name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith(LANGUAGE_MODEL)
    }
    trained = run_stage(
        model, processor, {"stage": 0, "data": {"train": source}, "trainer": QUICK}, tmp_path, progress=False
    )
    assert all(name.startswith(LANGUAGE_MODEL) for name in trained.trained)
    assert all(torch.equal(tensor, parts[name]) for name, tensor in model.state_dict().items() if name in parts)
    assert trained.folder == tmp_path
    entry = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])
    assert entry["loss_text"] == pytest.approx(entry["loss"], rel=1e-3)  # rows of equal length


def test_a_frozen_tensor_that_moves_is_noticed(tiny, media, tmp_path, monkeypatch):
    model, processor = tiny

    class Careless(running.XLLMTrainer):
        def train(self):
            self.model.lm_head.weight.data[0, 0] += 1

    monkeypatch.setattr(running, "XLLMTrainer", Careless)
    stage = {"stage": 0, "data": {"train": {"dataset": [{"text": "a"}], "modality": "text"}}, "trainer": QUICK}
    run_stage(model, processor, stage, tmp_path / "a", progress=False)  # stage 0 trains the head
    rows = [{"file": str(media / "red.png"), "text": "a"}]
    stage = {"stage": 3, "modalities": ["image"], "data": {"train": {"dataset": rows}}, "trainer": QUICK}
    with pytest.raises(RuntimeError, match="1 frozen tensors have moved, nothing was saved: "):
        run_stage(model, processor, stage, tmp_path / "b", progress=False)
    left = {path.name for path in (tmp_path / "b").iterdir()}
    assert left == {"stage.json", "stopped.json"}, "what was asked for, to go on with, and what has ended it"
    assert read_json(tmp_path / "b/stopped.json")["error"].startswith("FrozenTensorError: 1 frozen tensors have moved")


def test_skipped_samples_are_in_the_log(tiny, media, tmp_path):
    model, processor = tiny
    rows = [{"file": str(media / name), "text": "a"} for name in ("low.wav", "broken.wav")]
    stage = {
        "stage": 2,
        "modalities": ["speech"],
        "data": {"train": {"dataset": rows}, "on_error": "skip"},
        "trainer": QUICK,
    }
    result = run_stage(model, processor, stage, tmp_path, progress=False, save=False)
    assert result.skipped == ["dataset[1]"]
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["skipped_samples"], last["skipped"]) == (1, ["dataset[1]"])


def test_evaluations_after_a_stage(tiny_checkpoint, table, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(row_files, "read_rows", lambda path, *rest: read.append(path) or read_rows(path, *rest))
    recipe = {
        "model": str(tiny_checkpoint),
        "output_dir": str(tmp_path),
        "trainer": QUICK,
        "data": {"train": table.speech},
        "evaluate": {"name": "all", "task": "asr", "data": table.speech, "max_new_tokens": 3},
        "stages": [{"stage": 1, "modalities": ["speech"]}, {"stage": 2, "modalities": ["speech"]}],
    }
    result = train(recipe, progress=False)
    for stage in result.stages:
        found = stage.evaluations["all"]
        assert (found["metric"], found["n"], found["reference"]) == ("cer", 2, len("low") + len("high"))
        assert found == json.loads((stage.folder / "results.json").read_text())["all"]
        samples = [json.loads(line) for line in (stage.folder / "samples_all.jsonl").read_text().splitlines()]
        assert [sample["reference"] for sample in samples] == ["low", "high"]
    assert len(read) == 4  # of each stage the training data and the evaluation's, once
    out = io.StringIO()
    write_summary(result, out)
    assert "all: cer" in out.getvalue()


def test_weighted_samples_of_an_evaluation_are_written_with_their_own_rows(tiny, tmp_path):
    texts = {"a": ["one", "two"], "b": ["three"]}
    data = [
        SourceSpec(name=name, dataset=[{"text": text} for text in texts[name]], modality="text", weight=weight)
        for name, weight in (("a", 2.0), ("b", 1.0))
    ]
    found = run_evaluation(
        *tiny, EvaluationSpec(name="x", task="qa", data=data, max_new_tokens=1, batch_size=2), folder=tmp_path
    )
    samples = [json.loads(line) for line in (tmp_path / "samples_x.jsonl").read_text().splitlines()]
    asked = [(sample["where"], sample["question"], sample["reference"]) for sample in samples]
    first, second = ("a[0]", "one", "one"), ("a[1]", "two", "two")
    assert asked == [first, second, first, second, ("b[0]", "three", "three")]
    assert found["n"] == 5


def test_the_same_seed_gives_the_same_weights(tiny_checkpoint, table, tmp_path):
    def run(name, seed):
        recipe = {
            "model": str(tiny_checkpoint),
            "output_dir": str(tmp_path / name),
            "seed": seed,
            "stage": 2,
            "modalities": ["speech"],
            "data": {"train": table.speech, "augment": ["speed", "spec_augment"]},
            "trainer": QUICK,
        }
        return tensors(train(recipe, progress=False).checkpoint)

    first = run("a", 1)
    assert changed(first, run("b", 1)) == []
    assert changed(first, run("c", 2)) != []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": "/nowhere"}, CheckpointError, "/nowhere: not a checkpoint"),
        ({"modalities": ["sound"]}, StageError, "no row 'sound'"),
        ({"stage": 1, "modalities": ["speech", "image"]}, StageError, "stage 1 trains one interface alone"),
        (
            {"stage": 1, "objective": {"ctc": 1}},
            StageError,
            "objective: unknown key 'ctc'; valid: ctc_weight, label_smoothing",
        ),
        ({"objective": {"ctc_weight": 1}}, StageError, "objective belongs to stage 1"),
        ({"data": {"train": "gone.csv"}}, DataError, "gone.csv: no such data file"),
        ({"data": {"train": "{speech}", "augment": ["sped"]}}, RecipeError, "did you mean 'speed'"),
        (
            {"evaluate": {"name": "a", "task": "ocr", "data": "{speech}"}},
            RecipeError,
            "task is 'ocr'; choose one of asr",
        ),
        ({"trainer": {"eval_strategy": "steps"}}, RecipeError, "data.eval is empty"),
        (
            {"trainer": {"lr_scheduler_type": "cosin"}},
            RecipeError,
            "trainer.lr_scheduler_type is .cosin.; choose one of linear, ",
        ),
        ({"init_from": {"speech": "image"}}, StageError, "speech and image have different converters"),
    ],
)
def test_bad_input_leaves_nothing(tiny_checkpoint, table, tmp_path, changes, error, message):
    recipe = {"model": str(tiny_checkpoint), "stage": 2, "modalities": ["speech"], "data": {"train": table.speech}}
    recipe = json.loads(json.dumps({**recipe, **changes}).replace("{speech}", table.speech))
    with pytest.raises(error, match=message):
        train({**recipe, "output_dir": str(tmp_path / "out")}, progress=False)
    assert not (tmp_path / "out").exists()


def test_frozen_towers_are_held_in_the_dtype_of_the_recipe(tiny_checkpoint, table, tmp_path):
    model, processor = load_checkpoint(str(tiny_checkpoint))
    parts = {part_of(name) for name, _ in model.named_parameters()} - {"interfaces"}
    model.config.towers = {part: {"name_or_path": str(tiny_checkpoint), "revision": None} for part in parts}
    model.save_interfaces(tmp_path / "named")
    processor.save_pretrained(tmp_path / "named")
    recipe = {
        "model": str(tmp_path / "named"), "output_dir": str(tmp_path / "out"), "dtype": "bfloat16", "trainer": QUICK,
        "stage": 2, "modalities": ["speech"], "data": {"train": table.speech},
    }  # fmt: skip
    opened = prepare_all(load_recipe(recipe), False, 0)[0]
    dtypes = {part: {p.dtype for name, p in opened.named_parameters() if part_of(name) == part} for part in parts}
    assert dtypes == dict.fromkeys(parts, {torch.bfloat16})
    folder = train(recipe, progress=False).checkpoint
    before, after = (
        XLLMForConditionalGeneration.from_pretrained(one, dtype=torch.float32).state_dict()
        for one in (tmp_path / "named", folder)
    )
    assert {".".join(name.split(".")[:3]) for name in changed(before, after)} == {"model.interfaces.speech"}
    assert tensors(folder)["lm_head.weight"].dtype == torch.bfloat16  # opened as it was trained


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dtype": "half"}, RecipeError, "dtype is 'half'; choose one of auto, float32, bfloat16, float16"),
        ({}, StageError, "dtype: bfloat16: the checkpoint holds audio_tower, language_model, vision_tower itself"),
        ({"stage": 1, "train_encoder": True}, RecipeError, "train_encoder: dtype bfloat16 would round what it saves"),
        ({"lora": {"merge": True}}, RecipeError, "lora.merge: dtype bfloat16 would round what it saves"),
    ],
)
def test_what_is_saved_is_never_rounded(tiny_checkpoint, table, tmp_path, changes, error, message):
    recipe = {
        "model": str(tiny_checkpoint), "output_dir": str(tmp_path / "out"), "dtype": "bfloat16", "trainer": QUICK,
        "stage": 2, "modalities": ["speech"], "data": {"train": table.speech}, **changes,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        train(recipe, progress=False)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_in_use_is_refused(tiny_checkpoint, table, tmp_path):
    (tmp_path / "stage3").mkdir()
    (tmp_path / "stage3" / "mine.txt").write_text("precious")
    recipe = {"model": str(tiny_checkpoint), "output_dir": str(tmp_path), "stage": 3, "data": {"train": table.speech}}
    with pytest.raises(ValueError, match="stage3: exists and is not an empty folder"):
        train(recipe)
    recipe["output_dir"] = str(tmp_path / "new")
    assert check(recipe)[0].startswith("stage 3 (image+speech+video): 2 samples")
    assert not (tmp_path / "new").exists()


def test_the_plain_trainer_needs_only_the_collator(tiny, media, tmp_path):
    model, processor = tiny
    user = {
        "role": "user",
        "content": [{"type": "image", "path": str(media / "red.png")}, {"type": "text", "text": "?"}],
    }
    rows = [
        {"messages": [user, {"role": "assistant", "content": "red"}]},
        {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "none"}]},
    ]
    trained = set(freeze_for_stage(model, 2, ["image"]))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    args = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=1, remove_unused_columns=False, label_names=["labels"],
        report_to="none", disable_tqdm=True, use_cpu=True, learning_rate=1e-2, weight_decay=0.0, save_strategy="no",
    )  # fmt: skip
    Trainer(model, args, data_collator=XLLMDataCollator(processor), train_dataset=rows).train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= trained
    assert "model.interfaces.image.adapter.weight" in moved


def test_losses_by_modality_by_hand():
    # Vocabulary of 3; 1 is the image placeholder. Uniform logits cost log 3, a sure right answer 0.
    config = SimpleNamespace(
        modalities={"image": SimpleNamespace(token_id=1), "speech": SimpleNamespace(token_id=None)}
    )
    input_ids = torch.tensor([[1, 0, 2], [0, 0, 2], [0, 0, 0]])
    labels = torch.tensor([[-100, -100, 2], [-100, 0, 2], [-100, -100, -100]])
    logits = torch.tensor([[0.0, 0, 0], [50, 0, 0], [0, 0, 50]])
    assert modalities_of_rows(config, input_ids) == ["image", "text", "text"]
    *losses, without_target = losses_of_rows(labels, logits).tolist()
    assert losses == [pytest.approx(1.0986, abs=1e-4), pytest.approx(0.0, abs=1e-4)]
    assert math.isnan(without_target)


def test_progress_lines():
    state = SimpleNamespace(global_step=0, max_steps=40, is_world_process_zero=True)
    now = [0.0]
    stream = io.StringIO()
    progress = ProgressCallback("stage 2 (image)", stream, clock=lambda: now[0])
    progress.on_train_begin(None, state, None)
    state.global_step, now[0] = 9, 9.0
    progress.on_step_end(None, state, None)  # not a terminal: a line for each logged step
    state.global_step, now[0] = 10, 30.0
    progress.on_log(None, state, None, logs={"loss": 1.25})
    assert stream.getvalue() == "stage 2 (image): step 10/40, loss 1.2500, 00:30 elapsed, ETA 01:30\n"


def test_loss_curves_take_losses_only():
    entries = [
        {"step": 1, "loss": 2.0, "loss_image": 1.0, "ctc_loss": 3.0, "grad_norm": 9.0},
        {"step": 2, "train_loss": 1.0},
    ]
    assert loss_curves(entries) == {"loss": [(1, 2.0)], "loss_image": [(1, 1.0)], "ctc_loss": [(1, 3.0)]}


def test_a_slow_step_shows_a_sign_of_life_where_there_is_no_terminal():
    state = SimpleNamespace(global_step=0, max_steps=40, is_world_process_zero=True)
    now = [0.0]
    stream = io.StringIO()
    progress = ProgressCallback("stage 2 (image)", stream, clock=lambda: now[0])
    progress.on_train_begin(None, state, None)
    for step, now[0] in ((1, 6.0), (2, 12.0), (3, 18.0), (4, 24.0)):
        state.global_step = step
        progress.on_step_end(None, state, None)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "stage 2 (image): step 2/40", "stage 2 (image): step 4/40",
    ]  # fmt: skip

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Distillation from the text LLM: equal to a computation by hand, no gradient into the teacher, who has a text."""

import json

import pytest
import torch
from torch.nn import functional as F
from transformers import TrainingArguments

from xllm import XLLMDataCollator, add_lora, freeze_for_stage
from xllm.training.adapters import adapter_of
from xllm.training.data.media_rows import DataError
from xllm.training.data.sources import load_source
from xllm.training.recipes.recipe import RecipeError, SourceSpec, load_recipe
from xllm.training.train import check, train
from xllm.training.trainers.distillation import TEACHER, DistillSpec, distillation_loss, teacher_logits
from xllm.training.trainers.trainer import XLLMTrainer


QUICK = {"max_steps": 2, "per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 1e-2}


def rows(media) -> list[dict]:
    """Two recordings, one with what it says, and a text alone."""

    def asked(*content, answer):
        return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]

    low, high = ({"type": "audio", "path": str(media / f"{name}.wav")} for name in ("low", "high"))
    say = {"type": "text", "text": "say it"}
    return [
        {"messages": asked(low, say, answer="one two"), "equivalents": ["one two three"]},
        {"messages": asked(high, say, answer="low"), "equivalents": None},
        {"messages": asked(say, answer="it"), "equivalents": None},
    ]


@torch.no_grad()
def shaken(model):
    """The model with weights large enough that a prompt changes the answer."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.15)
    return model


@pytest.fixture
def student(tiny, tmp_path):
    """A trainer of stage 2 of speech on the tiny preset without dropout, and its collator."""
    model, processor = tiny
    for module in shaken(model).modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", remove_unused_columns=False)

    def make(**spec):
        freeze_for_stage(model, 2, ["speech"])
        trainer = XLLMTrainer(model, args)
        trainer.distill = DistillSpec(**spec)
        model.train()
        return trainer, XLLMDataCollator(processor, distills=True)

    return make


def by_hand(model, processor, samples, weight, temperature) -> torch.Tensor:
    """Cross-entropy and distillation sample by sample, over all logits of two plain forward passes."""
    cross, divergence, count = 0.0, 0.0, 0
    for sample in samples:
        batch = XLLMDataCollator(processor)([sample])
        labels = batch.pop("labels")[0, 1:]
        student = model(**batch).logits[0, :-1][labels != -100]
        targets = labels[labels != -100]
        cross = cross + F.cross_entropy(student, targets, reduction="sum")
        count += len(targets)
        if not sample["equivalents"]:
            continue
        user, answer = sample["messages"]
        spoken = [{"type": "text", "text": sample["equivalents"][0]}, *user["content"][1:]]
        told = XLLMDataCollator(processor)([{"messages": [{**user, "content": spoken}, answer]}])
        its = told.pop("labels")[0, 1:]
        with torch.no_grad():
            teacher = model(**told).logits[0, :-1][its != -100]
        p = torch.softmax(teacher / temperature, -1)
        divergence = divergence + (p * (p.log() - torch.log_softmax(student / temperature, -1))).sum()
    return cross / count, weight * temperature**2 * divergence / count


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 2.0), (0.3, 1.0)])
@pytest.mark.parametrize("accumulated", [False, True])
def test_it_is_what_one_computes_by_hand(student, tiny, media, weight, temperature, accumulated):
    trainer, collator = student(weight=weight, temperature=temperature)
    samples = rows(media)
    batch = collator(samples)
    count = int((batch["labels"][:, 1:] != -100).sum())
    items = torch.tensor(2 * count) if accumulated else None
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=items)
    loss.backward()
    found = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
    trainer.model.zero_grad()
    # In training as it is: logits of all positions come in eval mode alone, and there is no dropout.
    trainer.model.eval()
    cross, divergence = by_hand(trainer.model, tiny[1], samples, weight, temperature)
    assert float(divergence) > 1e-3
    expected = (cross + divergence) / (2 if accumulated else 1)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    expected.backward()
    assert found.keys() == {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    for name, p in trainer.model.named_parameters():
        if name in found and p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-6, msg=name)
    assert not any("language_model" in name or "lm_head" in name for name in found)
    assert float(trainer._found["distilled"][0]) == pytest.approx(samples_share(batch))


def samples_share(batch) -> float:
    targets = (batch["labels"][:, 1:] != -100).sum(1)
    return float(targets[0] / targets.sum())


def test_a_student_that_agrees_loses_nothing():
    logits = torch.randn(3, 5)
    assert float(distillation_loss(logits, logits, torch.ones(3, dtype=torch.bool), 2.0)) == pytest.approx(0, abs=1e-6)
    uniform = torch.zeros(1, 2)
    sure = torch.tensor([[50.0, 0.0]])  # KL of a sure teacher from an even student: log 2
    kept = torch.tensor([True])
    assert float(distillation_loss(uniform, sure, kept, 1.0)) == pytest.approx(0.6931, abs=1e-4)
    assert float(distillation_loss(uniform, sure, ~kept, 1.0)) == 0.0


def test_a_trained_adapter_is_the_student_s_alone_and_a_kept_one_is_not(tiny, media):
    model, processor = shaken(tiny[0]), tiny[1]
    batch = XLLMDataCollator(processor, distills=True)(rows(media))
    plain = teacher_logits(model.eval(), batch[TEACHER])
    with torch.no_grad():
        for name in add_lora(model, r=2):
            model.get_parameter(name).normal_(std=0.3)
    freeze_for_stage(model, 2, ["speech"])
    model.train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    torch.testing.assert_close(teacher_logits(model, batch[TEACHER]), plain, atol=1e-6, rtol=1e-5)
    assert model.training
    assert trained == [name for name, p in model.named_parameters() if p.requires_grad]
    freeze_for_stage(model, 2, ["speech"], train_adapters=False)
    assert float((teacher_logits(model, batch[TEACHER]) - plain).abs().max()) > 1e-3
    assert adapter_of(model)["r"] == 2


@pytest.fixture
def recipe(tiny, media, tmp_path):
    shaken(tiny[0]).save_pretrained(tmp_path / "model")
    tiny[1].save_pretrained(tmp_path / "model")
    (media / "speech.csv").write_text("file,text,said\nlow.wav,low,a low tone\nhigh.wav,high,a high tone\n")
    source = {"path": str(media / "speech.csv"), "text_column": "text", "text_equivalent": "{said}"}
    return {
        "model": str(tmp_path / "model"), "output_dir": str(tmp_path / "out"), "trainer": QUICK, "stage": 2,
        "modalities": ["speech"], "data": {"train": source, "eval": source}, "distill": {"weight": 0.5},
    }  # fmt: skip


def test_a_stage_distils_and_says_how_much(recipe):
    folder = train(recipe, progress=False).checkpoint
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    losses = [entry for entry in entries if "distill_loss" in entry]
    assert len(losses) == 2
    assert all(entry["distill_loss"] > 0 and entry["distilled"] == 1.0 for entry in losses)
    spoken = losses[0]["loss_speech"]
    assert losses[0]["loss"] == pytest.approx(spoken + 0.5 * losses[0]["distill_loss"], rel=0.05)
    assert any("eval_loss" in entry for entry in entries)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": 1}, "distill belongs to stages 2 and 3"),
        ({"data": {"train": "a", "long_audio": "chunk", "max_seconds": 1.0}}, "chunk makes several media of one"),
        ({"distill": {"weight": 0.0}}, "weight and temperature are above 0"),
        ({"distill": {"temp": 1.0}}, "unknown key 'distill.temp'"),
    ],
)
def test_bad_settings(recipe, changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe({**recipe, **changes})


def test_samples_without_a_text_equivalent_are_counted_or_refused(recipe, media, caplog):
    table = media / "some.jsonl"
    lines = [{"file": "low.wav", "text": "low", "text_equivalent": "a low tone"}, {"file": "high.wav", "text": "high"}]
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe["data"] = {"train": str(table)}
    check(recipe)
    assert "stage 2.distill: 1 of 2 samples have a text equivalent" in caplog.text
    table.write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(RecipeError, match="no sample of data.train has a text equivalent of its media"):
        check(recipe)
    table.write_text(json.dumps({**lines[0], "text_equivalent": ["a", "b"]}) + "\n")
    with pytest.raises(DataError, match=r"some.jsonl:1: text_equivalent holds 2 texts for 1 media"):
        load_source(SourceSpec(path=str(table)))

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The table of CONTRIBUTING.md: what it names exists, and each line is done as it says."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny import MELS, tiny_model
from transformers import ParakeetEncoderConfig

from xllm.modeling_xllm import speech_encoders
from xllm.modeling_xllm.conversion.convert import open_published
from xllm.modeling_xllm.conversion.layouts import LAYOUTS, Layout
from xllm.modeling_xllm.speech_encoders import SpeechInput, speech_input
from xllm.training.data.augmentation import AUGMENTATIONS, Augmentation
from xllm.training.data.row_forms import FORMS, Form, with_columns
from xllm.training.data.sources import Sample, load_source
from xllm.training.evaluation.evaluation import score_samples
from xllm.training.evaluation.metrics import METRICS
from xllm.training.evaluation.tasks import TASKS, Task
from xllm.training.recipes.recipe import EvaluationSpec, SourceSpec
from xllm.training.stages import TRAINED_PARTS, Stage, freeze_for_stage


ROOT = Path(__file__).resolve().parents[1]


def test_what_the_text_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and "`" in line]
    assert len(rows) == 11
    for name in re.findall(r"`([a-z_0-9./]+/[a-z_0-9.]+\.(?:py|json|md))`", text):
        assert (ROOT / name).is_file(), name
    for row in rows:
        assert re.search(r"\| `tests/[\w/]+\.py` \|$", row), row


def test_a_data_form(monkeypatch, tmp_path):
    """Rows of two columns with the names of a survey."""

    def read_survey(spec, where, row, media):
        return Sample(where, prompts=[row["asked"]], answers=[row["said"]])

    monkeypatch.setitem(FORMS, "survey", Form(read_survey, with_columns("asked said")))
    path = tmp_path / "rows.csv"
    path.write_text("asked,said\nHow many?,Three\n")
    (sample,) = load_source(SourceSpec(path=str(path)))
    assert [message["content"][0]["text"] for message in sample.conversation(lambda n: 0)] == ["How many?", "Three"]


def test_a_metric(monkeypatch):
    """How much longer answers are than references."""

    def length(references, answers):
        return {"value": sum(map(len, answers)) / sum(map(len, references))}

    monkeypatch.setitem(METRICS, "length", length)
    monkeypatch.setitem(TASKS, "brief", Task("length", "summarization"))
    samples = [{"reference": "ab", "answer": "ab"}, {"reference": "cd", "answer": "cdefgh"}]
    assert score_samples(EvaluationSpec(name="x", task="brief"), samples) == {
        "metric": "length",
        "value": 2.0,
        "accuracy": 0.5,
        "n": 2,
        "skipped": 0,
    }


def test_an_augmentation(monkeypatch):
    @dataclass
    class Reverse:
        kind: ClassVar[str] = "waveform"

        def __call__(self, wave, rng):
            return wave[::-1]

    monkeypatch.setitem(AUGMENTATIONS, "reverse", Reverse)
    wave = np.arange(3.0)
    assert Augmentation.from_spec(["reverse"]).apply("waveform", wave, np.random.default_rng(0)).tolist() == [2, 1, 0]


def test_a_speech_encoder(monkeypatch):
    """A family with one convolution of stride 3, without padding."""
    config = ParakeetEncoderConfig(hidden_size=16, num_mel_bins=MELS)
    monkeypatch.setitem(speech_encoders.RULES, config.model_type, lambda _: SpeechInput(((3, 3, 0),)))
    assert speech_input(config).stride == 3
    assert speech_input(config).num_frames(10) == 3


def test_a_published_layout(monkeypatch, tmp_path):
    """A file that holds an I-Adapter alone, under names of its own."""
    table = {r"model\.interfaces\.image\.adapter\.(\w+)": r"bridge.\1"}
    monkeypatch.setitem(LAYOUTS, "bridge", Layout("a bridge", lambda heads: heads == {"bridge"}, (table,)))
    path = tmp_path / "bridge.pth"
    torch.save({"model": {"bridge.weight": torch.zeros(32, 16), "bridge.bias": torch.zeros(32)}}, path)
    read = open_published(str(path))
    assert (read.kind, read.label) == ("bridge", f"{path} (a bridge)")
    assert read.our_names() == {
        "model.interfaces.image.adapter.weight": "bridge.weight",
        "model.interfaces.image.adapter.bias": "bridge.bias",
    }


def test_what_a_stage_trains(monkeypatch):
    """Stage 3 with the Q-Former's query tokens, without its adapter."""
    monkeypatch.setitem(TRAINED_PARTS, Stage.INTEGRATE, ("converter.query_tokens",))
    model = tiny_model()
    assert freeze_for_stage(model, 3, "image") == ["model.interfaces.image.converter.query_tokens"]
    assert [name for name, one in model.named_parameters() if one.requires_grad] == freeze_for_stage(model, 3, "image")


def test_unknown_names_list_what_was_added(monkeypatch):
    monkeypatch.setitem(FORMS, "survey", None)
    with pytest.raises(ValueError, match="choose one of auto, .*messages, .*survey"):
        load_source(SourceSpec(dataset=[{}], format="surveys"))

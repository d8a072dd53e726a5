# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`report.html`, which every stage leaves beside its checkpoint."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from media_files import sine, write_wav
from PIL import Image

from xllm.assembly.tiny import build_tiny
from xllm.training.inspection import report
from xllm.training.train import train


HOSTILE = '<script>alert("a")</script>'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Stages 1 (of speech) and 2 of a tiny model; one row has a hostile answer, another a broken picture."""
    folder = tmp_path_factory.mktemp("report")
    build_tiny(folder / "tiny")
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(folder / f"{name}.png")
        write_wav(folder / f"{name}.wav", [sine()])
    (folder / "b.png").write_bytes(b"not a picture")
    for ending, first in (("png", HOSTILE), ("wav", "2")):
        rows = [{"file": f"{name}.{ending}", "text": first if name == "a" else "0"} for name in ("a", "b", "c")]
        (folder / f"{ending}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    trainer = {"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 2}
    sound = {"data": {"train": [{"path": str(folder / "wav.jsonl")}]}, "modalities": ["speech"], "trainer": trainer}
    pictures = {"train": [{"path": str(folder / "png.jsonl")}], "on_error": "skip"}
    stages = [
        {"stage": 1, **sound},
        {"stage": 2, "modalities": ["image"], "data": pictures, "trainer": trainer, "report_samples": 3},
        {"stage": 2, **sound, "report_samples": 0},
    ]
    recipe = {"model": str(folder / "tiny"), "output_dir": str(folder / "out"), "stages": stages}
    found = train(recipe, progress=False)
    return [(stage.folder / "report.html").read_text(encoding="utf-8") for stage in found.stages], found


class Page(HTMLParser):
    """Elements and texts of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.sources, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        self.texts.append(data)


def test_a_page_shows_samples_before_and_after_and_loads_nothing(run):
    text, result = run[0][1], run[1].stages[1]
    page = Page(text)
    assert "script" not in page.tags
    assert HOSTILE in page.texts
    assert page.sources
    assert all(source.startswith(("data:", "#")) for source in page.sources)
    assert page.texts.count("before") == page.texts.count("after") == 2  # the third cannot be shown, and is named
    assert any("png.jsonl:2 cannot be shown" in piece for piece in page.texts)
    trained = f"{sum(count for count in _trained(result)):,}"
    assert trained in page.texts
    assert json.loads((result.folder / "frozen.json").read_text())["after"] in text


def _trained(result):
    from xllm import XLLMForConditionalGeneration

    model = XLLMForConditionalGeneration.from_pretrained(result.folder)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return [sizes[name] for name in result.trained]


def test_a_recogniser_of_stage_1_has_answers_too_and_players(run):
    page = Page(run[0][0])
    assert page.texts.count("after") == 3
    assert page.tags.count("audio") == 3


def test_samples_can_be_left_out(run):
    assert "before and after" not in run[0][2]
    assert "losses by step" in run[0][2]


def test_the_answers_before_are_those_of_the_untrained_model_and_change_nothing(run, tmp_path):
    """The page is made of the model in training: the same run without samples gives the same weights."""
    text, result = run[0][1], run[1].stages[1]
    assert re.search(r"<b>image 1</b>", text)
    recipe = {
        "model": str(run[1].stages[0].folder),
        "output_dir": str(tmp_path),
        "stage": 2,
        "modalities": ["image"],
        "data": {"train": [{"path": str(result.folder.parents[1] / "png.jsonl")}], "on_error": "skip"},
        "trainer": {"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 2},
        "report_samples": 0,
    }
    again = train(recipe, progress=False).stages[0]
    names = ("model.safetensors",)
    assert [(again.folder / name).read_bytes() for name in names] == [
        (result.folder / name).read_bytes() for name in names
    ]


def test_a_sample_that_cannot_be_answered_does_not_end_the_run(run, tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(report, "answer_rows", fail)
    recipe = {
        "model": str(run[1].stages[0].folder),
        "output_dir": str(tmp_path),
        "stage": 2,
        "modalities": ["image"],
        "data": {"train": [{"path": str(run[1].stages[1].folder.parents[1] / "png.jsonl")}], "on_error": "skip"},
        "trainer": {"max_steps": 1, "per_device_train_batch_size": 2},
        "report_samples": 1,
    }
    folder = train(recipe, progress=False).stages[0].folder
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.texts.count("(no answer: RuntimeError: out of memory)") == 2
    assert (folder / "config.json").exists()

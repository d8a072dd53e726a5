# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""lmms-eval asks an X-LLM about a task made up on the spot, and gets the answers of `xllm evaluate`."""

import json

import pytest

from xllm.cli import main


pytest.importorskip("lmms_eval", reason="the extra lmms-eval is not installed")

TASK = """
task: made_up_colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function colours.doc_to_visual
doc_to_text: "What is this?"
doc_to_target: answer
process_results: !function colours.process_results
generation_kwargs:
  max_new_tokens: 4
metric_list:
  - metric: colour_accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  version: 0
"""
FUNCTIONS = """
from PIL import Image


def doc_to_visual(doc):
    return [Image.open(doc["file"]).convert("RGB")]


def process_results(doc, results):
    return {"colour_accuracy": float(results[0] == doc["answer"])}
"""


@pytest.mark.slow
def test_a_made_up_task(tiny_checkpoint, media, tmp_path, monkeypatch, capsys):
    from lmms_eval import evaluator
    from lmms_eval.models import MODEL_REGISTRY_V2
    from lmms_eval.tasks import TaskManager

    from xllm.training.evaluation.lmms_eval_model import LmmsEvalModel, manifest

    # what `xllm evaluate` hears is the reference of the made-up task: all of it is right, if both are the same
    rows = [("red.png", "red"), ("blue.png", "blue")]
    (tmp_path / "t.csv").write_text("image,text\n" + "".join(f"{file},{text}\n" for file, text in rows))
    asked = ["evaluate", str(tiny_checkpoint), "--task", "qa", "--data", str(tmp_path / "t.csv"), "--prompt"]
    asked += ["What is this?", "--media-root", str(media), "--max-new-tokens", "4", "--output", str(tmp_path / "o")]
    assert main(asked) == 0
    said = [json.loads(line)["answer"] for line in (tmp_path / "o/samples_qa.jsonl").open()]
    docs = [{"file": str(media / file), "answer": answer.strip()} for (file, _), answer in zip(rows, said)]
    (tmp_path / "task").mkdir()
    (tmp_path / "task/rows.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "task/colours.yaml").write_text(TASK.format(rows=tmp_path / "task/rows.jsonl"))
    (tmp_path / "task/colours.py").write_text(FUNCTIONS)
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    assert MODEL_REGISTRY_V2.get_model_class("xllm") is LmmsEvalModel
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    found = evaluator.simple_evaluate(
        model="xllm", model_args=f"pretrained={tiny_checkpoint},device=cpu", tasks=["made_up_colours"], batch_size=2,
        task_manager=TaskManager(include_path=str(tmp_path / "task"), model_name="xllm"), bootstrap_iters=0,
        log_samples=True,
    )  # fmt: skip
    assert found["results"]["made_up_colours"]["colour_accuracy,none"] == 1.0
    model = LmmsEvalModel(str(tiny_checkpoint), device="cpu")
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])

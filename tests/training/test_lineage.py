# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Where a checkpoint comes from, and that nothing frozen has moved."""

import hashlib
import json

import pytest
import torch
from tiny import tiny_model
from transformers import TrainingArguments

from xllm import XLLMForConditionalGeneration
from xllm.training.adapters import add_lora
from xllm.training.data.samples import Sample
from xllm.training.data.sources import load_source
from xllm.training.recipes.recipe import SourceSpec
from xllm.training.saving import lineage
from xllm.training.saving.lineage import (
    RECEIPT_NAME,
    FreezeReceipt,
    FrozenTensorError,
    adapter_entry,
    adapter_fingerprint,
    data_fingerprint,
    interfaces_fingerprint,
    lineage_entry,
    raise_if_moved,
)
from xllm.training.stages import freeze_for_stage
from xllm.training.train import run_stage
from xllm.training.trainers.trainer import XLLMTrainer


def test_each_stage_says_where_it_comes_from(tiny, media, tmp_path):
    model, processor = tiny
    rows = [{"file": str(media / f"{name}.png"), "text": name} for name in ("red", "blue")]
    trainer = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-2}
    trainer |= {"save_strategy": "steps", "save_steps": 1, "use_cpu": True}
    for number in (2, 3):
        stage = {"stage": number, "modalities": ["image"], "trainer": trainer}
        stage["data"] = {"train": {"dataset": rows, "modality": "image", "name": "colours"}}
        before = interfaces_fingerprint(model)
        run_stage(model, processor, stage, tmp_path / str(number), progress=False)
        assert model.config.lineage[-1]["parent"] == before != model.config.lineage[-1]["weights"]
    saved = XLLMForConditionalGeneration.from_pretrained(tmp_path / "3")
    first, second = saved.config.lineage
    assert (first["stage"], second["stage"]) == (2, 3)
    assert second["parent"] == first["weights"], "an unbroken chain"
    assert second["weights"] == interfaces_fingerprint(saved), "and its end is this checkpoint"
    assert second["data"]["names"] == ["colours"]
    assert second["data"]["samples"] == 2
    assert second["package"].startswith("xllm-transformers")

    for folder in (tmp_path / "3", tmp_path / "3" / "checkpoint-1"):
        receipt = json.loads((folder / RECEIPT_NAME).read_text())
        assert receipt["before"] == receipt["after"] == second["frozen"]["sha256"]
        assert len(receipt["tensors"]) == second["frozen"]["tensors"]
    freeze_for_stage(saved, 3, ["image"])
    assert FreezeReceipt(saved).before == receipt["tensors"], "anyone can check it"
    assert "model.language_model.word_embeddings.weight" in receipt["tensors"]


def test_a_checkpoint_is_not_saved_if_a_frozen_tensor_moved(tiny, tmp_path):
    model, _ = tiny
    freeze_for_stage(model, 3)
    trainer = XLLMTrainer(model=model, args=TrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    trainer.receipt = FreezeReceipt(model)
    with torch.no_grad():
        model.model.interfaces["image"].adapter.weight.add_(1)  # trained: may move
    trainer.save_model(str(tmp_path / "good"))
    assert (tmp_path / "good" / RECEIPT_NAME).is_file()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(FrozenTensorError, match=r"1 frozen tensors have moved, nothing was saved: lm_head\.weight;"):
        trainer.save_model(str(tmp_path / "bad"))
    assert not list(tmp_path.glob("bad/*"))


def test_the_data_s_fingerprint_is_of_its_content(tmp_path):
    found = []
    for folder, text in (("a", "one"), ("b", "one"), ("c", "two")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.wav").touch()
        (tmp_path / folder / "data.csv").write_text(f"file,text\nx.wav,{text}\n")
        spec = SourceSpec(path=str(tmp_path / folder / "data.csv"), modality="speech")
        found.append(data_fingerprint(load_source(spec)))
    assert found[0] == found[1], "wherever it lies"
    assert found[0]["sha256"] != found[2]["sha256"]
    assert found[0]["samples"] == 1


def sha256(*pieces: bytes) -> str:
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def over(tensors: dict[str, torch.Tensor]) -> str:
    """What a fingerprint is of, worked out here: of each tensor its type, shape and bytes, under its name."""
    hashes = {
        name: sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), tensor.detach().clone().numpy().tobytes())
        for name, tensor in tensors.items()
    }
    return sha256(json.dumps(hashes, sort_keys=True).encode())


def test_fingerprints_are_those_of_other_versions(tmp_path):
    """Another way to write the same thing down would break the chains of all checkpoints there are."""
    model = tiny_model()
    interfaces = model.model.interfaces.state_dict()
    assert interfaces_fingerprint(model) == over(interfaces) != over(dict(list(interfaces.items())[1:]))
    assert adapter_fingerprint(model) is None
    add_lora(model, r=2)
    adapter = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    assert adapter_fingerprint(model) == over(adapter)
    freeze_for_stage(model, 3)
    receipt = FreezeReceipt(model)
    frozen = {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}
    plain = {name.replace(".base_layer.", "."): parameter for name, parameter in frozen.items()}
    buffers = {name: tensor for name, tensor in model.state_dict().items() if name in dict(model.named_buffers())}
    assert receipt.fingerprint == over(plain | buffers)
    assert receipt.check() == {"tensors": len(plain | buffers), "sha256": receipt.fingerprint} == receipt.checked
    assert receipt.write(tmp_path) == tmp_path / "frozen.json"
    written = json.loads((tmp_path / "frozen.json").read_text())
    assert written == {"before": receipt.fingerprint, "after": receipt.fingerprint, "tensors": receipt.before}
    unchecked = FreezeReceipt(model)
    assert json.loads(unchecked.write(tmp_path).read_text()) == written
    assert unchecked.checked == receipt.checked
    with torch.no_grad():
        model.lm_head.weight.add_(1)  # a large model is not hashed once more
    assert json.loads(receipt.write(tmp_path).read_text()) == written


@pytest.mark.parametrize(("cores", "threads"), [(None, 1), (3, 3), (64, 8)])
def test_tensors_are_hashed_by_no_more_threads_than_cores(monkeypatch, cores, threads):
    made = []
    pool = lineage.ThreadPoolExecutor
    monkeypatch.setattr(lineage, "ThreadPoolExecutor", lambda most: made.append(most) or pool(most))
    monkeypatch.setattr(lineage.os, "cpu_count", lambda: cores)
    FreezeReceipt(torch.nn.Linear(2, 2))
    assert made == [threads]


@pytest.mark.parametrize("merge", [False, True])
def test_a_receipt_names_what_an_adapter_was_put_into(tmp_path, merge):
    model = tiny_model()
    assert adapter_entry(model, None, FreezeReceipt(model), False) is None
    add_lora(model, r=2, alpha=4)
    freeze_for_stage(model, 2)
    receipt, weights = FreezeReceipt(model), adapter_fingerprint(model)
    receipt.check()
    entry = adapter_entry(model, "before", receipt, merge)
    assert {name: entry[name] for name in ("parent", "weights", "merged", "r", "alpha")} == {
        "parent": "before", "weights": weights, "merged": merge, "r": 2, "alpha": 4,
    }  # fmt: skip
    layers = [name for name in receipt.before if name.endswith("query_key_value.weight")]
    written = json.loads(receipt.write(tmp_path).read_text())
    assert written.get("merged", []) == receipt.merged == (layers if merge else [])
    assert written["after"] == written["before"], "as it was checked, before the adapter was put into it"
    assert (adapter_fingerprint(model) is None) == merge


def test_an_entry_has_an_adapter_only_where_the_stage_has():
    parts = 2, ["image"], "before", "after", {"samples": 1}, {"tensors": 3}
    entry = lineage_entry(*parts)
    assert list(entry) == ["stage", "modalities", "parent", "weights", "data", "frozen", "package"]
    assert [*entry.values()][:6] == [*parts]
    assert lineage_entry(*parts, adapter={"r": 2}) == {**entry, "adapter": {"r": 2}}


def test_an_error_names_three_of_the_tensors_that_have_moved():
    raise_if_moved([])
    with pytest.raises(FrozenTensorError, match="^3 frozen tensors have moved, nothing was saved: a, b, c; only"):
        raise_if_moved(["a", "b", "c"])
    with pytest.raises(FrozenTensorError, match=r"^4 frozen tensors .*: a, b, c \.\.\.; only"):
        raise_if_moved(["a", "b", "c", "d"])


def test_the_data_s_fingerprint_is_of_all_that_a_sample_says():
    text, image = {"type": "text", "text": "né"}, {"type": "image", "path": "/some/where/red.png"}
    asked, answered = {"role": "user", "content": [image, text]}, {"role": "assistant", "content": [text]}
    samples = [
        Sample("a:1", media=[image], prompts=["?"], answers=["né", "red"], source="colours"),
        Sample("a:2", messages=[asked, {**answered, "loss": False}, asked, answered], source="talk"),
        Sample("a:3", messages=[asked, answered], equivalents=["a red square"], source="colours"),
        Sample("a:4", messages=[asked, answered]),
    ]
    question = '["user", [["image", "red.png"], ["text", "né"]]]'
    answer = '["assistant", [["text", "né"]]]'
    lines = [
        '[[["image", "red.png"]], ["?"], ["né", "red"]]',
        f"[{question}, {answer[:-1]}, false], {question}, {answer}]",
        f'[[{question}, {answer}], ["a red square"]]',
        f"[{question}, {answer}]",
    ]
    expected = sha256(*(line.encode() + b"\n" for line in lines))
    assert data_fingerprint(samples) == {"names": ["colours", "talk"], "samples": 4, "sha256": expected}

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Columns of the types Image, Audio and Video of the `datasets` library, decoded here (no torchcodec), to batches."""

import pytest
import torch
from datasets import Audio, Dataset, Features, Image, List, Value, Video, load_dataset
from datasets.table import embed_table_storage
from transformers import Trainer, TrainingArguments

from xllm import XLLMDataCollator, freeze_for_stage


FILES = {"image": "red.png", "audio": "low.wav", "video": "clip.mp4"}
COLUMNS = {"image": Image(), "audio": Audio(decode=False), "video": Video(decode=False)}
ANSWER = {"role": "assistant", "content": [{"type": "text", "text": "a thing"}]}


def conversation(part: dict) -> list[dict]:
    return [{"role": "user", "content": [part, {"type": "text", "text": "What is this?"}]}, ANSWER]


def assert_same_batch(batch: dict, expected: dict) -> None:
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(batch[name], tensor, atol=0, rtol=0)


@pytest.fixture(scope="module")
def columns(media):
    """One row per medium, the others None; each column of its type."""
    rows = {kind: [str(media / FILES[row]) if row == kind else None for row in FILES] for kind in FILES}
    dataset = Dataset.from_dict(rows)
    for kind, feature in COLUMNS.items():
        dataset = dataset.cast_column(kind, feature)
    return dataset


@pytest.fixture(scope="module")
def expected(media, tiny_processor):
    samples = [{"messages": conversation({"type": kind, "path": str(media / name)})} for kind, name in FILES.items()]
    return XLLMDataCollator(tiny_processor)(samples)


def messages_of(row: dict) -> list[dict]:
    kind = next(kind for kind in FILES if row[kind] is not None)
    return conversation({"type": kind, kind: row[kind]})


def to_messages(rows: dict) -> dict:
    return {"messages": [messages_of(dict(zip(rows, values))) for values in zip(*rows.values())]}


def test_typed_columns_become_messages_when_read(columns, expected, tiny_processor):
    dataset = columns.with_transform(to_messages)
    assert_same_batch(XLLMDataCollator(tiny_processor)(list(dataset)), expected)


def test_media_inside_parquet_as_on_the_hub(columns, expected, tiny_processor, tmp_path):
    """`push_to_hub` writes the files' bytes into the table; read back as a stream, too."""
    embedded = columns.with_format("arrow").map(embed_table_storage, batched=True).with_format(None)
    embedded.to_parquet(tmp_path / "data.parquet")
    for streaming in (False, True):
        dataset = load_dataset(
            "parquet", data_files=str(tmp_path / "data.parquet"), split="train", streaming=streaming,
            cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        assert {kind: type(dataset.features[kind]) for kind in FILES} == {
            "image": Image,
            "audio": Audio,
            "video": Video,
        }
        for kind, feature in COLUMNS.items():
            dataset = dataset.cast_column(kind, feature)
        rows = list(dataset)
        assert rows[1]["audio"]["bytes"][:4] == b"RIFF"
        samples = [{"messages": messages_of(row)} for row in rows]
        assert_same_batch(XLLMDataCollator(tiny_processor)(samples), expected)


def test_typed_media_inside_messages_with_none_in_every_other_key(media, expected, tiny_processor):
    keys = {"type": None, "text": None, **dict.fromkeys(FILES)}
    rows = []
    for kind, name in FILES.items():
        messages = conversation({"type": kind, kind: str(media / name)})
        rows.append([{**m, "content": [{**keys, **part} for part in m["content"]]} for m in messages])
    part = {"type": Value("string"), "text": Value("string"), **COLUMNS}
    messages = List({"role": Value("string"), "content": List(part)})
    dataset = Dataset.from_dict({"messages": rows}).cast(Features({"messages": messages}))
    read = list(dataset)
    assert read[0]["messages"][0]["content"][0]["audio"] is None
    assert read[1]["messages"][0]["content"][0]["audio"].keys() == {"bytes", "path"}
    assert_same_batch(XLLMDataCollator(tiny_processor)(read), expected)


def test_the_plain_trainer_reads_typed_columns(columns, tiny, tmp_path):
    model, processor = tiny
    names = freeze_for_stage(model, "align")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=3, learning_rate=1e-2, use_cpu=True,
        remove_unused_columns=False, label_names=["labels"], save_strategy="no",
    )  # fmt: skip
    dataset = columns.with_transform(to_messages)
    Trainer(model, arguments, data_collator=XLLMDataCollator(processor), train_dataset=dataset).train()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved <= set(names)
    assert {name.split(".")[2] for name in moved} == set(model.config.modalities)

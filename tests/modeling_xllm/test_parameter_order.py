# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Parameters come in one order, so that an optimizer's state, which numbers them, fits a reopened model."""

import pytest
import torch
from tiny import batch_of, mixed_rows, tiny_model, tiny_rows

from xllm import X2LConfig, XLLMForConditionalGeneration, freeze_for_stage


def rows() -> dict:
    """In another order than the files have: the owner of a shared converter behind the row that shares it."""
    table = tiny_rows()
    table["zebra"] = X2LConfig(
        **{**table["image"].to_dict(), "input_name": "z", "placeholder_token": "<Z>", "token_id": 9}
    )
    table["video"].shares_converter_with = "zebra"
    return dict(sorted(table.items(), key=lambda item: item[0][1:]))


def optimizer_of(model, **kind) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, **kind)


def train(model, optimizer, steps: range) -> None:
    model.train()
    batch = batch_of(mixed_rows())
    for step in steps:
        torch.manual_seed(step)  # dropout
        model(**batch, labels=batch["input_ids"]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [{"fused": True}, {"foreach": False}], ids=["fused", "plain"])
def test_training_goes_on_from_a_folder_as_if_it_had_not_stopped(tmp_path, kind):
    assert list(rows()) == ["zebra", "video", "image", "speech"]
    model = tiny_model(rows=rows())
    names = freeze_for_stage(model, "align", train_shared=True)
    optimizer = optimizer_of(model, **kind)
    train(model, optimizer, range(2))
    model.save_pretrained(tmp_path)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    train(model, optimizer, range(2, 4))

    again = XLLMForConditionalGeneration.from_pretrained(tmp_path)
    assert freeze_for_stage(again, "align", train_shared=True) == names
    resumed = optimizer_of(again, **kind)
    resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt"))
    train(again, resumed, range(2, 4))
    expected = model.state_dict()
    assert [name for name, tensor in again.state_dict().items() if not torch.equal(tensor, expected[name])] == []


def test_names_come_in_one_order():
    orders = [rows(), dict(reversed(rows().items())), dict(sorted(rows().items()))]
    names = [[name for name, _ in tiny_model(rows=order).named_parameters()] for order in orders]
    assert names[0] == names[1] == names[2]

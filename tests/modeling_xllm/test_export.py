# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`torch.export` of each interface: one graph, whose outputs do not depend on the values it was traced with."""

import functools

import pytest
import torch
from tiny import STATUS, VIDEO, batch_of, gradients, mixed_rows, tiny_model, tiny_rows
from torch import nn

from xllm import X2LConfig, freeze_for_stage


WIDTH = 16  # of the encoders' features


class Alone(nn.Module):
    """One interface with the one whose converter it shares, taking tensors only."""

    def __init__(self, model, modality: str):
        super().__init__()
        row = model.config.modalities[modality]
        self.interface = model.model.interfaces[modality]
        self.owner = model.model.interfaces[row.shares_converter_with or modality]  # its parameters are wanted too

    def forward(self, hidden, mask=None, frame_mask=None):
        output = self.interface(hidden, mask=mask, frame_mask=frame_mask)
        return output.embeddings, output.mask, output.num_placeholders


@pytest.fixture(scope="module")
def model():
    status = X2LConfig(
        encoder=None,
        encoder_hidden_size=WIDTH,
        input_name="status_values",
        mask_name="status_mask",
        converter="linear",
        placeholder_token="<StatusHere>",
        token_id=STATUS,
    )
    return tiny_model(rows=tiny_rows(status=status))


def some_lengths() -> torch.Tensor:
    return torch.arange(9) < torch.randint(1, 10, (2, 1))


CASES = {
    "image": lambda: {"hidden": torch.randn(2, 5, WIDTH)},
    "video": lambda: {"hidden": torch.randn(5, 5, WIDTH), "frame_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()},
    "speech": lambda: {"hidden": torch.randn(2, 9, WIDTH), "mask": some_lengths()},
    "status": lambda: {"hidden": torch.randn(2, 9, WIDTH), "mask": some_lengths()},
}


@pytest.mark.parametrize("modality", CASES)
@torch.no_grad()
def test_an_exported_interface_gives_the_same_embeddings(model, modality):
    interface = Alone(model, modality).eval()
    exported = torch.export.export(interface, (), CASES[modality](), strict=False).module()
    widths = set()
    for seed in range(4):
        torch.manual_seed(seed)
        inputs = CASES[modality]()
        embeddings, mask, owned = interface(**inputs)
        widths.add(mask.shape[1])
        more_embeddings, more_mask, more_owned = exported(**inputs)
        # The graph of a C-Former has room for a token per frame; what did not fire is masked.
        K = mask.shape[1]
        torch.testing.assert_close(more_embeddings[:, :K], embeddings)
        assert more_mask[:, :K].equal(mask)
        assert not more_mask[:, K:].any()
        assert more_owned.equal(owned)
    assert len(widths) > 1 or modality != "speech"  # the test saw clips that fire different numbers of tokens


def batches() -> list[dict]:
    """All that a processor emits: a batch of rows of every kind, and the same with a frame and its words missing."""
    whole = batch_of(mixed_rows())
    shorter = {name: value.clone() for name, value in whole.items()}
    shorter["video_frame_mask"][0, -1] = 0
    row, columns = shorter["input_ids"][2], (shorter["input_ids"][2] == VIDEO).nonzero().flatten()
    row[columns[-len(columns) // 3 :]] = 15  # the placeholders of one frame of three
    shorter["input_features"] = shorter["input_features"].flip(-1)  # other tokens fire
    return [whole, shorter]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chatglm", "llama"])
@pytest.mark.parametrize("way", ["export", "compile"])
@torch.no_grad()
def test_the_whole_model_is_one_graph_whatever_the_values(kind, way):
    model, graphs = tiny_model(kind), []
    if way == "export":
        graph = torch.export.export(model, (), {**batches()[0], "use_cache": False}, strict=False).module()
        graph = functools.partial(graph, use_cache=False)
    else:
        graph = torch.compile(model, fullgraph=True, backend=lambda module, _: graphs.append(module) or module.forward)
    for batch in batches():
        torch.testing.assert_close(graph(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)
    assert len(graphs) == (way == "compile")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["chatglm", "llama"])
def test_a_training_step_of_stage_2_compiles_with_three_breaks_at_most(kind):
    """Of a batch of every kind; what is trained gets the gradients of the model as it is."""
    model, graphs = tiny_model(kind), []
    freeze_for_stage(model, 2)
    for layer in model.train().modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif hasattr(layer, "attention_dropout"):
            layer.attention_dropout = 0.0
    batch = batch_of([(ids + [30], media) for ids, media in mixed_rows()])
    batch["labels"] = batch["input_ids"].where(batch["input_ids"] == 30, -100)
    plain, expected = gradients(model, **batch)
    torch.compiler.reset()
    graph = torch.compile(model, backend=lambda module, _: graphs.append(module) or module.forward)
    loss, found = gradients(graph, **batch)
    torch.testing.assert_close(loss, plain)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[f"_orig_mod.{name}"], gradient, atol=1e-5, rtol=1e-3)
    assert 1 <= len(graphs) <= 4

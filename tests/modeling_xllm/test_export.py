# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`torch.export` of each interface: one graph, whose outputs do not depend on the values it was traced with."""

import pytest
import torch
from tiny import STATUS, tiny_model, tiny_rows
from torch import nn

from xllm import X2LConfig


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

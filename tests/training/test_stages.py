# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`freeze_for_stage` trains exactly what the table declares; the fingerprint notices any other change."""

import pytest
import torch
from tiny import tiny_model, tiny_rows

from xllm import X2LConfig
from xllm.training.saving.lineage import FreezeReceipt, FrozenTensorError
from xllm.training.stages import LANGUAGE_MODEL, StageError, freeze_for_stage


def names_below(model, *prefixes):
    return [name for name, _ in model.named_parameters() if name.startswith(prefixes)]


def trainable(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


IMAGE, VIDEO, SPEECH = (f"model.interfaces.{name}." for name in ("image", "video", "speech"))


@pytest.mark.parametrize(
    ("stage", "modalities", "switches", "prefixes"),
    [
        (1, ["image"], {}, [IMAGE + "converter."]),
        (1, ["video"], {}, [VIDEO + "converter."]),
        (1, ["video"], {"train_shared": True}, [IMAGE + "converter.", VIDEO + "converter."]),
        (1, ["speech"], {}, [SPEECH + "converter."]),
        (1, ["speech"], {"train_encoder": True}, [SPEECH + "converter.", "model.audio_tower."]),
        (2, ["image"], {}, [IMAGE]),
        (2, ["video"], {}, [VIDEO]),
        ("align", "speech", {}, [SPEECH]),
        (2, None, {}, [IMAGE, VIDEO, SPEECH]),
        (3, None, {}, [IMAGE + "adapter.", VIDEO + "adapter.", SPEECH + "adapter."]),
        (3, ["image", "speech"], {}, [IMAGE + "adapter.", SPEECH + "adapter."]),
        (
            3,
            ["image"],
            {"train_query_tokens": True},
            [IMAGE + "adapter.", IMAGE + "converter.query_tokens"],
        ),
        (0, None, {}, list(LANGUAGE_MODEL)),
    ],
)
def test_exactly_the_declared_set(stage, modalities, switches, prefixes):
    model = tiny_model()
    names = freeze_for_stage(model, stage, modalities, **switches)
    assert names == trainable(model) == names_below(model, *prefixes)
    assert names


def test_a_borrowed_qformer_stays_frozen():
    model = tiny_model()
    names = freeze_for_stage(model, 2, ["video"])
    assert names == [VIDEO + "converter.query_tokens", VIDEO + "adapter.weight", VIDEO + "adapter.bias"]


def test_stages_follow_each_other_without_leftovers():
    model = tiny_model()
    freeze_for_stage(model, 1, ["speech"], train_encoder=True)
    assert freeze_for_stage(model, 3, ["image"]) == trainable(model) == names_below(model, IMAGE + "adapter.")


@pytest.mark.parametrize(
    ("arguments", "switches", "message"),
    [
        ((4,), {}, r"stage is 4; choose one of 0 \(text\), 1 \(convert\), 2 \(align\), 3 \(integrate\)"),
        (("aline",), {}, "stage is 'aline'"),
        ((2, ["sound"]), {}, "no row 'sound'; this model has image, speech, video"),
        ((2, []), {}, "trains nothing"),
        ((2,), {"train_encoder": True}, "train_encoder belongs to stage 1"),
        ((1, ["image"]), {"train_query_tokens": True}, "train_query_tokens belongs to stage 3"),
    ],
)
def test_errors_name_the_choices(arguments, switches, message):
    with pytest.raises(StageError, match=message):
        freeze_for_stage(tiny_model(), *arguments, **switches)


def test_a_linear_row_has_no_stage_1():
    status = X2LConfig(
        encoder=None,
        input_name="status",
        converter="linear",
        encoder_hidden_size=4,
        placeholder_token="<S>",
        token_id=113,
    )
    model = tiny_model(rows=tiny_rows(status=status))
    with pytest.raises(StageError, match=r"stage 1 \(convert\) trains nothing of status \(linear\)"):
        freeze_for_stage(model, 1, ["status"])
    assert freeze_for_stage(model, 2, ["status"]) == names_below(model, "model.interfaces.status.")


def test_the_receipt_sees_frozen_tensors_and_only_those():
    model = tiny_model()
    freeze_for_stage(model, 3, ["speech"])
    receipt = FreezeReceipt(model)
    with torch.no_grad():
        model.model.interfaces["speech"].adapter.weight.add_(1.0)
    receipt.check()
    with torch.no_grad():
        model.model.interfaces["image"].adapter.bias[0] += 1e-6
    with pytest.raises(
        FrozenTensorError, match=r"1 frozen tensors have moved.*: model.interfaces.image.adapter.bias;"
    ):
        receipt.check()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = -model.lm_head.weight[0, 0]
    with pytest.raises(FrozenTensorError, match="2 frozen tensors have moved.*: lm_head.weight, "):
        receipt.check()


def test_the_receipt_sees_statistics_of_a_frozen_encoder():
    model = tiny_model()
    freeze_for_stage(model, 2, ["speech"])
    receipt = FreezeReceipt(model)
    norm = next(module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d))
    norm.running_mean.add_(0.5)
    with pytest.raises(FrozenTensorError, match="running_mean"):
        receipt.check()

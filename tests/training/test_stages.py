# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`freeze_for_stage` trains exactly what the table declares; the fingerprint notices any other change."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_model, tiny_rows

from xllm import X2LConfig, add_lora
from xllm.training.saving.lineage import FreezeReceipt, FrozenTensorError
from xllm.training.stages import (
    LANGUAGE_MODEL,
    Stage,
    StageError,
    adapter_parameters,
    count_parameters,
    freeze_for_stage,
    frozen_tensors,
    part_of_parameter,
    resolve_stage,
)


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


@pytest.mark.parametrize("stage", [1, 2])
def test_heads_are_trained_in_stage_1(stage):
    model = tiny_model()
    model.extra = torch.nn.Linear(2, 2)
    names = freeze_for_stage(model, stage, ["image"])
    assert ("extra.weight" in names, "extra.bias" in names) == (stage == 1,) * 2


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


def test_a_stage_has_a_number_and_a_name():
    for number, name in enumerate(("text", "convert", "align", "integrate")):
        assert {resolve_stage(one) for one in (number, str(number), name, name.upper(), Stage(number))} == {number}


@pytest.mark.parametrize(("stage", "switches"), [(1, {"train_encoder": True}), (2, {}), (0, {})])
def test_whatever_is_saved_and_not_trained_is_frozen(stage, switches):
    """Statistics of a norm that is trained move with it."""
    model = tiny_model()
    trained = set(freeze_for_stage(model, stage, ["speech"], **switches))
    beside_trained = {name.rpartition(".")[0] for name in trained}
    buffers = {name for name, _ in model.named_buffers() if name.rpartition(".")[0] in beside_trained}
    saved = model.state_dict(keep_vars=True)
    expected = {name: tensor for name, tensor in saved.items() if name not in trained | buffers}
    found = frozen_tensors(model)
    assert found.keys() == expected.keys()
    assert all(found[name] is tensor for name, tensor in expected.items())
    assert any("running_mean" in name for name in saved)
    assert any("running_mean" in name for name in buffers) == ("train_encoder" in switches)


def test_saved_buffers_are_frozen_unless_a_parameter_of_their_module_is_trained():
    model = torch.nn.Module()
    model.register_buffer("scale", torch.ones(1))
    model.register_buffer("cache", torch.ones(1), persistent=False)
    model.still, model.norm = torch.nn.BatchNorm1d(2, affine=False), torch.nn.BatchNorm1d(2)
    model.norm.bias.requires_grad_(False)
    still = {f"still.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(frozen_tensors(model)) == {"scale", "norm.bias"} | still


def test_parts_and_their_parameters_are_counted():
    model = tiny_model()
    freeze_for_stage(model, 3, ["image"])
    counts = count_parameters(model)
    tree = model.model
    parts = {f"interfaces.{name}": interface for name, interface in tree.interfaces.items()}
    parts |= {"vision_tower": tree.vision_tower, "audio_tower": tree.audio_tower}
    sizes = {name: sum(one.numel() for one in part.parameters()) for name, part in parts.items()}
    sizes["language_model"] = sum(one.numel() for one in [*tree.language_model.parameters(), model.lm_head.weight])
    assert {name: total for name, (_, total) in counts.items()} == sizes
    adapter = sum(one.numel() for one in tree.interfaces["image"].adapter.parameters())
    assert {name: trained for name, (trained, _) in counts.items() if trained} == {"interfaces.image": adapter}


def test_a_parameter_s_part_is_its_interface_its_tower_or_its_head():
    names = ("model.interfaces.image.adapter.weight", "model.extra_towers.a.b.weight", "lm_head.weight", "ctc.weight")
    parts = ["interfaces.image", "extra_towers.a", "language_model", "ctc"]
    assert [part_of_parameter(name) for name in names] == parts


@pytest.mark.parametrize("switch", [{}, {"train_adapters": False}], ids=str)
@pytest.mark.parametrize(("stage", "prefix"), [(0, "model.language_model."), (2, IMAGE)])
def test_adapters_are_trained_and_what_they_are_put_around_is_not(stage, prefix, switch):
    model = tiny_model()
    add_lora(model, r=2)
    adapters = adapter_parameters(model)
    assert sorted(adapters) == sorted(name for name, _ in model.named_parameters() if ".lora_" in name)
    names = freeze_for_stage(model, stage, ["image"], **switch)
    plain = names_below(model, prefix, *(("lm_head.",) if stage == 0 else ()))
    expected = {name for name in plain if ".base_layer." not in name and name not in adapters}
    assert set(names) == set(trainable(model)) == expected | (set() if switch else set(adapters))
    frozen = frozen_tensors(model)
    assert not any(".base_layer." in name for name in frozen)
    assert "model.language_model.layers.0.attention.query_key_value.weight" in frozen


def test_interfaces_that_a_wrapper_would_lose_are_not_trained_beside_it():
    model = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["query_key_value"])).get_base_model()
    with pytest.raises(StageError, match=r"would lose \d+ trained tensors, .*: give .* xllm.add_lora"):
        freeze_for_stage(model, "align", "speech")
    assert "lm_head.weight" in freeze_for_stage(model, "text"), "a language model by itself is not lost"

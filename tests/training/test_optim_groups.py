# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Learning rates and weight decay by names of parameters: which belong where, what moves, what is refused, resume."""

import copy
import io
import json
from collections import Counter

import pytest
import torch
from tiny import tiny_model

from xllm import XLLMForConditionalGeneration, add_lora, freeze_for_stage
from xllm.training.recipes.recipe import RecipeError, load_recipe
from xllm.training.running import XLLMTrainer
from xllm.training.train import check, train
from xllm.training.trainers.muon import MuonBeside
from xllm.training.trainers.optim_groups import OptimSpec, entry_of_each, split_groups


QUICK = {"max_steps": 4, "per_device_train_batch_size": 1, "logging_steps": 1, "learning_rate": 1e-2}


@pytest.fixture
def recipe(tiny_checkpoint, media, tmp_path):
    (media / "speech.csv").write_text("file,text\nlow.wav,low\nhigh.wav,high\n")
    return {
        "model": str(tiny_checkpoint), "output_dir": str(tmp_path / "out"), "trainer": QUICK,
        "stage": 2, "modalities": ["speech"], "data": {"train": str(media / "speech.csv")},
    }  # fmt: skip


def speech_model():
    model = tiny_model()
    freeze_for_stage(model, 2, ["speech"])
    return model


def test_each_trained_parameter_is_in_exactly_one_group():
    model = speech_model()
    specs = [
        OptimSpec(match="interfaces.*.adapter", lr=1e-3, weight_decay=0.5),
        OptimSpec(match=r"re:.*\.converter\..*(query|key)\..*", weight_decay=0.2),
    ]
    decayed = [name for name, p in model.named_parameters() if p.dim() > 1]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.05)
    split_groups(optimizer, specs, model, decayed)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    counts = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    assert counts == Counter(id(p) for p in parameters)
    assert found["model.interfaces.speech.adapter.weight"] == (1e-3, 0.5)
    assert found["model.interfaces.speech.adapter.bias"] == (1e-3, 0.0)
    others = {name: value for name, value in found.items() if ".adapter." not in name}
    for name, value in others.items():
        decay = 0.2 if ".query." in name or ".key." in name else 0.05
        assert value == (1e-2, decay if name in decayed else 0.0), name
    assert set(others.values()) == {(1e-2, 0.2), (1e-2, 0.05), (1e-2, 0.0)}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["interfaces.*.adaptor"],
            r"optim.0: 'interfaces.\*.adaptor' matches no parameter; trained ones are",
        ),
        (
            ["interfaces.image"],
            "optim.0: 'interfaces.image' matches only frozen parameters, e.g. model",
        ),
        (["interfaces", "*.adapter"], "optim.1: .* matches only parameters of the entries before it"),
        ([r"re:.*\.adapter"], "matches no parameter"),  # whole names
    ],
)
def test_an_entry_that_sets_nothing_is_refused(patterns, message):
    with pytest.raises(RecipeError, match=message):
        entry_of_each([OptimSpec(match=pattern, lr=1.0) for pattern in patterns], speech_model())


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"match": "a"}, "optim.0 sets neither lr nor weight_decay of 'a'"),
        ({"match": "a", "lr": -1.0}, "must not be negative"),
        ({"match": "re:(", "lr": 1.0}, r"optim.0.match is 're:\(', no regular expression"),
        ({"lr": 1.0}, "optim.0.match is missing"),
        ({"match": "a", "learning_rate": 1.0}, "unknown key 'optim.0.learning_rate'"),
    ],
)
def test_malformed_entries(entry, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe({"model": "m", "output_dir": "o", "stage": 2, "data": {"train": "a"}, "optim": [entry]})


def test_a_run_moves_what_has_a_rate(recipe):
    before = XLLMForConditionalGeneration.from_pretrained(recipe["model"]).state_dict()
    recipe["optim"] = [{"match": "*.converter", "lr": 0.0, "weight_decay": 0.0}]
    after = XLLMForConditionalGeneration.from_pretrained(train(recipe, progress=False).checkpoint).state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert sorted(moved) == ["model.interfaces.speech.adapter.bias", "model.interfaces.speech.adapter.weight"]


def test_adapters_and_heads_of_stage_1_have_names_too(recipe, tmp_path):
    recipe["optim"] = [{"match": "re:.*lora_[AB].*", "lr": 1e-4}]
    with pytest.raises(RecipeError, match="matches no parameter"):
        check(recipe)
    assert check({**recipe, "lora": {"r": 2}})
    heads = {**recipe, "stage": 1, "output_dir": str(tmp_path / "one")}
    assert check({**heads, "optim": [{"match": "ctc_head", "lr": 1e-4}]})
    with pytest.raises(RecipeError, match="'ctc_haed' matches no parameter"):
        check({**heads, "optim": [{"match": "ctc_haed", "lr": 1e-4}]})
    assert not (tmp_path / "out").exists()


def test_a_schedule_scales_each_rate_and_a_resumed_run_goes_on_with_them(recipe, tmp_path, monkeypatch):
    """Rates of all groups, step by step; and the same weights where the run goes on from its second step."""
    rates = []
    step = XLLMTrainer.training_step

    def watched(self, *args, **kwargs):
        rates.append([group["lr"] for group in self.optimizer.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(XLLMTrainer, "training_step", watched)
    recipe["optim"] = [{"match": "interfaces.*.adapter", "lr": 1e-3}]
    recipe["lora"] = {"r": 2, "dropout": 0.1}
    recipe["trainer"] = {**QUICK, "lr_scheduler_type": "linear", "save_steps": 2, "save_strategy": "steps"}
    folder = train(recipe, progress=False).checkpoint
    assert [rate[0] for rate in rates] == pytest.approx([0.01, 0.0075, 0.005, 0.0025])
    assert [rate[-1] for rate in rates] == pytest.approx([0.001, 0.00075, 0.0005, 0.00025])

    whole = XLLMForConditionalGeneration.from_pretrained(folder).state_dict()
    run = XLLMTrainer.train
    monkeypatch.setattr(XLLMTrainer, "train", lambda self: run(self, str(folder / "checkpoint-2")))
    again = train({**recipe, "output_dir": str(tmp_path / "again")}, progress=False).checkpoint
    assert [rate[-1] for rate in rates[4:]] == pytest.approx([0.0005, 0.00025])
    resumed = XLLMForConditionalGeneration.from_pretrained(again).state_dict()
    assert any("lora_B" in name for name in whole)
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    state = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["global_step"] == 4


def test_an_adapter_s_tensors_are_found_by_the_names_that_inspect_shows():
    model = tiny_model()
    names = add_lora(model, r=2)
    freeze_for_stage(model, 2, ["speech"])
    found = entry_of_each([OptimSpec(match="language_model", lr=1.0)], model)
    assert {name for name, entry in found.items() if entry == 0} == set(names)


def test_muon_moves_matrices_and_the_other_optimizer_all_else():
    """Three steps of both in one, with the state through a file after the first, are those of each on its own."""
    torch.manual_seed(0)
    whole = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 3), torch.nn.LayerNorm(3))
    parts = copy.deepcopy(whole)

    def in_one():
        optimizer = torch.optim.AdamW(whole.parameters(), lr=1e-2, weight_decay=0.1)
        split_groups(optimizer, [OptimSpec(match="1", muon=True, lr=0.05)], whole, ["0.weight", "1.weight"])
        return MuonBeside(optimizer)

    optimizer = in_one()
    muon = torch.optim.Muon([parts[1].weight], lr=0.05, weight_decay=0.1)
    rest = [
        torch.optim.AdamW([parts[0].weight], lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW([parts[1].bias, *parts[2].parameters()], lr=1e-2, weight_decay=0.0),
    ]
    for step in range(3):
        for model in (whole, parts):
            model.zero_grad()
            (model(torch.tensor([step, 4])) * torch.tensor([1.0, -2.0, 0.5])).square().sum().backward()
        for one in (optimizer, muon, *rest):
            one.step()
        if step == 0:
            kept = io.BytesIO()
            torch.save(optimizer.state_dict(), kept)
            kept.seek(0)
            optimizer = in_one()
            optimizer.load_state_dict(torch.load(kept))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_run_with_muon_goes_on_where_it_stopped(recipe, tmp_path, monkeypatch):
    recipe["optim"] = [{"match": "interfaces", "muon": True, "lr": 1e-3}]
    recipe["trainer"] = {**QUICK, "learning_rate": 1e-4, "save_steps": 2, "save_strategy": "steps"}
    folder = train(recipe, progress=False).checkpoint
    run = XLLMTrainer.train
    monkeypatch.setattr(XLLMTrainer, "train", lambda self: run(self, str(folder / "checkpoint-2")))
    again = train({**recipe, "output_dir": str(tmp_path / "again")}, progress=False).checkpoint
    start, whole, resumed = (
        XLLMForConditionalGeneration.from_pretrained(one).state_dict() for one in (recipe["model"], folder, again)
    )
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    moved = {name for name in whole if not torch.equal(whole[name], start[name])}
    assert {"model.interfaces.speech.adapter.weight", "model.interfaces.speech.adapter.bias"} <= moved


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"match": "interfaces", "muon": True, "weight_decay": 0.1}, "optim.0.lr is missing: Muon's rate"),
        (
            {"match": "*.bias", "muon": True, "lr": 0.02},
            "matches no matrix of a linear layer; trained ones are called",
        ),
        ({"match": "interfaces.image", "muon": True, "lr": 0.02}, "matches only frozen parameters"),
    ],
)
def test_muon_needs_a_rate_and_matrices(recipe, entry, message):
    with pytest.raises(RecipeError, match=message):
        check({**recipe, "optim": [entry]})

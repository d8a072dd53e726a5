# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Recipes: strict keys, overrides, variables, several stages; errors name file, key and the nearest valid key."""

from dataclasses import MISSING, fields

import pytest
import torch
import yaml
from transformers import TrainingArguments, get_scheduler

from xllm.training.recipes.recipe import RecipeError, find_recipe, load_recipe, shipped_recipes
from xllm.training.recipes.strict import OWN_ARGUMENTS


def recipe(**changes):
    return {"model": "m", "output_dir": "out", "stage": 2, "data": {"train": "a.jsonl"}, **changes}


def test_a_recipe_of_one_stage_is_written_at_the_top_level():
    read = load_recipe(recipe(modalities=["image"], trainer={"max_steps": 3}))
    (stage,) = read.stages
    assert (stage.stage, stage.modalities, stage.trainer) == (2, ["image"], {"max_steps": 3})
    assert [source.path for source in stage.data.train] == ["a.jsonl"]
    assert stage.folder == "stage2-image"


def test_values_that_yaml_reads_otherwise():
    trainer = load_recipe(recipe(), ["trainer.save_strategy=no", "trainer.learning_rate=1e-4"]).stages[0].trainer
    assert trainer == {"save_strategy": "no", "learning_rate": 1e-4}


def test_stages_inherit_and_override_the_defaults():
    read = load_recipe(
        {
            "model": "m",
            "output_dir": "out",
            "trainer": {"max_steps": 5, "learning_rate": "1e-3"},
            "data": {"train": ["a.jsonl", {"path": "b.csv", "weight": 2}]},
            "stages": [
                {"stage": 1, "modalities": "speech", "train_encoder": True},
                {"stage": 3, "trainer": {"max_steps": 7}},
            ],
        }
    )
    first, last = read.stages
    assert first.trainer == {"max_steps": 5, "learning_rate": 1e-3}
    assert last.trainer == {"max_steps": 7, "learning_rate": 1e-3}
    assert [source.weight for source in last.data.train] == [1.0, 2.0]
    assert [first.folder, last.folder] == ["stage1-speech", "stage3"]


def test_overrides_and_variables():
    raw = recipe(
        vars={"root": None, "held": "x"}, data={"train": [{"path": "${root}/a.csv", "exclude": {"who": "${held}"}}]}
    )
    read = load_recipe(raw, ["root=/data", "held=[y, z]", "seed=7", "trainer.max_steps=9", "data.train.0.weight=0.5"])
    (stage,) = read.stages
    assert read.seed == 7
    assert stage.trainer == {"max_steps": 9}
    (source,) = stage.data.train
    assert (source.path, source.exclude, source.weight) == ("/data/a.csv", {"who": ["y", "z"]}, 0.5)
    assert raw["vars"] == {"root": None, "held": "x"}  # the caller's recipe is not changed


def test_an_override_holds_for_all_stages():
    raw = {
        "model": "m",
        "output_dir": "out",
        "data": {"train": "a.jsonl"},
        "stages": [
            {"stage": 1, "modalities": ["image"], "trainer": {"max_steps": 5}},
            {"stage": 2, "modalities": ["image"]},
        ],
    }
    read = load_recipe(raw, {"trainer.max_steps": 1})
    assert [stage.trainer["max_steps"] for stage in read.stages] == [1, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ouput_dir": "x"}, "recipe: unknown key 'ouput_dir'; did you mean 'output_dir'"),
        ({"data": {"trian": "a"}}, "unknown key 'data.trian'; did you mean 'train'"),
        ({"data": {"train": [{"pth": "a"}]}}, "unknown key 'data.train.0.pth'; did you mean 'path'"),
        ({"trainer": {"learning_rat": 1}}, "trainer: unknown key 'learning_rat'; did you mean 'learning_rate'"),
        (
            {"trainer": {"label_smoothing_factor": 0.1}},
            "label_smoothing_factor cannot be set: the Trainer smooths unshifted",
        ),
        ({"trainer": {"output_dir": "x"}}, "trainer.output_dir cannot be set"),
        ({"stage": 4}, "stage is 4; choose one of"),
        ({"seed": "many"}, "seed is 'many', expected int"),
        ({"modalities": [1]}, r"modalities is \[1\], expected list"),
        ({"data": {"train": []}}, "data.train is empty"),
        ({"data": {"train": "a", "on_error": "ignore"}}, "data.on_error is 'ignore'; choose one of raise, skip"),
        ({"model": None}, "exactly one of `model`"),
        ({"init": {}}, "exactly one of `model`"),
        ({"data": {"train": "${where}"}}, r"\$\{where\} is not in vars"),
        ({"vars": {"where": None}, "data": {"train": "${where}"}}, "give where=... on the command line"),
        ({"evaluate": [{"task": "asr"}]}, "evaluate.0.name is missing"),
        ({"stages": [{"stage": 1}]}, "stage stands beside `stages`"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(**changes))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("learning_rate", "abc", "trainer.learning_rate is 'abc', expected float"),
        ("learning_rate", True, "trainer.learning_rate is True, expected float"),
        ("max_steps", 1.5, "trainer.max_steps is 1.5, expected int"),
        ("bf16", "yes", "trainer.bf16 is 'yes', expected bool"),
        ("save_total_limit", "two", r"trainer.save_total_limit is 'two', expected int \| None"),
        ("lr_scheduler_type", "cosin", "trainer.lr_scheduler_type is 'cosin'; choose one of linear, cosine, "),
        ("eval_strategy", "sometimes", "trainer.eval_strategy is 'sometimes'; choose one of no, steps, epoch"),
        ("report_to", "tensorbord", "trainer.report_to is 'tensorbord'; choose one of none, all, "),
        ("report_to", ["none", "clearml"], "trainer.report_to: clearml is not installed: pip install clearml"),
    ],
)
def test_values_of_the_trainer_have_the_types_of_its_arguments(name, value, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe(trainer={name: value}))


def test_every_default_of_the_trainer_has_its_type():
    """What transformers itself puts there is accepted, enumerations by their values."""
    arguments = {
        item.name: item.default
        for item in fields(TrainingArguments)
        if item.init and item.default is not MISSING and item.name not in OWN_ARGUMENTS
    }
    plain = {name: getattr(value, "value", value) for name, value in arguments.items()}
    assert len(plain) > 80
    assert load_recipe(recipe(trainer=plain)).stages[0].trainer == plain


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]" for before, name in zip("abcdefgh", "bcdefghi")
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, r"not a YAML file of at most 100,000 values, once its aliases \(\*name\) are written out"),
        ("model: &m {inside: *m}", "at most 100,000 values"),  # holds itself
        ("stage: " + "[" * 5000, "not a YAML file"),
        ("seed: 2026-13-45", "not a YAML file"),  # a date that is none
    ],
)
def test_yaml_that_would_take_forever_is_refused_by_its_size(text, message, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):  # which only the check before expansion says
        load_recipe(path)


def test_nobody_is_left_out_where_a_variable_is_null_or_empty():
    for given in ([], ["holdout=null"], ["holdout=[]"]):
        read = load_recipe("spoken_digits", ["data_root=d", *given])
        _, first, second = read.stages
        assert first.data.train[0].exclude == {"take": [20, 21, 22, 23, 24]}
        assert [one.name for one in second.evaluate] == ["new_takes"]
    held = load_recipe("spoken_digits", ["data_root=d", "holdout=[ann, bob]"]).stages[1]
    assert held.data.train[0].exclude["speaker"] == ["ann", "bob"]
    assert [one.name for one in held.evaluate] == ["unknown_speaker", "new_takes"]
    with pytest.raises(RecipeError, match="data_root is null, but is part of"):
        load_recipe("spoken_digits", ["data_root=null"])
    with pytest.raises(RecipeError, match="no row would be left where who is None"):
        load_recipe(recipe(data={"train": [{"path": "a.csv", "where": {"who": None}}]}))


def test_an_alias_may_be_used_many_times():
    assert load_recipe("spoken_digits", ["data_root=d"]).stages[2].data.augment  # `data: *speech`
    with pytest.raises(RecipeError, match="override 'model=.*: the value is not YAML of at most"):
        load_recipe(recipe(), [f"model={{{BOMB.replace(chr(10), ', ')}}}"])


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: m\nstage: 2\noutput: x\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml: unknown key 'output'; did you mean 'output_dir'"):
        load_recipe(path)
    path.write_text("a: [")
    with pytest.raises(RecipeError, match=r"mine\.yaml: not a YAML file"):
        load_recipe(path)


def test_a_stage_is_needed():
    with pytest.raises(RecipeError, match="which stage"):
        load_recipe({"model": "m", "output_dir": "out"})


def test_two_stages_may_not_share_a_folder():
    stages = [{"stage": 3, "data": {"train": "a"}}] * 2
    with pytest.raises(RecipeError, match="give each a `name`"):
        load_recipe({"model": "m", "output_dir": "out", "stages": stages})


@pytest.mark.parametrize("override", ["max_steps", "=3"])
def test_malformed_overrides(override):
    with pytest.raises(RecipeError, match="expected key=value"):
        load_recipe(recipe(), [override])


def needs(name: str) -> list[str]:
    """Variables of a shipped recipe that have no value."""
    raw = yaml.safe_load(find_recipe(name).read_text())
    return [key for key, value in raw["vars"].items() if value is None]


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid(name):
    overrides = ["data_root=/data"] if name == "spoken_digits" else ["model=m", "train=[a.jsonl, b.csv]"]
    if name.startswith("ablation_"):
        overrides = ["model=m", *(f"{needed}=a.jsonl" for needed in needs(name))]
    read = load_recipe(name, overrides)
    assert read.source.endswith(f"{name}.yaml")
    if name.startswith("stage"):
        (stage,) = read.stages
        assert int(stage.stage) == int(name[5])
        assert [source.path for source in stage.data.train] == ["a.jsonl", "b.csv"]


def test_published_hyper_parameters():
    rates = {"stage2_image": 3e-5, "stage2_video": 1e-5, "stage2_speech": 1e-4, "stage3": 1e-6}
    epochs = {"stage2_image": 2, "stage2_video": 5, "stage2_speech": 30, "stage3": 2}
    batch = {"stage2_image": 256, "stage2_video": 16, "stage2_speech": 1024, "stage3": 16}
    for name, rate in rates.items():
        trainer = load_recipe(name, ["model=m", "train=a"]).stages[0].trainer
        assert (trainer["learning_rate"], trainer["num_train_epochs"], trainer["weight_decay"]) == (
            rate,
            epochs[name],
            0.05,
        )
        if name != "stage3":  # as a share: DeepSpeed's optimizers do not know the rate that an absolute one needs
            assert rate * trainer["lr_scheduler_kwargs"]["min_lr_rate"] == pytest.approx(1e-8, rel=1e-7)
        assert trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] == batch[name]


def test_first_stages_have_the_values_of_their_sources():
    """LAVIS's first stage, and the published CIF recipe with its three phases of 30, 90 and 120 thousand steps."""
    image = load_recipe("stage1_image", ["model=m", "train=a"]).stages[0].trainer
    assert (image["warmup_steps"], image["per_device_train_batch_size"], image["num_train_epochs"]) == (5000, 100, 10)
    assert (image["learning_rate"], image["lr_scheduler_kwargs"], image["weight_decay"]) == (
        1e-4,
        {"min_lr_rate": 0.1},
        0.05,
    )
    speech = load_recipe("stage1_speech", ["model=m", "train=a"]).stages[0].trainer
    arguments = TrainingArguments(output_dir="unused", **speech)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=speech["learning_rate"])
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(240_000), arguments.max_steps,
        arguments.lr_scheduler_kwargs,
    )  # fmt: skip
    factor = schedule.lr_lambdas[0]
    assert [factor(step) for step in (0, 15_000, 30_000, 120_000, 240_000)] == pytest.approx([0, 0.5, 1, 1, 0])
    assert 0 < factor(180_000) < 1


def test_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(RecipeError, match="no such recipe file; shipped recipes: .*stage2_image"):
        find_recipe("stage2_images")

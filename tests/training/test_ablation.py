# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm ablate`: intervals that are known, two arms for real, and one that goes on after a kill."""

import json
import os
import signal

import pytest
from killed_runs import in_child
from PIL import Image

from xllm.cli import main
from xllm.training.evaluation import ablation
from xllm.training.evaluation.ablation import Arm, compare_arms, mean_interval, read_arm, table_lines
from xllm.training.recipes.recipe import RecipeError


def test_student_s_interval():
    """1, 2, 3: the mean is 2, the deviation 1, and t of two degrees of freedom 4.303."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert found["mean"] == 2
    assert found["interval"] == pytest.approx([2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5])
    assert mean_interval([0.5])["interval"] is None


def test_differences_are_seed_by_seed():
    """The arms go up and down together: the difference is sure though the means are not."""
    values = {("a", 0): 0.1, ("a", 1): 0.5, ("a", 2): 0.9, ("b", 0): 0.2, ("b", 1): 0.6, ("b", 2): 1.0}
    found = compare_arms(
        {key: {"qa": {"metric": "accuracy", "value": value}} for key, value in values.items()}, ["a", "b"], [0, 1, 2]
    )
    row = found["evaluations"]["qa"]
    assert row["arms"]["b"]["interval"][0] < row["arms"]["a"]["mean"]
    assert row["difference"]["b"]["interval"] == pytest.approx([0.1, 0.1])
    assert table_lines(found)[3].endswith("| +10.00 [10.00, 10.00] |")
    with pytest.raises(RecipeError, match="the arms have no evaluation in common: asr, qa"):
        compare_arms({("a", 0): {"qa": {}}, ("b", 0): {"asr": {}}}, ["a", "b"], [0])


def test_arms():
    assert read_arm("init=ablation_no_init model=m 'trainer.max_steps=3'") == Arm(
        "init", "ablation_no_init", ("model=m", "trainer.max_steps=3")
    )
    assert read_arm("recipes/joint.yaml") == Arm("joint", "recipes/joint.yaml")
    for text in ("", "a/b=recipe", "a=recipe three"):
        with pytest.raises(RecipeError, match="expected NAME=RECIPE key=value"):
            read_arm(text)


@pytest.fixture
def command(media, tiny_checkpoint, tmp_path):
    """Two learning rates of stage 2 of pictures, one step each."""
    table = tmp_path / "pictures.csv"
    table.write_text("".join(["image,text\n", *(f"{media / name}.png,{name}\n" for name in ("red", "blue"))]))
    recipe = {
        "model": str(tiny_checkpoint), "stages": [{"stage": 2, "modalities": ["image"]}],
        "data": {"train": str(table)},
        "evaluate": [{"name": "held-out", "task": "caption", "data": str(table), "max_new_tokens": 2}],
        "trainer": {"max_steps": 1, "use_cpu": True, "per_device_train_batch_size": 1},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    arms = [f"slow={tmp_path / 'recipe.yaml'}", f"fast={tmp_path / 'recipe.yaml'} trainer.learning_rate=0.1"]
    return ["ablate", "--arm", arms[0], "--arm", arms[1], "--seeds", "2", "--output", str(tmp_path / "out")]


@pytest.mark.slow
def test_two_arms_killed_and_gone_on_with(command, tmp_path, capsys):
    def killed():
        trained, count = ablation.train, [0]

        def train_and_die(*args, **kwargs):
            count[0] += 1
            if count[0] == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return trained(*args, **kwargs)

        ablation.train = train_and_die
        main(command)

    assert in_child(killed) == -signal.SIGKILL
    first = tmp_path / "out/slow/seed0/stage2-image"
    before = (first / "model.safetensors").stat().st_mtime_ns
    assert main([*command, "--json"]) == 0
    assert (first / "model.safetensors").stat().st_mtime_ns == before  # was not trained again
    found = json.loads(capsys.readouterr().out)
    row = found["evaluations"]["held-out"]
    assert row["metric"] == "cer"
    for arm in ("slow", "fast"):
        values = [
            json.loads((tmp_path / f"out/{arm}/seed{seed}/stage2-image/results.json").read_text())["held-out"]["value"]
            for seed in (0, 1)
        ]
        assert row["arms"][arm]["values"] == values
        assert row["arms"][arm]["n"] == 2
    assert json.loads((tmp_path / "out/ablation.json").read_text()) == found
    assert "| held-out (cer) | fast | " in (tmp_path / "out/ablation.md").read_text()
    with Image.open(tmp_path / "out/ablation.png") as plot:
        assert plot.format == "PNG"


def test_arms_that_cannot_be_compared(command, tmp_path, capsys):
    assert main([*command[:3], *command[5:]]) == 1
    assert "an ablation compares at least two arms of different names, got 1" in capsys.readouterr().err
    assert main([*command, "evaluate=[]"]) == 1
    assert "arm slow: no stage is evaluated" in capsys.readouterr().err
    assert main([*command, "trainer.max_stepps=3"]) == 1
    assert "max_stepps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

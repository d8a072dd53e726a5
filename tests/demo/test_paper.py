# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm ablate --paper`: its world, arms and page; the whole of it at a reduced scale, killed and gone on with."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from xllm.cli import main
from xllm.demo.dataset import held_out_pairs
from xllm.demo.paper.arms import QUESTIONS, Steps, runs_of
from xllm.demo.paper.page import page_text, verdict
from xllm.demo.paper.run import folder_of, mean_bounds, recipe_of, world_of
from xllm.demo.paper.world import (
    TASKS,
    TESTS,
    bounds,
    facts_of,
    make_heard,
    make_read,
    number_word,
    right_answer,
    text_sample,
)
from xllm.demo.questions import Facts
from xllm.demo.settings import DemoScale, Optimisation
from xllm.training.recipes.recipe import load_recipe


pytest.importorskip("sklearn")
pytest.importorskip("espeakng_loader")

DOCS = Path(__file__).resolve().parents[2] / "docs"
BRIEF = Optimisation(2, 4, 1e-3)
SMOKE = DemoScale(
    num_images=100, num_videos=0, num_recordings=60, num_pairs=80, num_tests=10, vision_size=16, speech_size=16,
    language_size=16, converter_size=16, vision=BRIEF, speech=BRIEF, language=BRIEF,
)  # fmt: skip
ONE_STEP = Steps(**{item.name: 2 if item.name == "batch_size" else 1 for item in fields(Steps)})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper") / "world"
    make_read(folder, SMOKE, 0)
    make_heard(folder, SMOKE, 0)
    return folder


def rows(world, name):
    return [json.loads(line) for line in (world / f"heard/data/{name}.jsonl").read_text("utf-8").splitlines()]


def reply(row):
    return row["messages"][-1]["content"][0]["text"]


def pair_of(row):
    return (facts_of(row).image, *facts_of(row).speech)


@pytest.mark.parametrize(
    ("task", "facts", "expected"),
    [
        ("caption", Facts(image=0), "数字零"),
        ("digit", Facts(image=7), "七"),
        ("parity", Facts(image=0), "偶数"),
        ("next", Facts(image=9), "十"),
        ("transcript", Facts(speech=(3, 5)), "三五"),
        ("count", Facts(speech=(3, 5)), "二"),
        ("sum", Facts(image=9, speech=(9,)), "十八"),
        ("larger", Facts(image=3, speech=(5,)), "五"),
    ],
)
def test_answers_are_right(task, facts, expected):
    assert right_answer(task, facts) == expected
    assert [number_word(number) for number in (0, 10, 11)] == ["零", "十", "十一"]


def test_the_language_model_reads_chinese_alone():
    rng = np.random.default_rng(0)
    turns = [text_sample(rng)[0] for _ in range(300)]
    text = "".join(turn.question + turn.answer + "".join(words for _, words in turn.media) for turn in turns)
    assert not re.search(r"[A-Za-z0-9]", text)
    assert {turn.question for turn in turns} == {wording for _, wordings in TASKS.values() for wording in wordings}


def test_files_hold_what_they_say(world):
    """Poor captions, pairs that are held out, and as many instructions in each set."""
    clean, poor = rows(world, "many"), rows(world, "many_poor")
    assert (len(clean), len(rows(world, "few"))) == (100, 20)
    assert poor[:20] == clean[:20] == rows(world, "few")
    wrong = sum(reply(one) != reply(other) for one, other in zip(poor[20:], clean[20:]))
    assert 0.4 < wrong / 80 < 0.75  # 30 + 30 in 100, but for a tenth of the other pictures' captions
    assert [row["messages"][0] for row in poor] == [row["messages"][0] for row in clean]
    asked = {name: Counter(row["task"] for row in rows(world, name)) for name in ("single", "cross", "cross_few")}
    assert {sum(tasks.values()) for tasks in asked.values()} == {80}
    assert asked["cross"]["sum"] + asked["cross"]["larger"] == asked["cross_few"].total() - 40 == 40
    held_out = held_out_pairs(0)
    for name in ("cross", "cross_few"):
        pairs = {pair_of(row) for row in rows(world, name) if row["task"] in ("sum", "larger")}
        assert not pairs & held_out
    assert {pair_of(row) for row in rows(world, "test_cross")} <= held_out
    assert reply(rows(world, "pairs_en")[3]) == "the digit three"


def test_floors_by_hand(world):
    """Ten digits, each once: a tenth. Parity and next number of five pictures each."""
    found = bounds(world)
    assert found.keys() == TESTS.keys()
    assert found["digit"]["floor"] == 0.1
    asked = rows(world, "test_reasoning")
    most = sum(
        max(Counter(reply(row) for row in asked if row["task"] == task).values()) for task in ("parity", "next")
    )
    assert found["reasoning"]["floor"] == most / 10
    assert all(bound["ceiling"] >= 0 for bound in found.values())
    [first, *_] = found
    shifted = {name: {side: value + (name == first) for side, value in one.items()} for name, one in found.items()}
    assert mean_bounds([found, shifted])[first]["floor"] == pytest.approx(found[first]["floor"] + 0.5)
    assert mean_bounds([found, shifted])["reasoning"] == found["reasoning"]


def test_a_seed_is_a_world_of_its_own(world, tmp_path):
    """What a run reads of the disk lies in its seed's world, or in the run that it starts from."""
    for seed in (0, 1):
        place = world_of(tmp_path, seed)
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(world)
        for run in runs_of(place / "heard/data", ONE_STEP):
            recipe = recipe_of(run, seed, tmp_path)
            start = folder_of(tmp_path, run.start.name, seed) if run.start else place
            assert Path(recipe["model"]).is_relative_to(start)
            read = re.findall(r"'path': '([^']+)'", str(recipe))
            assert read
            assert all(Path(path).is_relative_to(place) for path in read)
    make_heard(tmp_path / "other", SMOKE, 1)
    assert rows(tmp_path / "other", "test_transcript") != rows(world, "test_transcript")


def test_arms_are_recipes(world, tmp_path):
    """Every arm is made of runs that there are, every run is a recipe, and every evaluation of a question is given."""
    runs = {run.name: run for run in runs_of(world / "heard/data", ONE_STEP)}
    given = {}
    for run in runs.values():
        recipe = load_recipe(recipe_of(run, 0, tmp_path))
        assert recipe.stages[-1].folder == run.checkpoint
        given[run.name] = {one.name for stage in recipe.stages for one in stage.evaluate}
    used = set()
    for question in QUESTIONS.values():
        for names, _ in question.arms.values():
            assert set(question.evaluations) <= set().union(*(given[name] for name in names))
            used |= set(names)
        first = next(iter(question.arms))
        assert all(arm in question.arms and arm != first for arm, _ in question.claims)
    starts = {run.start.name for run in runs.values() if run.start}
    assert used | starts == set(runs)


def test_what_is_said_of_a_difference():
    said = {interval: verdict({"interval": interval}, 1) for interval in ((0.1, 0.2), (-0.2, -0.1), (-0.1, 0.2), None)}
    assert list(said.values()) == [
        "higher, as in the paper", "lower; **not as in the paper**",
        *["no difference shown; the paper: higher"] * 2,
    ]  # fmt: skip
    assert [verdict({"interval": (0.1, 0.2)}, 0), verdict({"interval": (0.0, 0.2)}, 0)] == [
        "higher", "no difference shown"
    ]  # fmt: skip


def test_the_page_is_what_was_found():
    """docs/ablations.md is written from docs/ablations.json, of all questions and three seeds or more."""
    found = json.loads((DOCS / "ablations.json").read_text(encoding="utf-8"))
    assert (DOCS / "ablations.md").read_text(encoding="utf-8") == page_text(found)
    assert found["questions"].keys() == QUESTIONS.keys()
    assert len(found["seeds"]) >= 3
    assert (DOCS / "pictures/ablations.png").read_bytes().startswith(b"\x89PNG")


_SMALL = """
from xllm.demo.paper import run
from test_paper import ONE_STEP, SMOKE
run.run_paper({folder!r}, 1, SMOKE, ONE_STEP)
"""


@pytest.mark.slow
def test_the_whole_of_it_killed_and_gone_on_with(tmp_path):
    """SIGKILL when some runs are done: the workers end too, these runs are not trained again, and all are compared."""
    folder = tmp_path / "out"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", _SMALL.format(folder=str(folder))]
    environment = {**os.environ, "PYTHONPATH": path}
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while len(done := {*folder.glob("runs/*/*/found.json")}) < 3:
        assert first.poll() is None
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = {one: one.stat().st_mtime_ns for one in done}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr[-2000:]
    assert {one: one.stat().st_mtime_ns for one in before} == before
    found = json.loads((folder / "docs/ablations.json").read_text(encoding="utf-8"))
    assert (folder / "docs/ablations.md").read_text(encoding="utf-8") == page_text(found)
    assert found["runs"] == len(list(folder.glob("runs/*/*/found.json")))
    value = json.loads((folder / "runs/few-of-both/seed0/found.json").read_text())["evaluations"]["cross"]["value"]
    assert found["questions"]["instructions"]["evaluations"]["cross"]["arms"]["few of both"]["values"] == [value]


def test_another_world_is_refused(tmp_path, capsys):
    (tmp_path / "world.json").write_text(json.dumps({"scale": {"num_images": 3}, "steps": {}}))
    assert main(["ablate", "--paper", "--output", str(tmp_path)]) == 1
    assert re.search(r"was begun with other .*num_images.*; choose another --output", capsys.readouterr().err)
    (tmp_path / "old/world").mkdir(parents=True)
    assert main(["ablate", "--paper", "--output", str(tmp_path / "old")]) == 1
    assert "was begun with one world for all seeds; choose another --output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ablate", "--paper", "--output", str(tmp_path), "seed=1"])
    assert "takes no key=value" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["ablate", "--output", str(tmp_path)])
    assert "one of the arguments --arm --paper is required" in capsys.readouterr().err

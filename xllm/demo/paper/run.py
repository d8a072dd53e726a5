# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Makes a world for each seed, trains every run in it in two processes, and compares; goes on where it was stopped.

A process per run, which ends with the command: a command that was killed leaves nobody behind who writes.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_all_start_methods, get_context, parent_process
from pathlib import Path
from typing import Any

import torch
import yaml

from xllm.demo.paper.arms import QUESTIONS, Run, Steps, runs_of
from xllm.demo.paper.page import write_page
from xllm.demo.paper.world import SCALE, bounds, compose, make_heard, make_read
from xllm.demo.run import NUM_PROCESSES, prepare
from xllm.demo.settings import DemoScale
from xllm.modeling_xllm.weight_files import read_json, write_json
from xllm.training.evaluation.ablation import compare_arms
from xllm.training.train import train


STEPS = Steps()
FOUND, WORLD = "found.json", "world.json"


def run_paper(
    output: str | Path,
    seeds: int = 3,
    scale: DemoScale = SCALE,
    steps: Steps = STEPS,
    processes: int = NUM_PROCESSES,
) -> dict[str, Any]:
    """Answer the paper's questions by experiment, in `output`; the same call goes on after a kill.

    Returns:
        `{"seeds", "bounds": {evaluation: {"floor", "ceiling"}}, "questions": {name: what `compare_arms` gives}}`, as
        in `output/docs/ablations.json`, beside which are the page and the plot. Bounds are means over the worlds.

    Raises:
        ValueError: another world, of other sizes, lies in `output`. ImportError: an optional package is missing.
    """
    output, begun = Path(output), time.monotonic()
    made = json.loads(json.dumps({"scale": asdict(scale), "steps": asdict(steps)}))
    if (there := read_json(output / WORLD) or made) != made:
        different = sorted(key for part in made for key in made[part] if there[part].get(key) != made[part][key])
        raise ValueError(f"{output}: was begun with other {', '.join(different)}; choose another --output")
    if (output / "world").exists():  # by version 0.2.0
        raise ValueError(f"{output}: was begun with one world for all seeds; choose another --output")
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / WORLD, made)
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__])
    threads = torch.get_num_threads()
    prepare(threads)
    pool = ProcessPoolExecutor(processes, context, _begin, max_tasks_per_child=1)
    try:
        worlds = {seed: world_of(output, seed) for seed in range(seeds)}
        parts = [pool.submit(make, worlds[seed], scale, seed) for seed in worlds for make in (make_heard, make_read)]
        for part in parts:
            part.result()
        for seed, world in worlds.items():
            compose(world, scale, seed)
        _say(begun, "worlds and towers")
        runs = {seed: runs_of(world / "heard" / "data", steps) for seed, world in worlds.items()}
        found = _train_all(pool, runs, output, begun, processes)
    finally:
        pool.shutdown(cancel_futures=True)
    summary = _compare(found, range(seeds)) | {"bounds": mean_bounds([bounds(world) for world in worlds.values()])}
    summary |= {"tests": scale.num_tests, "runs": len(runs[0]), "steps": asdict(steps)}
    write_page(output / "docs", summary)
    _say(begun, str(output / "docs" / "ablations.md"))
    return summary


def _begin() -> None:
    """A process that ends when the command does, however that ends."""
    prepare(1)
    parent: Any = parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _say(begun: float, what: str) -> None:
    sys.stderr.write(f"[{time.monotonic() - begun:4.0f} s] {what}\n")


def _train_all(
    pool: ProcessPoolExecutor, runs: dict[int, list[Run]], output: Path, begun: float, processes: int
) -> dict[tuple[str, int], dict]:
    """(run, seed) -> its evaluations; a seed after the other. A run that starts from another waits for that."""
    found: dict[tuple[str, int], dict] = {}
    jobs: dict[Future, tuple[str, int]] = {}
    waiting = [(run, seed) for seed in runs for run in runs[seed]]
    number = len(waiting)
    while waiting or jobs:
        ready = [(run, seed) for run, seed in waiting if run.start is None or (run.start.name, seed) in found]
        for run, seed in ready[: processes - len(jobs)]:
            waiting.remove((run, seed))
            jobs[pool.submit(_train_one, run, seed, output)] = (run.name, seed)
        for job in wait(jobs, return_when=FIRST_COMPLETED).done:
            (name, seed), evaluations = jobs.pop(job), job.result()
            found[name, seed] = evaluations
            figures = ", ".join(f"{key} {100 * one['value']:.1f} %" for key, one in evaluations.items())
            _say(begun, f"{len(found)} of {number}: {name}, seed {seed}: {figures or 'trained'}")
    return found


def mean_bounds(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """The means of what `bounds` gives."""
    return {
        name: {side: sum(one[name][side] for one in found) / len(found) for side in found[0][name]}
        for name in found[0]
    }


def world_of(output: Path, seed: int) -> Path:
    """Where the world of a seed lies."""
    return output / "worlds" / f"seed{seed}"


def folder_of(output: Path, name: str, seed: int) -> Path:
    """Where a run lies."""
    return output / "runs" / name.replace(", ", "-").replace(" ", "-") / f"seed{seed}"


def recipe_of(run: Run, seed: int, output: Path) -> dict[str, Any]:
    """What `xllm train` takes."""
    start = run.start and folder_of(output, run.start.name, seed) / run.start.checkpoint
    model, folder = start or world_of(output, seed) / "base", folder_of(output, run.name, seed)
    return {"model": str(model), "output_dir": str(folder), "seed": seed, "stages": list(run.stages)}


def _train_one(run: Run, seed: int, output: Path) -> dict[str, dict]:
    folder, recipe = folder_of(output, run.name, seed), recipe_of(run, seed, output)
    before = read_json(folder / FOUND)
    if before.get("recipe") == recipe:
        return before["evaluations"]
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    evaluations: dict[str, dict] = {}
    for stage in train(recipe, progress=False, resume=True).stages:
        evaluations |= stage.evaluations
    write_json(folder / FOUND, {"recipe": recipe, "evaluations": evaluations})
    return evaluations


def _compare(found: dict[tuple[str, int], dict], seeds: Sequence[int]) -> dict[str, Any]:
    """Each question's arms, by the evaluations that it is about."""
    questions = {}
    for name, question in QUESTIONS.items():
        own = {}
        for arm, (runs, _) in question.arms.items():
            for seed in seeds:
                every = {key: value for run in runs for key, value in found[run, seed].items()}
                own[arm, seed] = {key: every[key] for key in question.evaluations}
        questions[name] = compare_arms(own, list(question.arms), list(seeds))
    return {"seeds": list(seeds), "questions": questions}


__all__ = ["run_paper"]

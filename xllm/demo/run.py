# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo from nothing to its table: world, stand-in towers, stages 1, 2 and 3, questions about what was never seen.

        text ── language model ── image encoder ┐        ┌ image: stages 1, 2 ─ video: stage 2 ┐
                                                ├ frozen ┤                                     ├ stage 3 ─ test
        speech ── speech encoder ── pictures ───┘        └ speech: stages 1, 2 ────────────────┘

What stands in two lines is done in two processes; at the end the model is asked about what was never seen.
"""

import hashlib
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from transformers import set_seed
from transformers.utils import logging

from xllm.assembly.opening import load_checkpoint
from xllm.assembly.processors import save
from xllm.demo import recipes
from xllm.demo.dataset import write_lines, write_pictures, write_speech
from xllm.demo.questions import CANNOT_TELL
from xllm.demo.settings import DemoScale, build_config, build_model_processor
from xllm.demo.towers import make_image_encoder, make_language_model, make_speech_encoder
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.conversion.output import check_unused
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.modeling_xllm.weight_files import read_tensors
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
from xllm.training.evaluation.evaluation import run_evaluation
from xllm.training.evaluation.metrics import cer
from xllm.training.progress import SharedLines
from xllm.training.recipes.recipe import EvaluationSpec, SourceSpec
from xllm.training.train import train


NUM_PROCESSES = 2
DEFAULT_SCALE = DemoScale()
# Task of the table, which has a test file -> task of `xllm.training.evaluation.evaluation`.
QUESTIONS = {"image": "qa", "speech": "asr", "video": "qa", "cross": "qa"}
TURNS = 3  # of the conversations of the test


class Progress:
    """Lines on standard error: what is done, how long it took, how long the rest will take."""

    def __init__(self) -> None:
        self.start, self.percent = time.monotonic(), 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def say(self, what: str, percent: int) -> None:
        """A part is done that takes so much of the whole time."""
        self.percent += percent
        left = self.seconds * (100 - self.percent) / self.percent
        sys.stderr.write(f"[{self.seconds:4.0f} s, about {left:.0f} s left] {what}\n")


def run_demo(output: str | Path, seed: int = 0, scale: DemoScale = DEFAULT_SCALE) -> dict[str, Any]:
    """Run the whole demo; the same seed gives the same table.

    Args:
        output: folder to make: `data/`, `towers/`, `base/`, `recipes/`, `stages/`, `checkpoint/`, `samples/`,
            `results.json`, `results.png`.

    Returns:
        what `results.json` holds: `{"tasks": {task: {"metric", "value", "n", "chance"}}, "language_model_unchanged",
        "seconds", "seed"}`.

    Raises:
        ValueError: the folder is in use.
        ImportError: an optional package is missing.
    """
    output = Path(output)
    check_unused(output, "; choose another --output")
    progress = Progress()
    threads = torch.get_num_threads()
    prepare(threads)
    # A process per task: what one has allocated is given back before the next begins. Where there are forks, they are
    # of a process that has done the imports.
    context: Any = get_context("forkserver" if "forkserver" in get_all_start_methods() else "spawn")
    context.set_forkserver_preload([__name__])
    with context.Pool(NUM_PROCESSES, initializer=prepare, initargs=(1,), maxtasksperchild=1) as pool:
        _make_towers(pool, output, scale, seed, progress)
        _compose(output, scale, seed)
        plans = {name: recipes.branch(name, output, scale, seed) for name in recipes.BRANCHES}
        jobs = [
            (name, train_recipe, (plan, output / "recipes" / f"{name}.yaml", SharedLines()))
            for name, plan in plans.items()
        ]
        for name, _ in pool.imap_unordered(_call, jobs):
            progress.say(f"stages 1 and 2: {name}", 14)
    torch.set_num_threads(1)  # the other core has the loader; two threads wait for each other where it is busy
    try:
        results = _integrate(output, scale, seed, progress)
    finally:
        torch.set_num_threads(threads)
    results |= {"seconds": round(progress.seconds, 1), "seed": seed}
    write_report(output, results)
    return results


def prepare(threads: int) -> None:
    """Set up a process: its threads, and nothing of transformers on standard error."""
    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _call(job: tuple[str, Callable, tuple]) -> tuple[str, Any]:
    """A job's name and result."""
    name, function, arguments = job
    return name, function(*arguments)


def _make_towers(pool, output: Path, scale: DemoScale, seed: int, progress: Progress) -> None:
    """Media and towers; each line of the picture above is a task of a process."""
    media: dict[str, dict] = {}
    tasks = {"media": _listen_and_draw, "towers": _read_and_look}
    jobs = [(name, task, (output, scale, seed)) for name, task in tasks.items()]
    for name, (found, lines) in pool.imap_unordered(_call, jobs):
        media |= found
        progress.say("; ".join(lines), {"media": 30, "towers": 27}[name])
    write_lines(output / "data", media["pictures"], media["speech"], scale, seed)


def _listen_and_draw(output: Path, scale: DemoScale, seed: int) -> tuple[dict[str, dict], list[str]]:
    """All media and the speech encoder; what there is, and lines of progress."""
    speech = write_speech(output / "data", scale, seed)
    found = make_speech_encoder(output / "towers" / "audio", scale, seed, output / "data", speech["train"])
    pictures = write_pictures(output / "data", scale, seed)
    return {"speech": speech, "pictures": pictures}, [
        f"{len(speech['train']['speech']) + len(speech['train']['silence'])} recordings",
        f"speech encoder: {found}",
    ]


def _read_and_look(output: Path, scale: DemoScale, seed: int) -> tuple[dict[str, dict], list[str]]:
    """The language model and the image encoder, which draws for itself; no media, and lines of progress."""
    text = make_language_model(output / "towers" / "text", scale, seed)
    found = make_image_encoder(output / "towers" / "vision", scale, seed)
    return {}, [f"language model, on text alone: {text}", f"image encoder: {found}"]


def _compose(output: Path, scale: DemoScale, seed: int) -> None:
    set_seed(seed)
    towers = output / "towers"
    tokenizer = ChatGLMTokenizer.from_pretrained(towers / "text")
    config = build_config(tokenizer, scale)
    model = XLLMForConditionalGeneration.from_towers(
        language_model=str((towers / "text").resolve()),
        encoders={name: str((towers / name).resolve()) for name in ("vision", "audio")},
        modalities=config.modalities,
        initializer_range=config.initializer_range,
    )
    save(model, build_model_processor(config, tokenizer, scale), output / "base")


def train_recipe(recipe: dict[str, Any], path: Path, progress: Any) -> Path:
    """Writes a recipe for `xllm train` (to another `output_dir`) and runs it; returns the last checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    path.write_text(f"# xllm train {path.name} output_dir=...\n{text}", encoding="utf-8")
    return train(recipe, progress=progress).checkpoint


def _integrate(output: Path, scale: DemoScale, seed: int, progress: Progress) -> dict[str, Any]:
    """Bring the branches together, ask (zero-shot), integrate, ask again, save."""
    model, processor = load_checkpoint(str(recipes.last_checkpoint("image", output)))
    speech = recipes.last_checkpoint("speech", output)
    tensors = read_tensors(str(speech), None, lambda key: key.startswith("model.interfaces.speech."))
    model.load_state_dict({**model.state_dict(), **tensors})
    model.config.stage = {"stage": 2, "modalities": list(model.config.modalities)}
    model.config.lineage += XLLMConfig.from_pretrained(speech).lineage
    aligned = output / "stages" / "aligned"
    save(model, processor, aligned)
    zero_shot = ask(model, processor, output, "cross", aligned)
    progress.say("zero-shot questions", 1)

    recipe = recipes.integration(aligned, output, scale, seed)
    final = train_recipe(recipe, output / "recipes" / "integrate.yaml", progress=True)
    progress.say("stage 3", 9)
    model, processor = load_checkpoint(str(final))
    checkpoint = output / "checkpoint"
    samples = output / "samples"
    tasks = {task: ask(model, processor, output, task, samples) for task in QUESTIONS}
    tasks["again"] = _ask_again(model, processor, output, samples)
    for task in ("silence", "cannot_tell"):
        ask(model, processor, output, task, samples)
    tasks["silence"] = _told_apart(samples, "silence", ("speech",), "")
    tasks["cannot_tell"] = _told_apart(samples, "cannot_tell", QUESTIONS, CANNOT_TELL)
    model.config.towers = None  # a checkpoint that needs nothing beside it
    save(model, processor, checkpoint)
    shutil.copy(final / "losses.png", checkpoint / "losses.png")
    progress.say("questions about the test", 5)
    unchanged = digest(output / "towers" / "text", "") == digest(checkpoint, "model.language_model.")
    return {"tasks": {**tasks, "cross_zero_shot": zero_shot}, "language_model_unchanged": unchanged}


def ask(model, processor, output: Path, task: str, folder: Path) -> dict[str, Any]:
    """Answers to a test file: one cell of the table."""
    kind, path = QUESTIONS.get(task, "qa"), output / "data" / f"test_{task}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    spec = EvaluationSpec(name=task, task=kind, data=[SourceSpec(path=str(path))], max_new_tokens=24, batch_size=25)
    found = run_evaluation(model, processor, spec, folder=folder)
    return {"metric": found["metric"], "value": found["value"], "n": found["n"], "chance": _chance(path, kind)}


def _ask_again(model, processor, output: Path, folder: Path) -> dict[str, Any]:
    """Questions about a picture in turns 2 and 3 of conversations; the answers before them are the model's own."""
    data = output / "data"
    rows = read_lines(data / "test_again.jsonl")
    cells = []
    for turn in range(1, TURNS + 1):
        name = f"again{turn}"
        lines = [json.dumps({"messages": row["messages"][: 2 * turn]}, ensure_ascii=False) + "\n" for row in rows]
        (data / f"test_{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        cells.append(ask(model, processor, output, name, folder))
        for row, sample in zip(rows, read_lines(folder / f"samples_{name}.jsonl")):
            row["messages"][2 * turn - 1]["content"][0]["text"] = sample["answer"]
    later = cells[1:]  # of as many questions each
    value, chance = (sum(cell[key] for cell in later) / len(later) for key in ("value", "chance"))
    return {"metric": "accuracy", "value": value, "n": sum(cell["n"] for cell in later), "chance": chance}


def _told_apart(folder: Path, task: str, others: Iterable[str], reply: str) -> dict[str, Any]:
    """How often `reply` is given where it must be, in the samples of `task`, and not in as many of the `others`."""
    wanted = [sample["answer"] == reply for sample in read_lines(folder / f"samples_{task}.jsonl")]
    others = zip(*(read_lines(folder / f"samples_{name}.jsonl") for name in others))
    unwanted = [sample["answer"] != reply for samples in others for sample in samples][: len(wanted)]
    right = wanted + unwanted
    parts = {"given_where_due": sum(wanted) / len(wanted), "given_elsewhere": 1 - sum(unwanted) / len(unwanted)}
    return {"metric": "accuracy", "value": sum(right) / len(right), "n": len(right), "chance": 0.5, **parts}


def read_lines(path: Path) -> list[dict]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _chance(path: Path, kind: str) -> float:
    """What one gets who knows the test's answers but neither sees nor hears: always the most frequent one."""
    answers = [row["messages"][-1]["content"][0]["text"] for row in read_lines(path)]
    if kind == "asr":
        return min(cer(answers, [guess] * len(answers)).value for guess in set(answers))
    # A number, a place, a yes: what kind of answer is wanted can be told from the question alone.
    by_kind: dict[bool, Counter] = {}
    for answer in answers:
        by_kind.setdefault(answer.isdigit(), Counter())[answer] += 1
    return sum(counts.most_common(1)[0][1] for counts in by_kind.values()) / len(answers)


def digest(checkpoint: Path, prefix: str) -> str:
    """SHA-256 over the language model's tensors (and its head) in a checkpoint, whatever they are called there."""
    tensors = read_tensors(
        str(checkpoint), None, lambda key: key.startswith(prefix or "transformer.") or key == "lm_head.weight"
    )
    named = {key.removeprefix(prefix or "transformer."): value for key, value in tensors.items()}
    digest = hashlib.sha256()
    for name in sorted(named):
        digest.update(f"{name} {tuple(named[name].shape)} {named[name].dtype}".encode())
        digest.update(named[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def format_table(results: dict[str, Any]) -> str:
    """The results as a table of text."""
    lines = [f"{'task':<21} {'metric':<9} {'value':>7} {'n':>5} {'chance':>7}"]
    for task, cell in results["tasks"].items():
        lines.append(f"{task:<21} {cell['metric']:<9} {cell['value']:>7.1%} {cell['n']:>5} {cell['chance']:>7.1%}")
    unchanged = "bit-identical" if results["language_model_unchanged"] else "CHANGED"
    lines.append(f"language model after training: {unchanged}; seed {results['seed']}, {results['seconds']:.0f} s")
    return "\n".join(lines)


def write_report(output: Path, results: dict[str, Any]) -> None:
    """Write `results.json` and `results.png` to `output`."""
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    tasks = results["tasks"]
    names = list(tasks)
    # An error rate is drawn as what is right, so that all bars tell the same way.
    right = [max(0.0, 1 - cell["value"]) if cell["metric"] == "cer" else cell["value"] for cell in tasks.values()]
    chance = [1 - min(cell["chance"], 1) if cell["metric"] == "cer" else cell["chance"] for cell in tasks.values()]
    axes.bar(names, right, color="#3b6ea5", label="right (speech: 1 - CER)")
    axes.bar(names, chance, color="#c9c9c9", width=0.4, label="chance")
    for place, (name, value) in enumerate(zip(names, right)):
        axes.text(place, value + 0.02, f"{value:.1%}\nn = {tasks[name]['n']}", ha="center", fontsize=8)
    axes.set_ylim(0, 1.2)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output / "results.png", dpi=120)

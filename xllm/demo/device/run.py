# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm demo --world device`: a frozen language model learns to read a phone's status, and tells it what to do.

    text about phones ── language model (frozen) ─┬─ interface of the status: ─┬─ questions and requests about
                                                  │  words, then stage 2       │  states that were never seen
                                                  └─ interface of speech: ─────┴─ composed ── the same, spoken
                                                     stage 1, its head

The interface of the status has no encoder; what it writes is first fitted to words (`convert`), and then learns from
answers. The lower line is that of `--spoken` (`spoken`).
"""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from xllm.assembly.composing import added_rows
from xllm.assembly.opening import load_checkpoint
from xllm.assembly.processors import build_processor, save
from xllm.assembly.tiny import small_config
from xllm.demo import recipes
from xllm.demo.device.convert import learn_words
from xllm.demo.device.corpus import TESTS, build_tokenizer, random_text_sample, write_data, write_rows
from xllm.demo.device.spoken import hear
from xllm.demo.run import Progress, ask, digest, prepare, read_lines, train_recipe, write_report
from xllm.demo.settings import DemoScale, Optimisation, transformer
from xllm.demo.towers import train_language_model
from xllm.device.commands import DeviceCommands, Refused
from xllm.device.device_status import DeviceStatusReader
from xllm.device.phone import DEVICE, Phone
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.conversion.output import check_unused
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer
from xllm.training.evaluation.transcription import generated


MOST_NEW_TOKENS = 24
BATCH = 50


@dataclass(frozen=True)
class DeviceScale:
    """Sizes of the demo; `DeviceScale()` is what `xllm demo --world device` runs."""

    language_size: int = 128
    language_layers: int = 3
    num_states: int = 8000
    num_tests: int = 300  # of questions, of requests, and of requests that must be refused
    language: Optimisation = Optimisation(1600, 48, 1e-3)
    convert: Optimisation = Optimisation(1000, 1024, 2e-3)  # a batch is of fields
    # The words are learnt: a larger rate would forget them.
    align: Optimisation = Optimisation(250, 32, 2e-4)
    spoken: DemoScale | None = None  # encoder, interface and stages of speech, where requests are spoken too


DEFAULT_SCALE = DeviceScale()
SPOKEN_SCALE = DeviceScale(
    language=Optimisation(2400, 48, 1e-3),
    spoken=DemoScale(
        converter_size=128,
        num_recordings=3600,  # of requests, and as many of words alone
        num_tests=300,  # transcripts
        speech=Optimisation(3200, 40, 1e-3),
        speech_convert=Optimisation(600, 32, 1e-3),
    ),
)
_SPOKEN = 0.3  # of the text that the language model reads


def run_device_demo(output: str | Path, seed: int = 0, scale: DeviceScale = DEFAULT_SCALE) -> dict[str, Any]:
    """Run it; the same seed gives the same table.

    Args:
        output: folder to make: `data/`, `towers/`, `base/`, `recipes/`, `stages/`, `checkpoint/`, `samples/`,
            `results.json`, `results.png`.

    Returns:
        what `results.json` holds, as `run_demo` does.

    Raises:
        ValueError: the folder is in use.
    """
    output = Path(output)
    check_unused(output, "; choose another --output")
    progress, part = Progress(), 1.0 if scale.spoken is None else 0.39
    prepare(torch.get_num_threads())
    tower = output / "towers" / "text"
    tower.mkdir(parents=True)
    tokenizer = build_tokenizer(tower, seed, scale.spoken is not None)
    config = _config(tokenizer, scale)
    draw = random_text_sample if scale.spoken is None else partial(random_text_sample, spoken=_SPOKEN)
    found = train_language_model(tower, tokenizer, config.text_config, scale.language, seed, draw, "status")
    progress.say(f"language model, on text alone: {found}", round(55 * part))
    data = write_data(output / "data", scale.num_states, scale.num_tests, seed, scale.spoken is not None)
    found = _compose(tower, config, seed, output / "base", data, scale)
    progress.say(f"interface, on words: {found}", round(10 * part))
    recipe = {
        "model": str(output / "base"),
        "output_dir": str(output / "stages"),
        "seed": seed,
        "stages": [recipes.stage(2, "status", data, scale.align)],
    }
    final = train_recipe(recipe, output / "recipes" / "status.yaml", True)
    progress.say("stage 2: status", round(25 * part))
    if scale.spoken is not None:
        final = hear(final, output, _text(scale), scale.spoken, seed, progress)
    model, processor = load_checkpoint(str(final))
    tasks = ask_everything(model, processor, output)
    model.config.towers = None  # a checkpoint that needs nothing beside it
    save(model, processor, output / "checkpoint")
    progress.say("questions and requests about the test", round(10 * part))
    unchanged = digest(tower, "") == digest(output / "checkpoint", "model.language_model.")
    results = {"tasks": tasks, "language_model_unchanged": unchanged, "seconds": round(progress.seconds, 1)}
    results["seed"] = seed
    write_report(output, results)
    return results


def _text(scale: DeviceScale) -> dict[str, Any]:
    """Sizes of the language model."""
    return {
        **transformer(scale.language_size, scale.language_layers, 2),
        "max_position_embeddings": 512,
        "residual_scale": (2 * scale.language_layers) ** 0.5,
        "rope_theta": 30.0,
    }


def _config(tokenizer: ChatGLMTokenizer, scale: DeviceScale) -> XLLMConfig:
    rows = added_rows(["status"])
    return small_config(tokenizer, _text(scale), rows, initializer_range=scale.language_size**-0.5)


def _compose(tower: Path, config: XLLMConfig, seed: int, folder: Path, data: Path, scale: DeviceScale) -> str:
    set_seed(seed)
    model = XLLMForConditionalGeneration.from_towers(
        language_model=str(tower.resolve()),
        encoders={},
        modalities=config.modalities,
        initializer_range=config.initializer_range,
    )
    tokenizer = ChatGLMTokenizer.from_pretrained(tower)
    readers = {"status": DeviceStatusReader(DEVICE["status"], DEVICE["commands"], tokens_per_field=1)}
    processor = build_processor(config, tokenizer, 0, readers=readers)
    found = learn_words(model, processor, data, scale.convert, seed)
    save(model, processor, folder)
    return found


def ask_everything(model: Any, processor: Any, output: Path) -> dict[str, dict[str, Any]]:
    """The table: questions, requests and what must be refused, about states and in words that training never met.

    Its "chance" is measured too: the same words beside the status of another phone, of spoken ones another recording
    beside the same status, and commands by free decoding.
    """
    commands = DeviceCommands(processor.readers["status"].commands)
    size, ends = model.config.text_config.vocab_size, model.generation_config.eos_token_id

    def answered(rows: list[dict], is_free: bool = False) -> list[dict]:
        samples = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            constrain = [] if is_free else [commands.logits_processor(processor.tokenizer, size, ends)]
            shown = [row["messages"][:1] for row in batch]
            answers = generated(model, processor, shown, MOST_NEW_TOKENS, logits_processor=constrain)
            samples += [_sample(row, answer["text"]) for row, answer in zip(batch, answers)]
        return samples

    (output / "samples").mkdir()
    cells: dict[str, dict[str, Any]] = {}
    for spoken in ("", "spoken_")[: len(model.config.modalities)]:
        asked = {task: _read_rows(output / "data" / f"test_{spoken}{task}.jsonl") for task in TESTS}
        samples = {task: answered(rows) for task, rows in asked.items()}
        for task, lines in samples.items():
            write_rows(output / "samples" / f"samples_{spoken}{task}.jsonl", lines)
        right = _judge(samples, commands)
        blind = _judge({task: answered(_of_others(rows, bool(spoken))) for task, rows in asked.items()}, commands)
        free = _judge({**samples, "command": answered(asked["command"], True)}, commands)
        guess = {**blind, "valid_commands": free["valid_commands"]}
        found = {task: _cell(right[task], _share(guess[task])) for task in right}
        due, done = right["refused"][: len(asked["refusal"])], right["refused"][len(asked["refusal"]) :]
        found["refused"] |= {"given_where_due": _share(due), "given_elsewhere": 1 - _share(done)}
        cells |= {f"{spoken}{task}": cell for task, cell in found.items()}
    if "speech" in model.config.modalities:
        cells["transcripts"] = ask(model, processor, output, "speech", output / "samples")
    return cells


def _read_rows(path: Path) -> list[dict]:
    """The rows of a test file, which name their states and recordings by absolute paths."""
    rows = read_lines(path)
    for row in rows:
        parts = row["messages"][0]["content"]
        for part in parts:
            if "path" in part:
                part["path"] = str((path.parent / part["path"]).resolve())
        row["state"] = parts[0]["path"]
    return rows


def _of_others(rows: list[dict], is_spoken: bool) -> list[dict]:
    """The same words, each beside the state of the row before; where they are spoken, the same states, each beside
    the words of the row before."""
    shown = []
    for row, other in zip(rows, [*rows[-1:], *rows[:-1]]):
        (state, words), (others, heard) = (one["messages"][0]["content"] for one in (row, other))
        asked = {"role": "user", "content": [state, heard] if is_spoken else [others, words]}
        shown.append({**row, "messages": [asked, row["messages"][1]]})
    return shown


def _sample(row: dict, answer: str) -> dict[str, str]:
    (_, question), (reply,) = (message["content"] for message in row["messages"])
    said = {"question": question.get("text") or row["words"], "reference": reply["text"], "answer": answer}
    return {"kind": row["kind"], "state": row["state"], **said}


def _judge(samples: dict[str, list[dict]], commands: DeviceCommands) -> dict[str, list[bool]]:
    """By row of the table: what is right, each time."""
    answers = {task: [sample["answer"] for sample in lines] for task, lines in samples.items()}
    same = {task: [sample["answer"] == sample["reference"] for sample in lines] for task, lines in samples.items()}
    told = {task: [commands.is_command(answer) for answer in lines] for task, lines in answers.items()}
    said = [answer for lines in answers.values() for answer in lines if commands.is_command(answer)]
    return {
        "answers": same["status"],
        "valid_commands": [_is_valid(commands, answer) for answer in said],
        "goal_reached": [_reached(sample) for sample in samples["command"]],
        "refused": [*(not is_told for is_told in told["refusal"]), *told["command"]],
        "reason_given": same["refusal"],
    }


def _reached(sample: dict) -> bool:
    """Whether the phone is, after what the model said, in the state in which it should be."""
    state = json.loads(Path(sample["state"]).read_text(encoding="utf-8"))
    try:
        done = Phone(state).execute(Phone.commands.parse(sample["answer"]))
    except Refused:
        return False
    return done == Phone(state).execute(json.loads(sample["reference"]))


def _is_valid(commands: DeviceCommands, answer: str) -> bool:
    try:
        return bool(commands.parse(answer))
    except Refused:
        return False


def _share(right: list[bool]) -> float:
    return sum(right) / max(1, len(right))


def _cell(right: list[bool], guess: float) -> dict[str, Any]:
    return {"metric": "accuracy", "value": _share(right), "n": len(right), "chance": guess}

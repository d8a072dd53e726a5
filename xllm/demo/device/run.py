# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm demo --world device`: a frozen language model learns to read a phone's status, and tells it what to do.

    text about phones ── language model (frozen) ── interface of the status: ── questions and requests about
                                                    words, then stage 2         states that were never seen

The interface has no encoder; what it writes is first fitted to words (`convert`), and then learns from answers.
"""

import json
from dataclasses import dataclass
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
from xllm.demo.device.corpus import TESTS, build_tokenizer, random_text_sample, write_data
from xllm.demo.run import Progress, digest, prepare, read_lines, train_recipe, write_report
from xllm.demo.settings import Optimisation, transformer
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


DEFAULT_SCALE = DeviceScale()


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
    progress = Progress()
    prepare(torch.get_num_threads())
    tower = output / "towers" / "text"
    tower.mkdir(parents=True)
    tokenizer = build_tokenizer(tower, seed)
    config = _config(tokenizer, scale)
    found = train_language_model(tower, tokenizer, config.text_config, scale.language, seed, random_text_sample, True)
    progress.say(f"language model, on text alone: {found}", 55)
    data = write_data(output / "data", scale.num_states, scale.num_tests, seed)
    found = _compose(tower, config, seed, output / "base", data, scale)
    progress.say(f"interface, on words: {found}", 10)
    recipe = {
        "model": str(output / "base"),
        "output_dir": str(output / "stages"),
        "seed": seed,
        "stages": [recipes.stage(2, "status", data, scale.align)],
    }
    final = train_recipe(recipe, output / "recipes" / "status.yaml", True)
    progress.say("stage 2: status", 30)
    model, processor = load_checkpoint(str(final))
    tasks = ask_everything(model, processor, output)
    model.config.towers = None  # a checkpoint that needs nothing beside it
    save(model, processor, output / "checkpoint")
    progress.say("questions and requests about the test", 5)
    unchanged = digest(tower, "") == digest(output / "checkpoint", "model.language_model.")
    results = {"tasks": tasks, "language_model_unchanged": unchanged, "seconds": round(progress.seconds, 1)}
    results["seed"] = seed
    write_report(output, results)
    return results


def _config(tokenizer: ChatGLMTokenizer, scale: DeviceScale) -> XLLMConfig:
    text = {
        **transformer(scale.language_size, scale.language_layers, 2),
        "max_position_embeddings": 512,
        "residual_scale": (2 * scale.language_layers) ** 0.5,
        "rope_theta": 30.0,
    }
    return small_config(tokenizer, text, added_rows(["status"]), initializer_range=scale.language_size**-0.5)


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

    Its "chance" is measured too: the same words beside the status of another phone, and commands by free decoding.
    """
    commands = DeviceCommands(processor.readers["status"].commands)
    size, ends = model.config.text_config.vocab_size, model.generation_config.eos_token_id

    def ask(rows: list[dict], is_free: bool = False) -> list[dict]:
        samples = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            constrain = [] if is_free else [commands.logits_processor(processor.tokenizer, size, ends)]
            shown = [row["messages"][:1] for row in batch]
            answers = generated(model, processor, shown, MOST_NEW_TOKENS, logits_processor=constrain)
            samples += [_sample(row, answer["text"]) for row, answer in zip(batch, answers)]
        return samples

    asked = {task: _read_rows(output / "data" / f"test_{task}.jsonl") for task in TESTS}
    samples = {task: ask(rows) for task, rows in asked.items()}
    (output / "samples").mkdir()
    for task, lines in samples.items():
        text = "".join(json.dumps(sample) + "\n" for sample in lines)
        (output / "samples" / f"samples_{task}.jsonl").write_text(text, encoding="utf-8")
    right = _judge(samples, commands)
    blind = _judge({task: ask(_of_others(rows)) for task, rows in asked.items()}, commands)
    free = _judge({**samples, "command": ask(asked["command"], True)}, commands)
    guess = {**blind, "valid_commands": free["valid_commands"]}
    cells = {task: _cell(right[task], _share(guess[task])) for task in right}
    due, done = right["refused"][: len(asked["refusal"])], right["refused"][len(asked["refusal"]) :]
    cells["refused"] |= {"given_where_due": _share(due), "given_elsewhere": 1 - _share(done)}
    return cells


def _read_rows(path: Path) -> list[dict]:
    """The rows of a test file, which name their states by absolute paths."""
    rows = read_lines(path)
    for row in rows:
        part = row["messages"][0]["content"][0]
        part["path"] = row["state"] = str((path.parent / part["path"]).resolve())
    return rows


def _of_others(rows: list[dict]) -> list[dict]:
    """The same words, each beside the state that belongs to the words before them."""
    shown = []
    for row, other in zip(rows, [*rows[-1:], *rows[:-1]]):
        (state, words), reply = row["messages"][0]["content"], row["messages"][1]
        asked = {"role": "user", "content": [{**state, "path": other["state"]}, words]}
        shown.append({**row, "messages": [asked, reply]})
    return shown


def _sample(row: dict, answer: str) -> dict[str, str]:
    (_, question), (reply,) = (message["content"] for message in row["messages"])
    said = {"question": question["text"], "reference": reply["text"], "answer": answer}
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

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A modality of the user's, from its file to the streamed answer, and a row of the paper's under another name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import openai
import pytest
import torch
from media_files import sine, write_wav
from serving_fixtures import chat, running

from xllm.assembly.modules import import_modules
from xllm.assembly.opening import load_checkpoint
from xllm.assembly.processors import build_processor, save
from xllm.assembly.tiny import build_tiny
from xllm.cli import main
from xllm.hub_cards.cards import model_card
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.converters import CONVERTERS
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.training.batches.collator import XLLMDataCollator


MODULE = str(Path(__file__).parents[1] / "fixtures" / "status_modality.py")
ROOT = Path(__file__).parents[2]
LOW = {"readings": [[10.0, 30.0, 0.0], [9.0, 31.0, 0.0]]}
QUICK = "{max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, learning_rate: 1.0e-2"


@pytest.fixture(scope="module", autouse=True)
def _kind():
    """The kind is known here, and unknown to the tests that follow."""
    path = list(sys.path)
    import_modules([MODULE])
    yield
    MEDIA_KINDS.pop("status")
    CONVERTERS.pop("status")
    sys.modules.pop("status_modality")
    sys.path[:] = path


@pytest.fixture(scope="module")
def status_folder(tmp_path_factory) -> str:
    """The tiny preset with a row for statuses; not to be written to."""
    folder = tmp_path_factory.mktemp("own") / "model"
    assert main(["init", str(folder), "--preset", "tiny", "--module", MODULE, "--modality", "status"]) == 0
    return str(folder)


@pytest.fixture
def files(tmp_path):
    """Two statuses, and data files that name them: a table, messages and LLaVA's form."""
    for name, speed in (("slow", 0.0), ("fast", 9.0)):
        (tmp_path / f"{name}.status").write_text(json.dumps({"readings": [[50.0, 20.0, speed]] * 3}))
    (tmp_path / "table.csv").write_text("file,text\nslow.status,slow\nfast.status,fast\n")
    answer = {"role": "assistant", "content": "slow"}
    part = {"type": "status", "path": "slow.status"}
    chat = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Speed?"}]}, answer]}
    (tmp_path / "messages.jsonl").write_text(json.dumps(chat) + "\n")
    turns = [{"from": "human", "value": "<status> Speed?"}, {"from": "gpt", "value": "slow"}]
    (tmp_path / "llava.json").write_text(json.dumps([{"status": "slow.status", "conversations": turns}]))
    return tmp_path


def test_the_command_answers_in_a_process_of_its_own(status_folder, files, capsys):
    """`--status FILE`, streamed; without the module, or with an option that no row reads, one line says so."""
    command = [sys.executable, "-m", "xllm", "chat", status_folder, "Speed?", "--max-new-tokens", "3"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments):
        return subprocess.run(
            [*command, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=files
        )

    answered = run("--module", MODULE, "--status", "slow.status")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip()
    assert (
        main(["chat", status_folder, "Speed?", "--max-new-tokens", "3", "--status", str(files / "slow.status")]) == 0
    )
    assert capsys.readouterr().out == answered.stdout
    with pytest.raises(SystemExit) as exit_info:
        main(["chat", status_folder, "--module", MODULE, "--smell", "slow.status"])
    assert exit_info.value.code == 2
    assert "argument --smell: this model takes --image, --speech, --status, --video\n" in capsys.readouterr().err
    missing = run("--status", "slow.status")
    assert missing.returncode == 1
    (line,) = [line for line in missing.stderr.splitlines() if line.startswith("xllm")]
    assert "uses the module status_modality: give it with --module status_modality.py, or run the copy beside" in line
    trusted = run("--status", "slow.status", "--trust-remote-code")
    assert trusted.stdout == answered.stdout, trusted.stderr


def test_init_and_inspect_name_the_row(status_folder, tmp_path, capsys):
    assert main(["inspect", status_folder, "--module", MODULE, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["modalities"]["status"] == {
        "part": "status", "encoder": None, "converter": "status", "shares_converter_with": None,
        "input": "status_values", "placeholder": "<StatusHere>",
    }  # fmt: skip
    # Two Linear layers of the converter (3 -> 16 -> 16) and the adapter (16 -> 64), with their biases.
    assert report["trainable_in_stage"]["2 status"] == (3 * 16 + 16) + (16 * 16 + 16) + (16 * 64 + 64)
    assert main(["init", str(tmp_path / "new"), "--preset", "tiny", "--modality", "smell"]) == 1
    assert (
        "--modality smell: no kind of this name declares a row; those that do are sound, status"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "new").exists()


def test_templates_collator_and_model_agree(status_folder, files):
    model, processor = load_checkpoint(status_folder)
    question = [{"role": "user", "content": [{"type": "status", "status": LOW}, {"type": "text", "text": "Speed?"}]}]
    text = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert "<Status><StatusHere></Status>Speed?" in text
    asked = processor.apply_chat_template(
        question, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt"
    )
    trained = XLLMDataCollator(processor)([{"messages": [*question, {"role": "assistant", "content": "low"}]}])
    length = asked["input_ids"].shape[1]
    assert torch.equal(trained["input_ids"][:, :length], asked["input_ids"])
    row = model.config.modalities["status"]
    assert (asked["input_ids"] == row.token_id).sum() == len(LOW["readings"])  # one token per reading
    expected = torch.tensor(LOW["readings"]) / torch.tensor([100.0, 50.0, 10.0])
    assert torch.allclose(asked["status_values"][0], expected)
    assert torch.equal(asked["status_values"], trained["status_values"])
    assert model(**trained).loss.isfinite()
    other = model(**{**trained, "status_values": trained["status_values"] + 1})
    assert not torch.equal(other.logits, model(**trained).logits)  # what it says depends on the status


@pytest.mark.parametrize("data", ["{path: table.csv, modality: status}", "table.csv", "messages.jsonl", "llava.json"])
def test_train_chat_and_evaluate(status_folder, files, capsys, monkeypatch, data):
    monkeypatch.chdir(files)
    workers = ", dataloader_num_workers: 1" if data == "table.csv" else ""
    (files / "recipe.yaml").write_text(
        f"model: {status_folder}\noutput_dir: out\nstage: 2\nmodalities: [status]\ndata: {{train: [{data}]}}\n"
        f"trainer: {QUICK}{workers}}}\n"
    )
    assert main(["train", "recipe.yaml", "--module", MODULE, "--json"]) == 0
    (stage,) = json.loads(capsys.readouterr().out)["stages"]
    trained = XLLMForConditionalGeneration.from_pretrained(stage["checkpoint"]).state_dict()
    start = XLLMForConditionalGeneration.from_pretrained(status_folder).state_dict()
    moved = {name for name, value in start.items() if not torch.equal(value, trained[name])}
    assert {name.split(".")[2] for name in moved} == {"status"}
    assert {name.split(".")[3] for name in moved} == {"converter", "adapter"}
    question = ["chat", stage["checkpoint"], "Speed?", "--max-new-tokens", "2", "--module", MODULE, "--json"]
    assert main([*question, "--status", "fast.status"]) == 0
    assert json.loads(capsys.readouterr().out)["question"] == "Speed?"
    command = ["evaluate", stage["checkpoint"], "--module", MODULE, "--task", "qa", "--json"]
    assert main([*command, "--data", data if ":" not in data else "table.csv", "--max-new-tokens", "2"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "accuracy"


def test_a_client_of_the_server_sends_statuses(status_folder):
    question = [{"type": "status", "status": LOW}, {"type": "text", "text": "Speed?"}]
    model, processor = load_checkpoint(status_folder)
    with running((model, processor)) as server, server.client() as client:
        reply = chat(client, question, max_tokens=3)
        for part, wrong in (
            ({"type": "smell"}, "of type 'smell'"),
            ({"type": "status", "path": MODULE}, "opens no files"),
        ):
            with pytest.raises(openai.BadRequestError, match=wrong):
                chat(client, [part])
    inputs = processor.encode_conversations([[{"role": "user", "content": question}]])
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert reply.usage.prompt_tokens == inputs["input_ids"].shape[1]
    assert reply.choices[0].message.content == processor.decode(output, skip_special_tokens=True)


def test_the_interactive_chat_takes_statuses(status_folder, files, capsys, monkeypatch):
    lines = iter([f"/status {files / 'slow.status'}\n", "Speed?\n", "And now?\n", "/quit\n"])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(lines), raising=False)
    assert main(["chat", status_folder, "--json", "--max-new-tokens", "2"]) == 0
    asked = [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()]
    assert asked == ["Speed?", "And now?"]


def test_the_card_shows_how_to_ask_about_a_status(status_folder, tmp_path):
    XLLMConfig.from_pretrained(status_folder).with_modalities(["status"]).save_pretrained(tmp_path)
    card = model_card(tmp_path, "user/status")
    assert '{"role": "user", "content": [{"type": "status", "path": "device.status"}, ' in card.text
    assert "| status | none | status | at most one per position of its input |" in card.text
    assert card.data.pipeline_tag == "any-to-any"


def test_a_bad_status_is_named(status_folder, files, capsys):
    (files / "bad.status").write_text('{"readings": [["a"]]}')
    command = ["chat", status_folder, "Speed?", "--module", MODULE, "--status", str(files / "bad.status")]
    assert main(command) == 1
    assert "bad.status: no status: expected readings of battery, temperature, speed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def voice_folder(tmp_path_factory) -> str:
    """The tiny preset whose speech row is called `voice`."""
    folder = tmp_path_factory.mktemp("voice")
    model, processor = load_checkpoint(str(build_tiny(folder / "paper")))
    fields = model.config.to_dict()
    fields["modalities"] = {"voice" if name == "speech" else name: row for name, row in fields["modalities"].items()}
    torch.manual_seed(0)
    renamed = XLLMForConditionalGeneration(XLLMConfig(**fields))
    state = {name.replace(".speech.", ".voice."): value for name, value in model.state_dict().items()}
    renamed.load_state_dict(state)
    save(renamed, build_processor(renamed.config, processor.tokenizer, 32), folder / "model")
    return str(folder / "model")


def test_a_row_may_be_called_anything(voice_folder, tmp_path, capsys):
    for name, pitch in (("low", 200.0), ("high", 1000.0)):
        write_wav(tmp_path / f"{name}.wav", [sine(frequency=pitch)])
    table = tmp_path / "voices.csv"
    table.write_text("file,text\nlow.wav,low\nhigh.wav,high\n")
    stages = "".join(f"  - {{stage: {stage}, modalities: [voice]}}\n" for stage in (1, 2))
    (tmp_path / "recipe.yaml").write_text(
        f"model: {voice_folder}\noutput_dir: {tmp_path / 'out'}\nstages:\n{stages}"
        f"data: {{train: {table}, augment: [gain, spec_augment]}}\ntrainer: {QUICK}}}\n"
        f"evaluate: [{{name: heard, task: asr, data: {table}, max_new_tokens: 2}}]\n"
    )
    assert main(["train", str(tmp_path / "recipe.yaml"), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [stage["evaluations"]["heard"]["n"] for stage in stages] == [2, 2]
    trained = stages[-1]["checkpoint"]
    assert main(["evaluate", trained, "--task", "asr", "--data", str(table), "--max-new-tokens", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 2
    answers = []
    for option in ("--voice", "--speech"):  # the row's name, and its kind's
        question = ["chat", trained, "What?", option, str(tmp_path / "low.wav"), "--max-new-tokens", "3", "--json"]
        assert main(question) == 0
        answers.append(json.loads(capsys.readouterr().out)["answer"])
    assert answers[0] == answers[1]

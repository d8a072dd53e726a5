# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A conversation in the terminal: what can be typed, and what Ctrl-C ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xllm.assembly.opening import load_checkpoint
from xllm.cli import build_parser, main
from xllm.commands.chat import Chat
from xllm.terminal_chat import TerminalChat, one_word


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two pictures, one of them with a space in its name."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, name in enumerate(("a.png", "my own.png")):
        pixels = np.random.default_rng(number).integers(0, 255, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def talk(monkeypatch, folder, lines, *options) -> int:
    """Lines on standard input."""
    typed = iter([f"{line}\n" for line in lines])
    monkeypatch.setattr("sys.stdin.readline", lambda: next(typed, ""), raising=False)
    return main(["chat", folder, "--json", "--max-new-tokens", "3", *options])


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("a.png", "a.png"),
        ("'my own.png'", "my own.png"),
        ('"my own.png"', "my own.png"),
        ("my\\ own.png", "my own.png"),
        ("my own.png", "my own.png"),
        ("it's mine.png", "it's mine.png"),
        ("~/a.png", os.path.expanduser("~/a.png")),
    ],
)
def test_file_names_are_read_as_a_shell_reads_them(text, file):
    assert one_word(text, "image") == file


def test_a_file_is_opened_when_it_is_named(folder, pictures, capsys, monkeypatch):
    lines = [f"/image '{pictures}/my own.png'", f"/image {pictures}/none.png", "/help", "What?", "/image", "Hello"]
    assert talk(monkeypatch, folder, lines) == 0
    output = capsys.readouterr()
    errors = output.err.splitlines()
    assert errors[0].endswith("none.png: no such file")
    assert errors[1].startswith("/image FILE")  # said before the question
    assert any(line.startswith("not asked: 'What?', since its file") for line in errors)
    assert "/image: expected a file" in errors
    assert [json.loads(line)["question"] for line in output.out.splitlines()] == ["Hello"]


def test_an_empty_line_asks_with_files_alone_and_is_nothing_without(folder, pictures, capsys, monkeypatch):
    """A recording may be the question itself; with it nothing is asked twice."""
    assert talk(monkeypatch, folder, ["", "", "", "What?"], "--image", str(pictures / "a.png")) == 0
    assert [json.loads(line)["question"] for line in capsys.readouterr().out.splitlines()] == ["", "What?"]


def test_a_file_that_nothing_was_asked_about_is_named(folder, pictures, capsys, monkeypatch):
    assert talk(monkeypatch, folder, [], "--image", str(pictures / "a.png")) == 1
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith('a.png: no question was asked about it; the question "" asks with files alone')
    )


def test_a_question_is_taken_back(folder, pictures):
    model, processor = load_checkpoint(folder)
    arguments = build_parser().parse_args(["chat", folder, "--json", "--max-new-tokens", "4"])
    chat = Chat(model, processor, arguments)
    image = {"type": "image", "path": str(pictures / "a.png")}
    chat.ask("What?", [image])
    turns, features = chat.turns, chat.features
    chat.ask("And this?", [{"type": "image", "path": str(pictures / "my own.png")}])
    assert len(chat.features["image"].mask) == 2
    assert chat.undo()
    assert chat.turns is turns
    again = chat.ask("Again?", [image])
    fresh = Chat(model, processor, arguments)
    fresh.turns, fresh.features = turns, features
    assert fresh.ask("Again?", [image]) == again
    assert [chat.undo() for _ in range(3)] == [True, True, False]


def test_a_conversation_is_saved_as_data(folder, pictures, tmp_path, capsys, monkeypatch):
    file = tmp_path / "said.jsonl"
    lines = [f"/image {pictures}/a.png", "What?", "And?", "/undo", "Why?", f"/save {file}", f"/save {file}"]
    assert talk(monkeypatch, folder, lines) == 0
    errors = capsys.readouterr().err
    assert "File exists" in errors
    (row,) = file.read_text(encoding="utf-8").splitlines()
    messages = json.loads(row)["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"][0] == {"type": "image", "path": f"{pictures}/a.png"}
    assert messages[2]["content"] == [{"type": "text", "text": "Why?"}]
    assert main(["check", str(file), "--model", folder]) == 0


def test_an_answer_that_is_stopped_is_what_was_said(folder, monkeypatch):
    model, processor = load_checkpoint(folder)
    arguments = build_parser().parse_args(["chat", folder, "--json", "--max-new-tokens", "30"])
    chat, forward = Chat(model, processor, arguments), model.model.language_model.forward
    whole = chat.ask("Say", [])
    steps = []

    def interrupted(*args, **kwargs):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    chat.reset()
    monkeypatch.setattr(model.model.language_model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat.ask("Say", [])
    assert not chat.turns
    steps.clear()
    chat.stoppable = True
    said = chat.ask("Say", [])
    assert said
    assert whole.startswith(said[:3])
    assert len(said) < len(whole)
    assert chat.turns[-1]["content"][0]["text"] == said


def test_control_c_while_a_file_is_read_ends_its_question_alone(monkeypatch, tmp_path, capsys):
    typed, asked = iter(["/image a.png", "Hello", "/quit"]), []

    def interrupted(file):
        raise KeyboardInterrupt

    model = SimpleNamespace(config=SimpleNamespace())
    chat = TerminalChat(SimpleNamespace(model=model), {"image": interrupted}, lambda *given: asked.append(given))
    chat.is_terminal = True
    monkeypatch.setattr("builtins.input", lambda prompt: next(typed))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    chat.run([])
    assert asked == [("Hello", [])]
    assert "stopped; nothing was asked" in capsys.readouterr().err


class Terminal:
    """A command in a terminal: what it writes, in the order in which it is waited for."""

    def __init__(self, command: list[str], **env: str):
        self.end, theirs = os.openpty()
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "dumb", **env}
        ends: Any = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        # Tests that a shell has put in the background ignore Ctrl-C, and so would what they start.
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.process = subprocess.Popen(command, env=env, **ends)
        signal.signal(signal.SIGINT, before)
        os.close(theirs)
        self.seen, self.at = bytearray(), 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        with contextlib.suppress(OSError):  # the other end is closed
            while True:
                self.seen.extend(os.read(self.end, 4096))

    def type(self, line: str):
        os.write(self.end, f"{line}\n".encode())

    def interrupt(self):
        self.process.send_signal(signal.SIGINT)

    def interrupt_until(self, happened):
        """Python sees what comes just before it reads a line with the next key: a person would press again."""
        for _ in range(6):
            time.sleep(4)
            self.interrupt()
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                if happened():
                    return
                time.sleep(0.02)
        raise AssertionError(bytes(self.seen[self.at :]))

    def wait_for(self, text: str):
        deadline = time.monotonic() + 60
        while (place := self.seen.find(text.encode(), self.at)) < 0:
            assert time.monotonic() < deadline, bytes(self.seen[self.at :])
            time.sleep(0.02)
        self.at = place + len(text)


@pytest.mark.slow
def test_control_c_in_a_terminal(folder, tmp_path):
    """It stops the answer; at an empty prompt, twice, it ends the program. Lines are kept for the next time."""
    slowly = "import time\nfrom transformers import TextStreamer\nput = TextStreamer.put\n"
    slowly += "TextStreamer.put = lambda self, value: (time.sleep(0.05), put(self, value))\n"
    (tmp_path / "slowly.py").write_text(slowly, encoding="utf-8")
    command = [sys.executable, "-m", "xllm", "chat", folder, "--max-new-tokens", "900"]  # 45 s
    terminal = Terminal([*command, "--module", str(tmp_path / "slowly.py")], XDG_STATE_HOME=str(tmp_path))
    try:
        terminal.wait_for("/help lists what can be typed")
        terminal.wait_for("> ")
        terminal.type("Say something long")
        terminal.wait_for("long")
        time.sleep(1)  # it is answering
        terminal.interrupt()
        terminal.wait_for("\r\n> ")
        terminal.type(f"/save {tmp_path / 'said.jsonl'}")
        terminal.wait_for("wrote")
        terminal.wait_for("> ")
        terminal.interrupt_until(lambda: b"Ctrl-C again" in terminal.seen)
        terminal.wait_for("> ")
        terminal.interrupt_until(lambda: terminal.process.poll() is not None)
        assert terminal.process.returncode == 0
    finally:
        terminal.process.kill()
        os.close(terminal.end)
    messages = json.loads((tmp_path / "said.jsonl").read_text(encoding="utf-8"))["messages"]
    assert messages[1]["content"][0]["text"]
    assert "Say something long" in (tmp_path / "xllm" / "chat_history").read_text(encoding="utf-8")

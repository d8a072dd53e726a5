# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A conversation in the terminal: questions and /commands, a line each, with line editing and history.

Ctrl-C stops the answer that is being written and keeps what was said; at an empty prompt, twice, it ends the program.
"""

import contextlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from xllm.processing.conversations import part_source, with_track


MOST_LINES = 1000  # of the history


class TerminalChat:
    """Reads lines until `/quit` or their end.

    Args:
        chat: what answers (`xllm.commands.chat.Chat`).
        parts: /command of a kind of media -> function from a file to its content part.
        answer: asks a question about parts, and prints the answer.
    """

    def __init__(
        self, chat: Any, parts: Mapping[str, Callable[[str], dict]], answer: Callable[[str, list[dict]], None]
    ):
        self.chat, self.parts, self.answer = chat, parts, answer
        chat.stoppable = True
        self.pending: list[dict] = []
        self.unread: str | None = None  # a file of the next question that could not be read
        self.is_terminal = sys.stdin.isatty()
        self.commands: dict[str, tuple[Callable[[str], Any], str, str]] = {
            **{name: (self._medium(name), "FILE", "add a file to the next question") for name in parts},
            "new": (self.new, "", "start over"),
            "undo": (self.undo, "", "take the last question and its answer back"),
            "save": (self.save, "FILE", "the conversation as messages (.jsonl), which `xllm train` and `check` read"),
            "help": (self.help, "", "this list"),
            "quit": (lambda rest: True, "", "end; so does Ctrl-D"),
        }

    def run(self, pending: list[dict]) -> None:
        """The conversation, whose first question is about `pending`."""
        self.pending = list(pending)
        with _history() if self.is_terminal else contextlib.nullcontext():
            if self.is_terminal:
                sys.stderr.write(self._about())
            while (line := self._read()) is not None:
                try:
                    if self._do(line):
                        break
                except (ValueError, OSError) as error:  # what is wrong ends the question, not the conversation
                    sys.stderr.write(f"{error}\n")
                except KeyboardInterrupt:  # while a file is read or encoded
                    if not self.is_terminal:
                        raise
                    sys.stderr.write("\nstopped; nothing was asked\n")
        if self.pending and not self.is_terminal:
            files = ", ".join(str(part.get("file") or part.get("path")) for part in self.pending)
            raise ValueError(f'{files}: no question was asked about it; the question "" asks with files alone')

    def _about(self) -> str:
        config = self.chat.model.config
        stage = getattr(config, "stage", None) or {}
        rows = ", ".join(stage.get("modalities", ())) or "text"
        trained = f"trained last in stage {stage['stage']}, on {rows}" if stage else "not trained yet: expect nonsense"
        return f"This model reads {', '.join(self.parts) or 'text alone'}; {trained}. /help lists what can be typed.\n"

    def _do(self, line: str) -> Any:
        command, _, rest = line.partition(" ")
        name = command[1:]
        if command.startswith("/") and name in self.commands:
            return self.commands[name][0](rest.strip())
        if command.startswith("/") and name.isidentifier():
            known = [f"/{name} {takes}".rstrip() for name, (_, takes, _) in self.commands.items()]
            raise ValueError(f"there is no {command} here, only {', '.join(known)}")
        if line or self.pending:  # a recording may be the question itself
            pending, unread = self.pending, self.unread
            self.pending, self.unread = [], None
            if unread is not None and not self.is_terminal:
                raise ValueError(f"not asked: {line!r:.80}, since its file {unread} could not be read")
            self.answer(line, pending)
        return False

    def _medium(self, name: str) -> Callable[[str], None]:
        def add(rest: str) -> None:
            file = one_word(rest, name)
            part = self.parts[name](file)
            try:
                # Opened at once, so that what is wrong with it is said now; `ask` gets what was decoded.
                loaded = [self._loaded(one) for one in with_track(part)]
            except ValueError:
                self.unread = file
                raise
            self.pending += [{**one, "file": file} for one in loaded]

        return add

    def _loaded(self, part: dict) -> dict:
        return {"type": part["type"], part["type"]: self.chat.processor.load(part["type"], part_source(part))}

    def new(self, rest: str = "") -> None:
        """Start over."""
        self.chat.reset()
        self.pending, self.unread = [], None

    def undo(self, rest: str = "") -> None:
        """Take the last question and its answer back."""
        if not self.chat.undo():
            raise ValueError("/undo: nothing has been asked")

    def save(self, rest: str) -> None:
        """Write the conversation as one row of messages."""
        path = Path(one_word(rest, "save"))
        if not self.chat.turns:
            raise ValueError("/save: nothing has been asked")
        with open(path, "x", encoding="utf-8") as file:
            file.write(json.dumps({"messages": self.chat.messages()}, ensure_ascii=False) + "\n")
        sys.stderr.write(f"wrote {path}\n")

    def help(self, rest: str = "") -> None:
        """What can be typed."""
        lines = [(f"/{name} {takes}", what) for name, (_, takes, what) in self.commands.items()]
        lines += [("Ctrl-C", "stop the answer"), ("anything else", "is asked; so are files alone, by an empty line")]
        sys.stderr.writelines(f"{name:16}{what}\n" for name, what in lines)

    def _read(self) -> str | None:
        """The next line without white space at its ends; None at the end, or after two Ctrl-C."""
        if not self.is_terminal:
            line = sys.stdin.readline()
            return line.strip() if line else None
        for hint in ("Ctrl-C again, Ctrl-D or /quit ends\n", ""):
            try:
                return input("> ").strip()
            except KeyboardInterrupt:
                sys.stderr.write(f"\n{hint}")
            except EOFError:
                break
        sys.stderr.write("\n")
        return None


def one_word(text: str, command: str) -> str:
    """A file name as a shell would read it: quoted, with `\\ ` for a space, or plain with spaces; `~` is the home."""
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe in a plain name
        words = [text]
    if not text:
        raise ValueError(f"/{command}: expected a file")
    return os.path.expanduser(words[0] if len(words) == 1 else text)


@contextlib.contextmanager
def _history():
    """Line editing, and lines of earlier conversations."""
    try:
        import readline
    except ImportError:  # not on every system
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "xllm"
    file = folder / "chat_history"
    readline.set_history_length(MOST_LINES)
    readline.set_completer_delims(" \t\n")
    readline.parse_and_bind("tab: complete")
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(file)

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What was said in one tab. It lives in the server's memory and is never taken from the browser."""

import re
from dataclasses import dataclass, field
from typing import Any

from xllm.serving.service import Asking


# Code in an answer: fences, closed or not yet, and spans.
_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]*`)", re.DOTALL)
_PUNCTUATION = re.compile(r"([!-/:-@\[-`{-~])")


@dataclass
class Upload:
    """A file of a question: the type of its content part, where it lies, and what the user calls it."""

    kind: str
    path: str
    name: str

    @property
    def part(self) -> dict[str, str]:
        """The content part."""
        return {"type": self.kind, "path": self.path}


@dataclass(eq=False)
class Turn:
    """A question and its answer, with a remark of the page (that it was stopped, say)."""

    question: str
    uploads: list[Upload]
    answer: str = ""
    remark: str = ""

    def messages(self) -> list[dict[str, Any]]:
        """As clients of the server write them."""
        text = [{"type": "text", "text": self.question}] if self.question else []
        asked = {"role": "user", "content": [*(upload.part for upload in self.uploads), *text]}
        return [asked, {"role": "assistant", "content": [{"type": "text", "text": self.answer}]}]


@dataclass
class Talk:
    """The turns of a tab, and the answer that is being written."""

    turns: list[Turn] = field(default_factory=list)
    asking: Asking | None = None
    is_busy: bool = False
    is_stopped: bool = False

    def messages(self) -> list[dict[str, Any]]:
        """All of it, up to the last question."""
        return [message for turn in self.turns for message in turn.messages()][:-1]

    def stop(self) -> None:
        """Write the answer no further; what is written stays."""
        self.is_stopped = True
        if self.asking is not None:
            self.asking.stop()

    def shown(self) -> list[dict[str, Any]]:
        """For the chat: files, questions as they were typed, answers as Markdown without HTML."""
        return [message for _, message in self._shown()]

    def turn_of(self, place: int) -> Turn | None:
        """The turn of a message that is shown."""
        return next((turn for number, (turn, _) in enumerate(self._shown()) if number == place), None)

    def _shown(self) -> list[tuple[Turn, dict[str, Any]]]:
        shown = []
        for turn in self.turns:
            said: list[tuple[str, Any]] = [("user", {"path": upload.path}) for upload in turn.uploads]
            said += [("user", literal(turn.question))] if turn.question else []
            answer = "\n\n".join(text for text in (without_html(turn.answer), turn.remark) if text)
            said += [("assistant", answer)] if answer else []
            shown += [(turn, {"role": role, "content": content}) for role, content in said]
        return shown


def literal(text: str) -> str:
    """Markdown that shows a text as it is."""
    lines = (_PUNCTUATION.sub(r"\\\1", line) for line in text.split("\n"))
    return "\n".join(line[: len(line) - len(line.lstrip())].replace(" ", "\u00a0") + line.lstrip() for line in lines)


def without_html(text: str) -> str:
    """Markdown in which a tag is text; code is left as it is, where it is text anyway."""
    pieces = _CODE.split(text)
    return "".join(piece if place % 2 else piece.replace("<", r"\<") for place, piece in enumerate(pieces))


__all__ = ["Talk", "Turn", "Upload", "literal", "without_html"]

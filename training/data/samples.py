# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What data become: samples, made of rows that know which of their columns were read; media stay in their files."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sample:
    """One conversation (`messages`, cleaned, the assistant's turn last), or what it is drawn from: content parts that
    open the user's turn (`media`), `prompts` and `answers`, of which one each is drawn per epoch.

    `where` is its place, "file:line", `source` the name of its source, `unread` what nothing has read of its row. A
    turn's `loss`, where it has one, says whether its answer carries loss. `equivalents` says what each of its media
    says, in order, or None where one has no such text.
    """

    where: str
    messages: list[dict] | None = None
    media: list[dict] = field(default_factory=list)
    prompts: list[str] = field(default_factory=lambda: [""])
    answers: list[str] = field(default_factory=list)
    source: str = ""
    unread: frozenset[str] = frozenset()
    equivalents: list[str] | None = None

    def conversation(self, draw: Callable[[int], int]) -> list[dict]:
        """The messages; `draw(n)` gives a number below n for the choice of prompt and answer."""
        if self.messages is not None:
            return self.messages
        prompt = self.prompts[draw(len(self.prompts))]
        content = [*self.media, *([{"type": "text", "text": prompt}] if prompt or not self.media else [])]
        answer = self.answers[draw(len(self.answers))]
        return [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": answer}]},
        ]

    def parts(self) -> Iterator[dict]:
        """All content parts, text too."""
        for message in self.messages or [{"content": self.media}]:
            yield from message["content"]


class Row(Mapping):
    """Columns of a row, and in `unread` those that nothing has looked at; what a message or a part holds without being
    read is added there by its dotted name.
    """

    def __init__(self, columns: Mapping[str, Any]):
        self._columns = columns
        self.unread = {str(name) for name, value in columns.items() if not _is_empty(value)}

    def __getitem__(self, name: str) -> Any:
        value = self._columns[name]
        self.unread.discard(name)
        return value

    def peek(self, name: str) -> Any:
        """A column, or None, without its counting as read."""
        return self._columns.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __str__(self) -> str:
        return ", ".join(map(str, self._columns))


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


class Stored:
    """A medium that is read from inside another file when a sample is asked for; `name` is for messages."""

    name: str

    def read(self) -> bytes:
        """Its bytes."""
        raise NotImplementedError


@dataclass(frozen=True)
class FileSlice(Stored):
    """`size` bytes of the file `path` from `offset`, e.g. a member of a tar."""

    path: str
    offset: int
    size: int
    name: str

    def read(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


@dataclass(frozen=True, eq=False)
class ArrowCell(Stored):
    """Bytes in row `index` of a `datasets.Dataset`, under a column and, if it holds lists, a place in the list."""

    data: Any
    index: int
    column: str
    place: int | None
    name: str

    def read(self) -> bytes:
        row = self.data.with_format("arrow")[self.index]
        cell = row.column(self.column)[0]
        cell = (cell if self.place is None else cell.values[self.place]).as_py()
        return cell["bytes"] if isinstance(cell, dict) else cell


def file_name(source: Any) -> str:
    """The last part of the path of a medium, or its type."""
    if isinstance(source, dict):
        source = source.get("path") or source.get("url")
    if isinstance(source, Stored):
        source = source.name
    return os.path.basename(source) if isinstance(source, str | os.PathLike) else type(source).__name__


__all__ = ["ArrowCell", "FileSlice", "Row", "Sample", "Stored", "file_name"]

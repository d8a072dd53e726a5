# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The answers that a run's evaluations have written, a few at a time, also while they are being written."""

import json
import os
from typing import Any

from xllm.training.inspection.run_files import RunFiles, Tail


MOST_ROW = 1 << 20  # bytes


class AnswerFile:
    """Rows of a `samples_<name>.jsonl`, or of the parts of an evaluation that is under way."""

    def __init__(self, files: RunFiles, name: str):
        self.files, self.name = files, name
        self._tail = Tail(files, name)
        self._places: list[tuple[int, int]] = []
        self._unlike: list[int] = []  # numbers of the rows whose answer is not the reference
        self.damaged = 0

    def look(self) -> None:
        """Find the rows that are new."""
        begun, lines = self._tail.look()
        while begun or lines:
            if begun:
                self._places, self._unlike, self.damaged = [], [], 0
            for place, line in lines:
                self._find(place, line)
            begun, lines = self._tail.look()

    def _find(self, place: int, line: bytes) -> None:
        row = _row(line)
        if row is None:
            self.damaged += bool(line.strip())
        elif "answer" in row or "skipped" in row:  # a part begins with what was asked
            if is_unlike(row):
                self._unlike.append(len(self._places))
            self._places.append((place, len(line)))

    def count(self, only_unlike: bool = False) -> int:
        """How many rows there are."""
        return len(self._unlike if only_unlike else self._places)

    def rows(self, first: int, count: int, only_unlike: bool = False) -> list[dict[str, Any]]:
        """Some rows, from the one numbered `first`, which begins at 0."""
        numbers = (self._unlike if only_unlike else range(len(self._places)))[first : first + count]
        if (handle := self.files.open(self.name)) is None:
            return []
        try:
            lines = [os.pread(handle, min(size, MOST_ROW), place) for place, size in map(self._place, numbers)]
        finally:
            os.close(handle)
        return [row for row in map(_row, lines) if row is not None]

    def _place(self, number: int) -> tuple[int, int]:
        return self._places[number]


def is_unlike(row: dict[str, Any]) -> bool:
    """Whether an answer was given that is not, letter by letter, the reference."""
    answer, reference = row.get("answer"), row.get("reference")
    return isinstance(answer, str) and isinstance(reference, str) and answer.strip() != reference.strip()


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


__all__ = ["AnswerFile", "is_unlike"]

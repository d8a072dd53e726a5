# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The answers of an evaluation, on disk as soon as they are given: one that was killed goes on where it stopped.

While it runs, each process appends to a file of its own; the first line says what was asked. When all rows are
answered, the first process joins them as `samples_<name>.jsonl`, in the order of the data.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xllm.modeling_xllm.weight_files import read_json, replacing, write_json


class EvaluationError(ValueError):
    """An evaluation that cannot go on in a folder."""


class AnswerLog:
    """Answers of rows by number, kept in `folder`.

    Args:
        name: of the evaluation; several may share a folder.
        settings: what the answers depend on. Those that lie in the folder and were given under the same are taken,
            but for rows that were skipped; under others, they are an `EvaluationError`. `None`: what lies there is
            replaced.
    """

    def __init__(self, folder: str | Path, name: str, settings: dict | None = None):
        self.folder, self.name, self.settings = Path(folder), name, settings
        self.path, self.head = samples_file(folder, name), Path(folder, f".answers_{name}.json")
        self.answers: dict[int, dict] = {}
        self._forgotten: set[tuple[int, str | None]] = set()
        self._own: Any = None
        if settings is not None:
            if self.head.is_file():
                self._take(self.head, read_json(self.head), samples_of(folder, name))
            self._take_parts()
            self.answers = {number: line for number, line in self.answers.items() if "skipped" not in line}

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob(f".answers_{self.name}.*.jsonl"))

    def _take_parts(self) -> None:
        for path in self._parts():
            head, *lines = _whole_lines(path) or [{}]
            self._take(path, head, lines)

    def _take(self, path: Path, given: dict, lines: list[dict]) -> None:
        asked = self.settings or {}
        if other := sorted(key for key in {*given, *asked} if given.get(key) != asked.get(key)):
            raise EvaluationError(
                f"{self.folder}: holds answers of another evaluation called {self.name}, with other "
                f"{', '.join(other)}; choose another folder, or remove {path.name} there"
            )
        self.answers |= {line["n"]: line for line in lines if _state(line) not in self._forgotten}

    def forget(self, numbers: Iterable[int]) -> None:
        """The answers of these rows were about media that have changed since: they are none, in parts either."""
        for number in numbers:
            self._forgotten.add(_state(self.answers.pop(number)))

    def add(self, lines: Iterable[dict]) -> None:
        """Keep answers, each `{"n": number of its row, ...}`; they are on disk when this returns."""
        lines = list(lines)
        if self._own is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._own = (self.folder / f".answers_{self.name}.{os.getpid()}.jsonl").open("w", encoding="utf-8")
            self._own.write(_line(self.settings or {}))
        self._own.writelines(map(_line, lines))
        self._own.flush()
        os.fsync(self._own.fileno())
        self.answers |= {line["n"]: line for line in lines}

    def join(self) -> list[dict]:
        """All answers in the order of their rows, those of other processes too."""
        if self.settings is not None:
            self._take_parts()
        return [self.answers[number] for number in sorted(self.answers)]

    def finish(self, samples: Iterable[dict]) -> None:
        """Write `samples_<name>.jsonl` in place of the parts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as partial:
            partial.write_text("".join(map(_line, samples)), encoding="utf-8")
        self.head.unlink(missing_ok=True)
        if self.settings is not None:
            write_json(self.head, self.settings)
        if self._own is not None:
            self._own.close()
        for path in self._parts():
            path.unlink(missing_ok=True)


def samples_of(folder: str | Path, name: str) -> list[dict]:
    """The samples of a finished evaluation."""
    return _whole_lines(samples_file(folder, name))


def samples_file(folder: str | Path, name: str) -> Path:
    """Where they are."""
    return Path(folder, f"samples_{name}.jsonl")


def _state(line: dict) -> tuple[int, str | None]:
    return line["n"], line.get("media_sha256")


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def _whole_lines(path: Path) -> list[dict]:
    """The lines of a part; a last one that was not written to its end is none."""
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return [json.loads(line) for line in lines]


__all__ = ["AnswerLog", "EvaluationError", "samples_file", "samples_of"]

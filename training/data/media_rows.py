# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which media data may hold: the model's rows, the kinds that they read, and the names of both in data files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from xllm.processing.media_kinds import MEDIA_KINDS, part_of_row


class DataError(ValueError):
    """A data file or row that cannot be used; the message names file and line."""


class _AnyRow(dict):
    """The rows where there is no model: of two kinds with the same files, the first in the table is meant."""


@dataclass(frozen=True)
class MediaRows:
    """Rows of the model -> the type of content part that each reads (without a model, those of the table of kinds);
    and the rows that the stage trains: if there is only one, a plain table belongs to it.
    """

    rows: Mapping[str, str] = field(
        default_factory=lambda: _AnyRow({k.row_name: k.type for k in MEDIA_KINDS.values()})
    )
    trained: tuple[str, ...] = ()

    @cached_property
    def names(self) -> dict[str, str]:
        """Every name for a medium -> type of its content part: types and their other names, and the rows."""
        kinds = MEDIA_KINDS.values()
        names = {name: kind.type for kind in kinds for name in (kind.row_name, *kind.aliases, kind.type)}
        return {**names, **self.rows}

    @cached_property
    def columns(self) -> dict[str, str]:
        """Every column that may hold media -> type of their content part: the names, and their plurals."""
        inputs = {kind.inputs: kind.type for kind in MEDIA_KINDS.values()}
        plurals = {f"{name}s": part for name, part in self.names.items()}
        return {**self.names, **plurals, **inputs}

    def part(self, where: str, name: str) -> str:
        """The type of content part called `name`, or a `DataError` if no row of the model reads it."""
        if self.names.get(name) not in self.rows.values():
            raise DataError(f"{where}: no row of the model reads {name!r}; its rows are {self.listed}")
        return self.names[name]

    @property
    def listed(self) -> str:
        """The rows, for messages."""
        return ", ".join(self.rows) or "none"

    def parts_with(self, ending: str) -> list[str]:
        """The types of content parts, among those that are read, whose files may have this ending."""
        parts = [part for part in dict.fromkeys(self.rows.values()) if part in MEDIA_KINDS]
        found = [part for part in parts if ending in MEDIA_KINDS[part].extensions]
        return found[:1] if isinstance(self.rows, _AnyRow) else found

    def part_of_file(self, where: str, medium: Any) -> str:
        """The type of content part of a file: of the one row that is trained, or else by the file's extension."""
        if len(self.trained) == 1:
            return self.part(where, self.trained[0])
        found = self.parts_with(Path(medium).suffix.lower()) if isinstance(medium, str) else []
        if len(found) != 1:
            raise DataError(
                f"{where}: cannot tell the modality of {medium!r:.80} by its name; set `modality` of the source: "
                f"{self.listed} or text"
            )
        return found[0]


def parts_of_rows(modalities: Mapping[str, Any]) -> dict[str, str]:
    """Row -> type of content part that it reads, of the `modalities` of an `XLLMConfig`."""
    return {name: part_of_row(name, row.input_name, row.part) for name, row in modalities.items()}


def media_rows(processor, trained: Iterable[str] = ()) -> MediaRows:
    """What the model of an `XLLMProcessor` reads."""
    return MediaRows({name: row.part for name, row in processor.rows.items()}, tuple(trained))


__all__ = ["DataError", "MediaRows", "media_rows", "parts_of_rows"]

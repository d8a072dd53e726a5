# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Reading data files into samples: chat messages, plain tables, LLaVA / ShareGPT, and the authors' own JSON.

| format   | rows                                                                                         |
|----------|----------------------------------------------------------------------------------------------|
| messages | `{"messages": [{"role", "content": str or parts}]}`                                          |
| llava    | `{"conversations": [{"from", "value"}], KIND: path or list}`, `<KIND>` in the text           |
| table    | a column with the medium's file and one with the text (captions, transcripts)                |
| captions | see `authors_layouts`                                                                        |
| features | see `authors_layouts`                                                                        |

Files: .json (a list), .jsonl, .csv, .tsv, .parquet. Nothing is decoded here; that a named file exists is checked.
A medium is of a kind (`processing.media_kinds`) that a row of the model reads; KIND is a name of either.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from xllm.processing.conversations import clean_messages
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.training.authors_layouts import CAPTIONED, SPEECH, read_captions, read_features, tell_layout
from xllm.training.media_rows import DataError, MediaRows
from xllm.training.recipe import SourceSpec


TEXT_PROMPTS = ["{text}"]
_LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_NOT_A_PATH = re.compile(r"^(data:|[a-zA-Z][a-zA-Z0-9+.-]+://)")
_MAX_PATH = 1000  # longer strings are base64
OnBad = Callable[[str, DataError], None]  # gets the place of a row and what is wrong with it


@dataclass
class Sample:
    """One conversation (`messages`, cleaned, the assistant's turn last), or what it is drawn from: content parts that
    open the user's turn (`media`), `prompts` and `answers`, of which one each is drawn per epoch.

    `where` is its place, "file:line", `source` the name of its source.
    """

    where: str
    messages: list[dict] | None = None
    media: list[dict] = field(default_factory=list)
    prompts: list[str] = field(default_factory=lambda: [""])
    answers: list[str] = field(default_factory=list)
    source: str = ""

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


def read_rows(path: Path, on_bad: OnBad | None = None) -> Iterator[tuple[str, dict]]:
    """(place, row) of each row of a data file; a line that cannot be read goes to `on_bad` where that is given.

    Raises:
        DataError: no such file, unknown extension, not that format; the message names file and line.
    """
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            rows = json.loads(path.read_text(encoding="utf-8"))
            rows = rows.get("data", rows) if isinstance(rows, dict) else rows
            if not isinstance(rows, list):
                raise DataError(f"{path}: expected a JSON list of samples, got {type(rows).__name__}")
            yield from ((f"{path}[{index}]", row) for index, row in enumerate(rows))
        elif suffix == ".jsonl":
            yield from _read_lines(path, on_bad)
        elif suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file, delimiter="\t" if suffix == ".tsv" else ",")
                yield from ((f"{path}:{reader.line_num}", row) for row in reader)
        elif suffix == ".parquet":
            from pyarrow import parquet

            for index, row in enumerate(parquet.read_table(path).to_pylist()):
                yield f"{path}[{index}]", row
        else:
            raise DataError(f"{path}: unknown kind of data file; use .json, .jsonl, .csv, .tsv or .parquet")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such data file") from error
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not {'JSON' if suffix.startswith('.json') else suffix[1:]}: {error}") from error


def _read_lines(path: Path, on_bad: OnBad | None) -> Iterator[tuple[str, dict]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                broken = DataError(f"{path}:{number}: not JSON: {error}")
                if on_bad is None:
                    raise broken from error
                on_bad(f"{path}:{number}", broken)
            else:
                yield f"{path}:{number}", row


def load_source(spec: SourceSpec, media: MediaRows | None = None, on_bad: OnBad | None = None) -> list[Sample]:
    """All samples of a source; `media` is what the model reads, by default every kind that there is.

    With `on_bad`, a row that cannot be used does not end the reading: its place and error go there.

    Raises:
        DataError: an unknown format or column, a row without its text or medium, or with a medium that the model does
            not read, a file that does not exist, no rows left.
    """
    media = MediaRows() if media is None else media
    if spec.format not in ("auto", *FORMS):
        raise DataError(f"format is {spec.format!r}; choose one of auto, {', '.join(FORMS)}")
    if (spec.path is None) == (spec.dataset is None):
        raise DataError("a data source has either a `path` or, from Python, a `dataset`")
    if spec.limit is not None and spec.limit < 1:
        raise DataError(f"limit is {spec.limit}, expected a number of rows, at least 1")
    if spec.dataset is not None:
        name, root = spec.name or "dataset", Path(spec.media_root or ".")
        rows = ((f"{name}[{index}]", row) for index, row in enumerate(spec.dataset))
    else:
        path = Path(spec.path).expanduser()
        name, root = spec.name or path.stem, Path(spec.media_root).expanduser() if spec.media_root else path.parent
        rows = read_rows(path, on_bad)
    samples = []
    for where, row in rows:
        try:
            if not isinstance(row, Mapping):
                raise DataError(f"{where}: expected a mapping of columns, got {type(row).__name__}")
            if not _is_selected(spec, where, row):
                continue
            sample = _read_sample(spec, where, row, media)
            sample.source = name
            _place_media(sample, media, root)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(where, error)
            continue
        samples.append(sample)
        if spec.limit is not None and len(samples) >= spec.limit:
            break
    if not samples:
        chosen = f"where {spec.where or 'any'}, exclude {spec.exclude or 'none'}"
        raise DataError(f"{spec.path or name}: no row is left ({chosen})")
    return samples


def _is_selected(spec: SourceSpec, where: str, row: Mapping) -> bool:
    for table, wanted in ((spec.where, True), (spec.exclude, False)):
        for column, values in table.items():
            values = values if isinstance(values, (list, tuple)) else [values]
            if column not in row and wanted:
                raise DataError(f"{where}: no column {column!r} to choose by; the columns are {_columns(row)}")
            found = str(row.get(column)) in {str(value) for value in values}  # a CSV file has only strings
            if found != wanted:
                return False
    return True


def _columns(row: Mapping) -> str:
    return ", ".join(map(str, row))


def _read_sample(spec: SourceSpec, where: str, row: Mapping, media: MediaRows) -> Sample:
    form = FORMS[spec.format if spec.format != "auto" else _tell_format(spec, where, row)]
    try:
        sample = form(spec, where, row, media)
    except KeyError as error:
        raise DataError(f"{where}: no column {error.args[0]!r}; the columns are {_columns(row)}") from error
    if sample.messages is not None and (not sample.messages or sample.messages[-1].get("role") != "assistant"):
        raise DataError(f"{where}: the last message must be the assistant's: it is what the model learns to say")
    return sample


def _tell_format(spec: SourceSpec, where: str, row: Mapping) -> str:
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "llava"
    if (layout := tell_layout(row)) is not None:
        return layout
    if spec.text_column in row:
        return "table"
    raise DataError(
        f"{where}: cannot tell the format from the columns {_columns(row)}; expected messages, "
        f"conversations, or {spec.file_column!r} and {spec.text_column!r} (set file_column, text_column)"
    )


def _from_messages(spec: SourceSpec, where: str, row: Mapping, media: MediaRows) -> Sample:
    messages = row["messages"]
    try:
        cleaned = clean_messages(json.loads(messages) if isinstance(messages, str) else messages)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: messages: {error}") from error
    for message in cleaned:
        if isinstance(message.get("content"), str):
            message["content"] = [{"type": "text", "text": message["content"]}]
        if not isinstance(message.get("content"), list):
            raise DataError(f"{where}: a message has no content")
    return Sample(where, messages=cleaned)


def _from_llava(spec: SourceSpec, where: str, row: Mapping, media: MediaRows) -> Sample:
    waiting: dict[str, list] = {part: [] for part in media.names.values()}
    for name, part in media.names.items():
        found = [] if row.get(name) is None else row[name]
        waiting[part] += found if isinstance(found, (list, tuple)) else [found]
    tag = re.compile(f"<({'|'.join(map(re.escape, media.names))})>")
    messages = []
    for turn in row["conversations"]:
        role = _LLAVA_ROLES.get(turn.get("from", turn.get("role")))
        if role is None:
            raise DataError(f"{where}: a turn is from {turn.get('from')!r}; expected one of {', '.join(_LLAVA_ROLES)}")
        content = []
        for index, piece in enumerate(tag.split(turn.get("value", turn.get("content", "")))):
            if index % 2:  # a tag
                part = media.names[piece]
                if not waiting[part]:
                    raise DataError(f"{where}: the text names more <{piece}> than the row holds")
                content.append({"type": part, part: waiting[part].pop(0)})
            elif piece.strip():
                content.append({"type": "text", "text": piece.strip()})
        messages.append({"role": role, "content": content})
    if unnamed := [{"type": part, part: medium} for part, items in waiting.items() for medium in items]:
        first = next((message for message in messages if message["role"] == "user"), None)
        if first is None:
            raise DataError(f"{where}: no user turn for its media")
        first["content"] = [*unnamed, *first["content"]]
    return Sample(where, messages=messages)


def _from_captions(spec: SourceSpec, where: str, row: Mapping, media: MediaRows) -> Sample:
    part = next(iter(CAPTIONED)) if spec.modality is None else media.part(where, spec.modality)
    if part not in CAPTIONED:
        raise DataError(f"{where}: captions are of type {' or '.join(CAPTIONED)}, not {spec.modality!r}")
    medium, answers = read_captions(row, part)
    if not answers:
        raise DataError(f"{where}: caption is empty")
    return Sample(where, media=[medium], prompts=_prompts(spec, part, where, row), answers=answers)


def _from_features(spec: SourceSpec, where: str, row: Mapping, media: MediaRows) -> Sample:
    try:
        parts, column, prompts = read_features(row)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    answer = row[column] if spec.answer is None else _fill(spec.answer, where, row)
    if not isinstance(answer, str) or not answer:
        raise DataError(f"{where}: column {column!r} is empty")
    if prompts is None or spec.prompts is not None:
        prompts = _prompts(spec, SPEECH, where, row)
    return Sample(where, media=parts, prompts=prompts, answers=[answer])


def _from_table(spec: SourceSpec, where: str, row: Mapping, media: MediaRows) -> Sample:
    text = row[spec.text_column]
    if not isinstance(text, str) or not text:
        raise DataError(f"{where}: column {spec.text_column!r} is empty")
    answer = text if spec.answer is None else _fill(spec.answer, where, row)
    if spec.modality == "text":
        return Sample(where, prompts=_prompts(spec, None, where, row), answers=[answer])
    medium = row[spec.file_column]
    part = media.part_of_file(where, medium) if spec.modality is None else media.part(where, spec.modality)
    parts = [{"type": part, part: medium}]
    return Sample(where, media=parts, prompts=_prompts(spec, part, where, row), answers=[answer])


def _prompts(spec: SourceSpec, part: str | None, where: str, row: Mapping) -> list[str]:
    default = TEXT_PROMPTS if part is None else MEDIA_KINDS[part].prompts
    return [_fill(prompt, where, row) for prompt in (default if spec.prompts is None else spec.prompts)]


def _fill(template: str, where: str, row: Mapping) -> str:
    try:
        return template.format_map(row) if "{" in template else template
    except (ValueError, IndexError) as error:
        raise DataError(f"{where}: cannot fill in {template!r}: {error}") from error


def _place_media(sample: Sample, media: MediaRows, root: Path) -> None:
    """Relative paths become paths below `root`. A row of the model must read each medium, and a named file exist."""
    messages = sample.messages or [{"content": sample.media}]
    for part in [part for message in messages for part in message["content"] if part["type"] != "text"]:
        if part["type"] not in media.rows.values():
            raise DataError(
                f"{sample.where}: holds a content part of type {part['type']!r}, which no row of the model reads; its "
                f"rows are {media.listed}"
            )
        for key in ("path", "url", part["type"]):
            value = part.get(key)
            if not isinstance(value, str) or _NOT_A_PATH.match(value) or len(value) > _MAX_PATH:
                continue
            path = root / Path(value).expanduser()
            if not path.exists():
                raise DataError(f"{sample.where}: no such file: {path}")
            part[key] = str(path)


# How a row of each form becomes a sample; `_tell_format` tells which form a row has.
FORMS: dict[str, Callable[[SourceSpec, str, Mapping, MediaRows], Sample]] = {
    "messages": _from_messages,
    "llava": _from_llava,
    "table": _from_table,
    "captions": _from_captions,
    "features": _from_features,
}

__all__ = ["FORMS", "DataError", "Sample", "load_source", "read_rows"]

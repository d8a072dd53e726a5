# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Data sources to samples: files are opened by `row_files`, rows read by `row_forms`; `docs/data.md` lists both.

Nothing is decoded here; that a named file exists is checked. What nobody reads is named in a warning, once per source.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from xllm.training.data.corpus_layouts import other_names
from xllm.training.data.media_rows import DataError, MediaRows
from xllm.training.data.row_files import Opened, open_source, read_rows
from xllm.training.data.row_forms import FORMS, NOTES, Form, read_row
from xllm.training.data.samples import Row, Sample
from xllm.training.data.text_normalizers import normalizer
from xllm.training.recipes.recipe import SourceSpec


logger = logging.get_logger(__name__)

_NOT_A_PATH = re.compile(r"^(data:|[a-zA-Z][a-zA-Z0-9+.-]+://)")
_MAX_PATH = 1000  # longer strings are base64
OnBad = Callable[[str, DataError], None]  # gets the place of a row and what is wrong with it


def load_source(spec: SourceSpec, media: MediaRows | None = None, on_bad: OnBad | None = None) -> list[Sample]:
    """All samples of a source; `media` is what the model reads, by default every kind that there is.

    With `on_bad`, a row that cannot be used does not end the reading: its place and error go there.

    Raises:
        DataError: an unknown format or column, a row without its text or medium, or with a medium that the model does
            not read, a file that does not exist, no rows left.
    """
    samples = list(iterate_source(spec, media, on_bad))
    if not samples:
        chosen = f"where {spec.where or 'any'}, exclude {spec.exclude or 'none'}"
        raise DataError(f"{spec.path or spec.name or 'dataset'}: no row is left ({chosen})")
    return samples


def iterate_source(spec: SourceSpec, media: MediaRows | None = None, on_bad: OnBad | None = None) -> Iterator[Sample]:
    """The samples of a source one by one; see `load_source`."""
    media = MediaRows() if media is None else media
    if spec.format not in ("auto", *FORMS):
        raise DataError(f"format is {spec.format!r}; choose one of auto, {', '.join(FORMS)}")
    if spec.limit is not None and spec.limit < 1:
        raise DataError(f"limit is {spec.limit}, expected a number of rows, at least 1")
    opened = open_source(spec)
    unread: Counter[str] = Counter()
    count = 0
    for where, columns in opened.rows:
        try:
            sample = sample_of(spec, where, columns, media, opened)
        except DataError as error:
            if on_bad is None:
                raise
            on_bad(where, error)
            continue
        if sample is None:
            continue
        unread.update(sample.unread)
        yield sample
        count += 1
        if spec.limit is not None and count >= spec.limit:
            break
    report_unread(spec.path or opened.name, count, unread)


def report_unread(name: str, rows: int, unread: Counter[str]) -> None:
    """A warning of columns that nothing reads, with how many rows have them."""
    if unread:
        named = ", ".join(f"{column} ({number})" for column, number in unread.most_common(20))
        logger.warning(f"{name}: of {rows} rows, nothing reads the columns {named}")


def sample_of(spec: SourceSpec, where: str, columns: Any, media: MediaRows, opened: Opened) -> Sample | None:
    """The sample of one row, or `None` if `where` and `exclude` leave it out. DataError: see `load_source`."""
    row = _as_row(where, opened.renamed(columns))
    if not _is_selected(spec, where, row):
        return None
    sample = read_row(spec, where, row, media)
    sample.source = opened.name
    _place_media(sample, media, opened)
    _normalize(spec, sample)
    sample.unread = frozenset(row.unread - NOTES)
    return sample


def _as_row(where: str, columns: Any) -> Row:
    if isinstance(columns, DataError):
        raise columns
    if not isinstance(columns, Mapping):
        raise DataError(f"{where}: expected a mapping of columns, got {type(columns).__name__}")
    return Row(columns)


def _is_selected(spec: SourceSpec, where: str, row: Row) -> bool:
    for table, wanted in ((spec.where, True), (spec.exclude, False)):
        for column, values in table.items():
            values = values if isinstance(values, (list, tuple)) else [values]
            if column not in row and wanted:
                raise DataError(f"{where}: no column {column!r} to choose by; the columns are {row}")
            found = str(row.get(column)) in {str(value) for value in values}  # a CSV file has only strings
            if found != wanted:
                return False
    return True


def _place_media(sample: Sample, media: MediaRows, opened: Opened) -> None:
    """Relative paths become paths below a root. A row of the model must read each medium, and a named file exist."""
    for part in sample.parts():
        if part["type"] == "text":
            continue
        if part["type"] not in media.rows.values():
            raise DataError(
                f"{sample.where}: holds a content part of type {part['type']!r}, which no row of the model reads; its "
                f"rows are {media.listed}"
            )
        for key in ("offset", "duration"):
            if key in part:
                part[key] = _seconds(sample.where, key, part[key])
        for key in ("path", "url", part["type"]):
            held = part.get(key)
            if isinstance(held, (list, tuple)) and any(isinstance(item, (str, Mapping)) for item in held):
                raise DataError(f"{sample.where}: {key}: got a list, expected one {part['type']} file per part")
            if isinstance(held, Mapping) and held.get("path") and held.get("bytes") is None is held.get("array"):
                part[key] = {**held, "path": _placed(sample.where, key, held["path"], opened)}
            elif isinstance(held, str):
                part[key] = _placed(sample.where, key, held, opened)


def _normalize(spec: SourceSpec, sample: Sample) -> None:
    """Answers in the spelling that the source asks for."""
    if spec.normalize_text in (None, "none"):
        return
    normalize = normalizer(spec.normalize_text)
    sample.answers = [normalize(answer) for answer in sample.answers]
    said = [part for turn in sample.messages or () if turn["role"] == "assistant" for part in turn["content"]]
    for part in said:
        part["text"] = normalize(part["text"])
    if not all([*sample.answers, *(part["text"] for part in said)]):
        raise DataError(f"{sample.where}: nothing is left of an answer after normalize_text: {spec.normalize_text}")


def _placed(where: str, key: str, name: Any, opened: Opened) -> Any:
    if not isinstance(name, str) or _NOT_A_PATH.match(name) or len(name) > _MAX_PATH:
        return name
    try:
        names = [Path(name).expanduser(), *map(Path, other_names(name))]
        paths = [root / one for one in names for root in opened.roots]
        found = next((path for path in paths if path.exists()), None)
    except (OSError, ValueError, RuntimeError) as error:  # a NUL, a name that is too long, ~nobody
        raise DataError(f"{where}: {key}: no such file: {name!r:.120} ({error})") from error
    if found is not None and found.is_dir():
        raise DataError(f"{where}: {key}: expected a file, got the folder {found}")
    if found is None:
        shown = str(paths[0])
        others = [
            str(root) for root in opened.roots[1:] if root.is_dir() and root.resolve() != opened.roots[0].resolve()
        ]
        nor = f" (nor from {', '.join(others[:3])})" if others and not os.path.isabs(name) else ""
        raise DataError(f"{where}: no such file: {shown if shown.isprintable() else repr(shown)}{nor}")
    return str(found)


def _seconds(where: str, key: str, value: Any) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if not 0 <= seconds < 1e7:
        raise DataError(f"{where}: {key} is {value!r:.40}, expected seconds")
    return seconds


__all__ = ["FORMS", "DataError", "Form", "Sample", "iterate_source", "load_source", "read_rows"]
__all__ += ["report_unread", "sample_of"]

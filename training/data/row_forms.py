# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Forms of rows: how each is told by its columns, and how a row becomes a `Sample` (`docs/data.md` lists them).

A form of your own is a function and its entry in `FORMS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.training.data.authors_layouts import CAPTIONED, SPEECH, read_captions, read_features, tell_layout
from xllm.training.data.media_rows import DataError, MediaRows
from xllm.training.data.media_tags import as_list, check_text, read_turns
from xllm.training.data.samples import Row, Sample, Stored
from xllm.training.data.spoken_rows import SPOKEN
from xllm.training.recipes.recipe import SourceSpec


TEXT_PROMPTS = ["{text}"]
# Common names of columns; the first of each wins over the others.
FILE_COLUMNS = (
    "file", "file_name", "file_names", "filename", "path", "file_path", "filepath", "source", "wav", "wav_path",
    "clip", "media", "url",
)  # fmt: skip
TEXT_COLUMNS = (
    "text", "sentence", "caption", "captions", "transcript", "transcription", "target", "normalized_text", "txt",
    "description", "answer",
)  # fmt: skip
_SUFFIXES = ("", "_path", "_file", "_filepath", "_file_name", "_file_names", "_filename", "_name", "_url")
# Columns that say something of a row that training does not need; others that nobody reads are reported.
NOTES = frozenset(
    ("id", "idx", "index", "key", "uid", "__key__", "__url__", "utterance_id", "image_id", "length", "source_len",
     "target_len", "duration", "dataset", "license", "licence", "sha256", "split",
     "task")
)  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A form of rows.

    Args:
        read: source, place, row and what the model reads to a sample; a `KeyError` is a column that is missing.
        is_form: whether a row is of this form; the first form of the table that says so is taken. By default none is:
            the form must be named in the recipe.
    """

    read: Callable[[SourceSpec, str, Row, MediaRows], Sample]
    is_form: Callable[[Mapping], bool] = lambda row: False


def with_columns(*alternatives: str) -> Callable[[Mapping], bool]:
    """Rows with all columns of one of the alternatives, each written "a b"."""
    return lambda row: any(all(column in row for column in columns.split()) for columns in alternatives)


def read_row(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    """A row as a sample; its media are not looked at.

    Raises:
        DataError: of an unknown form, without a column that the form needs, or not as the form says.
    """
    name = spec.format
    if name == "auto":
        name = next((name for name, form in FORMS.items() if form.is_form(row)), "table")
    try:
        sample = FORMS[name].read(spec, where, row, media)
    except KeyError as error:
        raise DataError(f"{where}: no column {error.args[0]!r}; the columns are {row}") from error
    if sample.messages is not None:
        _check_conversation(where, sample.messages)
    sample.equivalents = _equivalents(spec, where, row, sample)
    return sample


def _equivalents(spec: SourceSpec, where: str, row: Row, sample: Sample) -> list[str] | None:
    """What the media of a row say, for a teacher that reads: its column `text_equivalent`, or as the source has it."""
    if spec.text_equivalent is not None:
        texts = [_fill(spec.text_equivalent, where, row)]
    elif "text_equivalent" in row:
        texts = as_list(where, "text_equivalent", row["text_equivalent"])
    else:
        return None
    media = [part for part in sample.parts() if part["type"] != "text"]
    if not texts or not media:
        return None
    if len(texts) != len(media) or not all(isinstance(text, str) and text for text in texts):
        raise DataError(f"{where}: text_equivalent holds {len(texts)} texts for {len(media)} media; give one of each")
    return texts


def _check_conversation(where: str, messages: list[dict]) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        raise DataError(f"{where}: the last message must be the assistant's: it is what the model learns to say")
    for number, message in enumerate(messages):
        if message["role"] == "assistant" and any(part["type"] != "text" for part in message["content"]):
            raise DataError(f"{where}: message {number}: the assistant's answer holds a medium; it may hold text only")


# ---- conversations --------------------------------------------------------------------------------------------------


def _from_messages(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    return _conversation(spec, where, row, row["messages"], "messages", media, first=False)


def _from_conversations(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    return _conversation(spec, where, row, row["conversations"], "conversations", media, first=True)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and "user" in value[0]


def _from_texts(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    """Questions and answers about the images of a row: The Cauldron, FineVision."""
    turns = []
    for number, pair in enumerate(row["texts"]):
        if not isinstance(pair, Mapping) or not {"user", "assistant"} <= set(pair):
            raise DataError(f"{where}: texts[{number}]: expected a user's text and the assistant's, got {pair!r:.60}")
        turns += [{"role": name, "content": pair[name]} for name in ("user", "assistant")]
    return _conversation(spec, where, row, turns, "texts", media, first=True)


def _conversation(
    spec: SourceSpec, where: str, row: Row, turns: Any, field: str, media: MediaRows, first: bool
) -> Sample:
    messages = read_turns(where, row, turns, field, media, first, plain=spec.modality == "text")
    if system := row.get("system"):
        text = check_text(where, "system", system)
        messages = [{"role": "system", "content": [{"type": "text", "text": text}]}, *messages]
    return Sample(where, messages=messages)


def _from_instruction(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    """Alpaca's and ms-swift's columns as a conversation."""
    is_alpaca = "instruction" in row
    asked, said = ("instruction", "output") if is_alpaca else ("query", "response")
    texts = [row.get("instruction"), row.get("input")] if is_alpaca else [row[asked]]
    question = "\n".join(check_text(where, asked, text) for text in texts if text)
    turns: list[dict] = []
    for number, pair in enumerate(as_list(where, "history", row.get("history"))):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise DataError(f"{where}: history[{number}]: expected a question and its answer, got {pair!r:.60}")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    answer = check_text(where, said, row[said])
    turns += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return _conversation(spec, where, row, turns, f"{asked}, {said}", media, first=not is_alpaca)


# ---- the authors' files ---------------------------------------------------------------------------------------------


def _from_captions(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    part = next(iter(CAPTIONED)) if spec.modality is None else media.part(where, spec.modality)
    if part not in CAPTIONED:
        raise DataError(f"{where}: captions are of type {' or '.join(CAPTIONED)}, not {spec.modality!r}")
    column, held, captions = read_captions(row, part)
    media_of_row = [{"type": part, part: medium} for medium in as_list(where, column, held)]
    if not media_of_row:
        raise DataError(f"{where}: column {column!r} is empty")
    answers = [check_text(where, "caption", answer) for answer in as_list(where, "caption", captions) or [None]]
    return Sample(where, media=media_of_row, prompts=_prompts(spec, part, where, row), answers=answers)


def _from_features(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    try:
        parts, column, prompts = read_features(row)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error
    answer = check_text(where, column, row[column] if spec.answer is None else _fill(spec.answer, where, row))
    if prompts is None or spec.prompts is not None:
        prompts = _prompts(spec, SPEECH, where, row)
    return Sample(where, media=parts, prompts=prompts, answers=[answer])


# ---- tables ---------------------------------------------------------------------------------------------------------


def _from_table(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    column = _text_column(spec, where, row)
    texts = as_list(where, column, row[column])
    answers = [check_text(where, column, text) for text in texts or [None]]
    if spec.answer is not None:
        answers = [check_text(where, "answer", _fill(spec.answer, where, row))]
    if spec.modality == "text":
        return Sample(where, prompts=_prompts(spec, None, where, row), answers=answers)
    parts, part = _table_media(spec, where, row, media)
    return Sample(where, media=parts, prompts=_prompts(spec, part, where, row), answers=answers)


def _from_spoken(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    """What a source's `speak` has made; only of a pause the text is empty."""
    text, sound = row["text"], row[SPOKEN]
    if spec.modality == "text":
        return Sample(where, prompts=_prompts(spec, None, where, row), answers=[text])
    part = media.part_of_file(where, None) if spec.modality is None else media.part(where, spec.modality)
    return Sample(where, media=[{"type": part, part: sound}], prompts=_prompts(spec, part, where, row), answers=[text])


def _from_questions(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    """Visual question answering: the question stands behind the medium."""
    question = check_text(where, "question", row["question"])
    column = "answers" if "answers" in row else "answer"
    given = [text.get("answer") if isinstance(text, Mapping) else text for text in as_list(where, column, row[column])]
    answers = [check_text(where, column, text) for text in given or [None]]
    parts = [] if spec.modality == "text" else _table_media(spec, where, row, media)[0]
    prompts = [question] if spec.prompts is None else [_fill(prompt, where, row) for prompt in spec.prompts]
    return Sample(where, media=parts, prompts=prompts, answers=answers)


def _text_column(spec: SourceSpec, where: str, row: Row) -> str:
    if spec.text_column is not None:
        row[spec.text_column]  # a KeyError names it
        return spec.text_column
    names = {name.lower(): name for name in map(str, row) if row.peek(name) is not None}
    found = [names[name] for name in TEXT_COLUMNS if name in names]
    if not found or (len(found) > 1 and found[0].lower() != TEXT_COLUMNS[0]):
        raise _unclear(where, row, "text", "text_column", found)
    return found[0]


def _unclear(where: str, row: Row, what: str, key: str, found: list[str]) -> DataError:
    if found:
        return DataError(
            f"{where}: the {what} may be in {' or '.join(found)}; set `{key}` of the source to one of them"
        )
    return DataError(
        f"{where}: cannot tell the format from the columns {row}; expected messages, conversations, or a table with a "
        f"{what} column (set `{key}` of the source, or `modality: text` where there are no media; a .csv or .tsv file "
        "begins with a line of column names)"
    )


def _table_media(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> tuple[list[dict], str]:
    """The content parts of a table's row, and their type."""
    kinds = {f"{name}{suffix}": part for name, part in media.columns.items() for suffix in _SUFFIXES}
    column = spec.file_column
    if column is None:
        filled = {name: name.lower() for name in map(str, row) if row.peek(name) is not None}
        found = [name for name, lower in filled.items() if lower in kinds or lower in FILE_COLUMNS]
        held = [name for name in found if not isinstance(row.peek(name), str)]  # bytes beside a path of their origin
        found = held or [name for name in found if name.lower() == FILE_COLUMNS[0]] or found
        if len(found) != 1:
            raise _unclear(where, row, "medium", "file_column", found)
        column = found[0]
    media_of_row = as_list(where, column, row[column])
    if not media_of_row:
        raise DataError(f"{where}: column {column!r} is empty")
    if spec.modality is not None:
        part = media.part(where, spec.modality)
    elif column.lower() in kinds and len(media.trained) != 1:
        part = media.part(where, kinds[column.lower()])
    else:
        part = media.part_of_file(where, _name_of(media_of_row[0]))
    span = {key: row[key] for key in ("offset", "duration") if row.peek("offset") is not None and key in row}
    return [{"type": part, part: medium, **span} for medium in media_of_row], part


def _name_of(medium: Any) -> Any:
    if isinstance(medium, Mapping):
        return medium.get("path") or medium.get("url")
    return medium.name if isinstance(medium, Stored) else medium


def _prompts(spec: SourceSpec, part: str | None, where: str, row: Row) -> list[str]:
    default = TEXT_PROMPTS if part is None else MEDIA_KINDS[part].prompts
    return [_fill(prompt, where, row) for prompt in (default if spec.prompts is None else spec.prompts)]


def _fill(template: str, where: str, row: Row) -> str:
    try:
        return template.format_map(row) if "{" in template else template
    except (ValueError, IndexError, AttributeError, TypeError) as error:
        raise DataError(f"{where}: cannot fill in {template!r}: {error}") from error


# ---- members of a tar -----------------------------------------------------------------------------------------------


def _from_members(spec: SourceSpec, where: str, row: Row, media: MediaRows) -> Sample:
    """WebDataset: media by their extensions, the text of `.txt`, or whatever form the columns of `.json` have."""
    known = {ending for kind in MEDIA_KINDS.values() for ending in kind.extensions}
    columns: dict[str, Any] = {}
    members: dict[str, str] = {}
    for name in row:
        if isinstance(row.peek(name), Stored):
            members[PurePath(row.peek(name).name).name] = name
        elif isinstance(row.peek(name), Mapping):
            columns |= row[name]
        elif isinstance(row.peek(name), list):  # a .json that is a conversation
            columns["conversations"] = row[name]
        elif not name.startswith("__"):
            columns[name] = row[name]
    for file, name in sorted(members.items()):
        if PurePath(file).suffix.lower() not in known:
            row.unread.add(name)
        elif (named := next((key for key, value in columns.items() if _names(value, file)), None)) is not None:
            value = columns[named]  # the .json says which column it belongs to
            is_list = isinstance(value, list)
            columns[named] = [row[name] if one == file else one for one in value] if is_list else row[name]
        else:
            part = _part_of_member(spec, where, file, media)
            columns[part] = [*columns.get(part, ()), row[name]]
    inner = Row(columns)
    try:
        sample = read_row(spec, where, inner, media)
    except DataError as error:
        raise DataError(
            f"{error} (of the members {', '.join(name for name in row if name != '__key__')}; those of a sample have "
            "one name up to its first dot, and lie together)"
        ) from error
    row.unread |= inner.unread
    return sample


def _part_of_member(spec: SourceSpec, where: str, file: str, media: MediaRows) -> str:
    ending = PurePath(file).suffix.lower()
    every = [kind.type for kind in MEDIA_KINDS.values() if ending in kind.extensions]
    found = media.parts_with(ending) or every[:1]  # what no row reads is refused with its row
    wanted = [media.names.get(name) for name in (media.trained if spec.modality is None else [spec.modality])]
    chosen = found if len(found) == 1 else [part for part in found if wanted == [part]]
    if not chosen:
        raise DataError(f"{where}: {file} may be {' or '.join(found)}; set `modality` of the source to one of them")
    return chosen[0]


def _names(value: Any, file: str) -> bool:
    return value == file or (isinstance(value, list) and file in value)


# By name: how a form is told and read. The first that a row is of is taken; one that none claims is a table.
FORMS: dict[str, Form] = {
    "webdataset": Form(_from_members, with_columns("__key__")),
    "messages": Form(_from_messages, with_columns("messages")),
    "llava": Form(_from_conversations, with_columns("conversations")),
    "texts": Form(_from_texts, lambda row: _is_texts(row.get("texts"))),
    "instruction": Form(_from_instruction, with_columns("instruction output", "query response")),
    "features": Form(_from_features, lambda row: tell_layout(row) == "features"),
    "captions": Form(_from_captions, lambda row: tell_layout(row) == "captions"),
    "spoken": Form(_from_spoken, with_columns(SPOKEN)),
    "questions": Form(_from_questions, with_columns("question answer", "question answers")),
    "table": Form(_from_table),
}

__all__ = ["FORMS", "NOTES", "Form", "read_row", "with_columns"]

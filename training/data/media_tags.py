# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Turns of any spelling to messages, with the media of a row's columns in the places that its texts name by tags.

| who writes it         | turn                                     | place of a medium                              |
|-----------------------|------------------------------------------|------------------------------------------------|
| Hugging Face, OpenAI  | `{"role", "content": str or parts}`      | a part; without a source, the column's next    |
| ms-swift              | `{"role", "content": str}`               | `<image>`, `<video>`, `<audio>`                |
| LLaMA-Factory, LLaVA  | `{"from": "human", "value": str}`        | the same; LLaVA's `<image>` may mean a video   |
| ms-swift, Qwen-VL     | either                                   | `<img>FILE</img>`, `<audio>FILE</audio>`       |

Columns of media have the name of a kind or row, or its plural. A tag without a medium is an error; so is a medium
without a tag, except where the form lets media stand first. White space around a tag is dropped.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from xllm.processing.conversations import SOURCE_KEYS, clean_part, with_track
from xllm.processing.media_kinds import IMAGE, MEDIA_KINDS, VIDEO
from xllm.training.data.media_rows import DataError, MediaRows
from xllm.training.data.samples import Row


ROLES = {
    **{name: name for name in ("system", "user", "assistant", "tool", "developer")},
    "human": "user", **dict.fromkeys(("gpt", "chatgpt", "model", "bot"), "assistant"),
}  # fmt: skip
# Of a message besides role, content and loss: what chat templates read.
_TEMPLATE_KEYS = {"name", "tool_calls", "tool_call_id", "reasoning_content", "thinking", "tools"}
_PART_KEYS = {"type", "text", "sampling_rate", "track", "offset", "duration", *SOURCE_KEYS}
_JSON_LIST = re.compile(r"""\s*\[\s*["{\[\]]""")
# What peers write into a text for a medium, or for what stands in another column; the language model would learn it
# as words. HTML has attributes in its tags, which these have not.
_MEDIUM = "(?:image|img|im|vision|video|audio|speech|sound)"
_FOREIGN = re.compile(
    rf"<\|[^|<>\n]*(?:image|img|video|vision|audio|speech)[^|<>\n]*\|>|\[/?IMG(?:_\w+)?\]|\[AUDIO\]|<ref-object>|<bbox>|"
    rf"</?(?:(?:start|end|begin)_of_)?{_MEDIUM}(?:here|[-_ ]?\d+|(?:[-_](?:placeholder|pad|(?:soft_)?token|start|end|"
    rf"patch|context|content))*)>",
    re.IGNORECASE,
)


def as_list(where: str, field: str, value: Any) -> list:
    """A column that holds a list, or JSON of one. A single value, or a list of numbers, is a list of one; None and ""
    are empty.

    Raises:
        DataError: a string that begins as JSON and is none.
    """
    if isinstance(value, str) and _JSON_LIST.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: {field}: not JSON: {error}") from error
    if value is None or (isinstance(value, str) and not value):
        return []
    is_list = isinstance(value, (list, tuple)) and not (value and isinstance(value[0], (int, float)))  # a waveform
    return list(value) if is_list else [value]


class Media:
    """The media of a row's columns, by type of part, handed out one by one."""

    def __init__(self, where: str, row: Row, media: MediaRows, first: bool):
        self.where, self.names, self.first = where, media.names, first
        self.columns = {part: [c for c, p in media.columns.items() if p == part] for part in media.names.values()}
        self.waiting: dict[str, list] = {part: [] for part in self.columns}
        self.tagged: set[str] = set()
        for part, columns in self.columns.items():
            for column in columns:
                if column in row:
                    self.waiting[part] += as_list(where, column, row[column])
        self.held = {part: len(items) for part, items in self.waiting.items()}
        names = "|".join(map(re.escape, media.names))
        self._tag = re.compile(f"<({names})>")
        self._named = re.compile(rf"<({names}|img)>([^<>\n]+)</\1>")

    def take(self, part: str, field: str, tag: str) -> dict:
        """The next medium of a type, which `tag` of the message `field` asks for."""
        if self.first and part == IMAGE.type and not self.held[part] and self.held.get(VIDEO.type):
            part = VIDEO.type  # LLaVA's data of videos
        self.tagged.add(part)
        if not self.waiting[part]:
            raise DataError(
                f"{self.where}: {field}: the text names more {tag} than the row holds: {self.held[part]} in the "
                f"columns {', '.join(self.columns[part])} (`modality: text` if it is a word here)"
            )
        return {"type": part, part: self.waiting[part].pop(0)}

    def place(self, text: str, field: str) -> list[dict]:
        """A text as parts, its tags replaced by media."""
        if self._named.search(text):  # every third piece is a tag, every third a file
            pieces = self._named.split(text)
            texts = [self.place(piece.strip(), field) if piece.strip() else [] for piece in pieces[::3]]
            types = [self.names.get(name, IMAGE.type) for name in pieces[1::3]]
            files = [[{"type": part, part: file.strip()}] for part, file in zip(types, pieces[2::3])]
            return [part for both in zip(texts, [*files, []]) for parts in both for part in parts]
        if found := _FOREIGN.search(self._tag.sub("", text)):
            raise DataError(
                f"{self.where}: {field}: holds {found[0]}, a mark by which programs remember a medium or a box; for a "
                "medium, write <image> (or the like) and name the file in a column, or write content parts; for what "
                "stands in `objects`, write its words"
            )
        pieces = self._tag.split(text)
        if len(pieces) == 1:
            return [{"type": "text", "text": text}] if text else []
        parts = []
        for index, piece in enumerate(pieces):
            if index % 2:
                parts.append(self.take(self.names[piece], field, f"<{piece}>"))
            elif piece.strip():
                parts.append({"type": "text", "text": piece.strip()})
        return parts

    def rest(self, messages: list[dict], first: bool) -> None:
        """What no tag has named: stands first in the first user's turn if `first`, or is an error."""
        unnamed = [{"type": part, part: item} for part, items in self.waiting.items() for item in items]
        if not unnamed:
            return
        part = unnamed[0]["type"]
        user = next((message for message in messages if message["role"] == "user"), None)
        if not first or part in self.tagged or user is None:
            raise DataError(
                f"{self.where}: the columns {', '.join(self.columns[part])} hold {self.held[part]}, the texts name "
                f"{self.held[part] - len(self.waiting[part])}: write <{part}> where each belongs"
            )
        user["content"] = [*unnamed, *user["content"]]


def read_turns(where: str, row: Row, turns: Any, field: str, media: MediaRows, first: bool, plain: bool) -> list[dict]:
    """The messages of a row.

    Args:
        turns: a list of turns, or JSON of one.
        field: the column's name, for messages.
        first: media that no tag names stand first in the first user's turn; otherwise they are an error.
        plain: the row is text alone, and a tag in it is a word.

    Raises:
        DataError: not a list of turns, an unknown role, tags and media that do not match; names place and message.
    """
    turns = as_list(where, field, turns)
    held = None if plain else Media(where, row, media, first)
    messages = [_read_turn(where, row, f"{field}[{n}]", turn, held) for n, turn in enumerate(turns)]
    if held is not None:
        held.rest(messages, first)
    return messages


def _read_turn(where: str, row: Row, field: str, turn: Any, held: Media | None) -> dict:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: {field}: expected a mapping with role and content, got {type(turn).__name__}")
    turn = {key: value for key, value in turn.items() if value is not None}  # Arrow fills in what other turns have
    named, content = turn.pop("role", turn.pop("from", None)), turn.pop("content", turn.pop("value", None))
    role = ROLES.get(named) if isinstance(named, str) else None
    if role is None:
        raise DataError(f"{where}: {field}: its role is {named!r}, expected one of {', '.join(ROLES)}")
    message: dict[str, Any] = {"role": role, "content": _read_content(where, row, field, content, held)}
    loss = _read_loss(where, field, role, turn)
    message |= {} if loss is None else {"loss": loss}
    row.unread |= {f"{field.partition('[')[0]}.{key}" for key in turn.keys() - _TEMPLATE_KEYS}
    return message | {key: value for key, value in turn.items() if key in _TEMPLATE_KEYS}


def _read_content(where: str, row: Row, field: str, content: Any, held: Media | None) -> list[dict]:
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, (str, list, tuple)):
        given = "no content" if content is None else f"{content!r:.60} as content"
        raise DataError(f"{where}: {field}: it has {given}, expected text or a list of parts")
    found: list[dict] = []
    for given in [content] if isinstance(content, str) else content:
        if given is None:
            continue
        try:
            part = clean_part(given)
            is_named = part["type"] == "text" or any(key in part for key in (part["type"], *SOURCE_KEYS))
            if held is not None and not is_named:
                part |= held.take(part["type"], field, f"parts of type {part['type']!r}")
            parts = with_track(part)
        except DataError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"{where}: {field}: {error}") from error
        _check_characters(where, field, part.get("text"))
        found += held.place(part["text"], field) if part["type"] == "text" and held is not None else parts
        kind = MEDIA_KINDS.get(part["type"])
        if isinstance(given, Mapping):
            known = _PART_KEYS | ({kind.type, *kind.aliases, *kind.openai_types} if kind else set())
            row.unread |= {
                f"{field.partition('[')[0]}.content.{key}"
                for key in given
                if given[key] is not None and key not in known
            }
    return found


def _check_characters(where: str, field: str, text: str | None) -> None:
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {field}: half of a surrogate pair ({error.reason}): not a text") from error
    if "\0" in (text or ""):
        raise DataError(f"{where}: {field}: a NUL character: not a text")


def check_text(where: str, field: str, text: Any) -> str:
    """A text of a column that is not empty.

    Raises:
        DataError: it is.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        raise DataError(f"{where}: column {field!r} is empty")
    if not isinstance(text, str):
        raise DataError(f"{where}: column {field!r} holds {text!r:.60}, expected a text")
    _check_characters(where, field, text)
    return text


def _read_loss(where: str, field: str, role: str, turn: dict) -> bool | None:
    """Whether an answer carries loss (`loss` of ms-swift, `weight` of OpenAI); None where it does not say."""
    given = {key: turn.pop(key) for key in ("loss", "weight") if key in turn}
    for key, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise DataError(f"{where}: {field}.{key} is {value!r}: an answer carries loss or does not, 1 or 0")
        if value and role != "assistant":
            raise DataError(f"{where}: {field}.{key} is {value!r}, but only answers of the assistant can carry loss")
    return bool(min(given.values())) if given and role == "assistant" else None


__all__ = ["Media", "as_list", "check_text", "read_turns"]

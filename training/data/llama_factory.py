# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`dataset_info.json` of LLaMA-Factory: data files, and the names that their columns, keys and roles have there."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xllm.modeling_xllm.weight_files import read_json
from xllm.training.data.media_rows import DataError


INFO = "dataset_info.json"
# Names that LLaMA-Factory gives by default, in the order of its own documentation.
_TAGS = {"role": "from", "content": "value", "user": "human", "assistant": "gpt", "system": "system"}
_OPENAI_TAGS = {**_TAGS, "role": "role", "content": "content", "user": "user", "assistant": "assistant"}
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}  # ours of its Alpaca columns


@dataclass(frozen=True)
class Entry:
    """A data file or folder, and what gives its rows the names that forms of rows are told by."""

    file: Path
    renamed: Any


def find(path: Path, name: str | None) -> Entry | None:
    """The entry that `path` names: the file that lists them, its folder, or a data file beside it; `name` chooses one.

    Raises:
        DataError: there are several, or none of that name; one that is not in a local file, or is not read.
    """
    info = path / INFO if path.is_dir() else path.with_name(INFO)
    try:
        listed = read_json(info)
    except ValueError as error:
        if path == info:
            raise DataError(f"{info}: not JSON: {error}") from error
        return None
    entries = {key: one for key, one in listed.items() if _is_entry(one)} if isinstance(listed, Mapping) else {}
    if path != info and path.is_file():
        at = [key for key, one in entries.items() if info.parent / str(one.get("file_name")) == path]
        entries = {key: entries[key] for key in at if name in (None, key)}
    elif name is None and path != info and len(entries) > 1:
        return None  # a folder of data files, some of which are listed
    if not entries and path != info:
        return None
    chosen = name or (next(iter(entries)) if len(entries) == 1 else None)
    if chosen not in entries:
        raise DataError(f"{info}: set `config` of the source to one of {', '.join(entries) or 'none'}, got {chosen!r}")
    return _entry(f"{info}: {chosen}", info.parent, entries[chosen])


def _is_entry(entry: Any) -> bool:
    keys = ("file_name", "hf_hub_url", "ms_hub_url", "script_url")
    return isinstance(entry, Mapping) and any(isinstance(entry.get(key), str) for key in keys)


def _entry(where: str, folder: Path, entry: Mapping) -> Entry:
    if "file_name" not in entry:
        raise DataError(f"{where}: not in a local file; give {entry.get('hf_hub_url') or 'its files'} as `path`")
    if entry.get("ranking"):
        raise DataError(f"{where}: pairs of better and worse answers (ranking) are not trained on")
    columns = {str(new): old for new, old in (entry.get("columns") or {}).items()}
    if entry.get("formatting", "alpaca") == "alpaca":
        names = {old: _COLUMNS.get(new, new) for new, old in columns.items()}
        return Entry(folder / entry["file_name"], partial(_columns, names))
    default = _OPENAI_TAGS if entry["formatting"] == "openai" else _TAGS
    tags = {key: (entry.get("tags") or {}).get(f"{key}_tag", value) for key, value in default.items()}
    turns = columns.get("messages", "messages" if entry["formatting"] == "openai" else "conversations")
    names = {old: new for new, old in {**columns, "messages": turns}.items()}
    return Entry(folder / entry["file_name"], partial(_turns, names, tags))


def _columns(names: Mapping[str, str], row: Any) -> Any:
    return {names.get(name, name): value for name, value in row.items()} if isinstance(row, Mapping) else row


def _turns(names: Mapping[str, str], tags: Mapping[str, str], row: Any) -> Any:
    row = _columns(names, row)
    if not isinstance(row, dict) or not isinstance(row.get("messages"), list):
        return row
    keys = {tags["role"]: "role", tags["content"]: "content"}
    roles: dict[Any, Any] = {tags[name]: name for name in ("user", "assistant", "system")}
    turns = [_columns(keys, turn) for turn in row["messages"]]
    told = [turn | {"role": roles.get(turn.get("role"), turn.get("role"))} for turn in turns if isinstance(turn, dict)]
    return row | {"messages": told if len(told) == len(turns) else turns}


__all__ = ["INFO", "Entry", "find"]

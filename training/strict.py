# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Mappings as dataclasses, strictly: every key known, every value of the declared kind, and errors that name the place.

A field whose metadata is `{"of": Class}` holds that dataclass, or a list of it (a single one may stand for the list).
"""

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields
from typing import Any


class RecipeError(ValueError):
    """A recipe that cannot be read; the message names the file, the key and the nearest valid key."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """ "; did you mean 'x'?", or all valid names where none is near."""
    choices = sorted(map(str, choices))
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; valid: {', '.join(choices) or 'none'}"


def build(cls: type, value: Any, source: str, where: str) -> Any:
    """A mapping as the dataclass `cls`; a string stands for its `path`.

    Args:
        source, where: for messages: the file, and the dotted place in it (with its dot, or empty).

    Raises:
        RecipeError: an unknown or missing key, a value of another kind.
    """
    if isinstance(value, cls):
        return value
    if isinstance(value, str) and "path" in {item.name for item in fields(cls)}:
        value = {"path": value}
    if not isinstance(value, dict):
        raise RecipeError(f"{source}: {where or 'recipe'}: expected a mapping, got {type(value).__name__}")
    known = {item.name: item for item in fields(cls) if item.name != "source"}
    for key in value:
        if key not in known:
            raise RecipeError(f"{source}: unknown key {where + str(key)!r}{nearest(key, known)}")
    result = {}
    for name, item in known.items():
        at = f"{where}{name}"
        if name not in value:
            if item.default is MISSING and item.default_factory is MISSING:
                raise RecipeError(f"{source}: {at} is missing")
            continue
        result[name] = _convert(item, value[name], source, at)
    return cls(**result)


def _convert(item, value: Any, source: str, at: str) -> Any:
    inner = item.metadata.get("of")
    text = str(item.type)
    if value is None and inner is not None:
        value = [] if text.startswith("list") else {}
    if inner is not None and text.startswith("list"):
        value = value if isinstance(value, list) else [value]
        return [build(inner, entry, source, f"{at}.{index}.") for index, entry in enumerate(value)]
    if inner is not None:
        return build(inner, value, source, f"{at}.")
    if text.startswith("list") and isinstance(value, str):
        value = [value]
    if item.type is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not _is_kind(value, item.type):
        kind = text.removeprefix("<class '").removesuffix("'>")
        raise RecipeError(f"{source}: {at} is {value!r}, expected {kind}")
    return value


def _is_kind(value: Any, kind: Any) -> bool:
    if kind is Any:
        return True
    kinds = getattr(kind, "__args__", None) if type(kind).__name__ == "UnionType" else None
    if kinds:
        return any(_is_kind(value, one) for one in kinds)
    if kind is None or kind is type(None):
        return value is None
    origin = getattr(kind, "__origin__", kind)
    if origin is list and isinstance(value, list) and getattr(kind, "__args__", None):
        return all(isinstance(entry, kind.__args__[0]) for entry in value)
    if isinstance(value, bool) and origin is not bool:
        return False
    return isinstance(value, origin)


__all__ = ["RecipeError", "build", "nearest"]

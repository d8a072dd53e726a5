# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Mappings as dataclasses, strictly: every key is known, every value of the declared kind, errors name the place.

A field whose metadata is `{"of": Class}` holds that dataclass, or a list of it (a single one may stand for the list).
"""

import difflib
from collections.abc import Iterable
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


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
    if not is_kind(value, item.type):
        raise RecipeError(f"{source}: {at} is {value!r}, expected {kind_name(item.type)}")
    return value


def is_kind(value: Any, kind: Any) -> bool:
    """Whether a value of a YAML file fits a type of an annotation; True is no number, and 1 is also a float."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Any:
        return True
    if origin in (Union, UnionType):
        return any(is_kind(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (None, NoneType):
        return value is None
    if isinstance(value, bool):
        return origin is bool
    if origin is list and inner:
        return isinstance(value, list) and all(is_kind(entry, inner[0]) for entry in value)
    return isinstance(value, (int, float) if origin is float else origin)


def kind_name(kind: Any) -> str:
    """A type as it is written in an annotation: "int", "str | None"."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def check_choice(where: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a `RecipeError` that lists the choices where the value is none of them."""
    if value not in choices:
        raise RecipeError(f"{where} is {value!r}; choose one of {', '.join(choices)}")


__all__ = ["RecipeError", "build", "check_choice", "is_kind", "kind_name", "nearest"]

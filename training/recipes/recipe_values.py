# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The values of a recipe before they are checked: YAML that is not a bomb, overrides of dotted keys, variables."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import yaml

from xllm.training.recipes.strict import RecipeError, nearest


# Keys of a stage that may stand at the top level, as the one stage or as defaults of all.
STAGE_DEFAULTS = ("data", "trainer", "evaluate")
NEEDED = object()  # what a variable holds whose value must be given
MOST_VALUES = 100_000  # of a recipe; nested aliases make billions of a few lines


def read_yaml(text: str | bytes, complaint: str) -> Any:
    """The value of a YAML text; a `RecipeError` that begins with `complaint` where it is none, or too large."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise RecipeError(f"{complaint}: {error}") from error
    if _count(value, {}) > MOST_VALUES:
        raise RecipeError(f"{complaint} of at most {MOST_VALUES:,} values, once its aliases (*name) are written out")
    return value


def _count(value: Any, counted: dict[int, float]) -> float:
    """How many values there are where each alias counts as what it stands for; infinite where one holds itself."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in counted:
        counted[id(value)] = float("inf")
        inner = value.values() if isinstance(value, dict) else value
        counted[id(value)] = 1 + sum(_count(item, counted) for item in inner)
    return counted[id(value)]


def copy_value(value: Any) -> Any:
    """A deep copy of mappings and lists that shares what they hold (a dataset, say)."""
    if isinstance(value, Mapping):
        return {key: copy_value(item) for key, item in value.items()}
    return [copy_value(item) for item in value] if isinstance(value, (list, tuple)) else value


def apply_overrides(raw: dict, variables: dict, overrides, source: str) -> None:
    """Set variables, and keys of the recipe `raw`, as the command line says; see `load_recipe`."""
    pairs = list(overrides.items()) if isinstance(overrides, Mapping) else []
    if not isinstance(overrides, Mapping):
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals or not key:
                raise RecipeError(f"override {text!r}: expected key=value, e.g. trainer.max_steps=100")
            pairs.append((key, read_yaml(value, f"override {text!r}: the value is not YAML") if value else ""))
    for key, value in pairs:
        if key in variables:
            variables[key] = value
            continue
        _set_dotted(raw, key, value, source)
        if key.split(".")[0] in STAGE_DEFAULTS:  # given on the command line, it holds for every stage
            for stage in raw.get("stages") or []:
                if isinstance(stage, dict):
                    _set_dotted(stage, key, value, source)


def _set_dotted(raw: dict, key: str, value: Any, source: str) -> None:
    parts = key.split(".")
    at: Any = raw
    part: str | int
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        if isinstance(at, list):
            if not parts[depth].isdigit() or int(part) >= len(at):
                raise RecipeError(f"{source}: override {key}: {part!r} is not an index below {len(at)}")
            part = int(part)
        elif not isinstance(at, dict):
            raise RecipeError(f"{source}: override {key}: {'.'.join(parts[:depth])} is not a mapping")
        if last:
            at[part] = deepcopy(value)
        else:
            if isinstance(at, dict) and at.get(part) is None:
                at[part] = {}
            at = at[part]


_VARIABLE = re.compile(r"\$\{([^}]*)\}")


def substitute(value: Any, variables: dict, source: str) -> Any:
    """`value` with what its `${name}` stand for; a `RecipeError` for an unknown variable, or one without a value."""
    if isinstance(value, dict):
        return {key: substitute(item, variables, source) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, variables, source) for item in value]
    if not isinstance(value, str):
        return value
    for name in _VARIABLE.findall(value):
        if name not in variables:
            raise RecipeError(f"{source}: ${{{name}}} is not in vars{nearest(name, variables)}")
        if variables[name] is NEEDED:
            raise RecipeError(f"{source}: give {name}=... on the command line")
    whole = _VARIABLE.fullmatch(value)
    if none := [name for name in _VARIABLE.findall(value) if variables[name] is None and not whole]:
        raise RecipeError(f"{source}: {none[0]} is null, but is part of {value!r}")
    return variables[whole[1]] if whole else _VARIABLE.sub(lambda match: str(variables[match[1]]), value)


__all__ = ["NEEDED", "STAGE_DEFAULTS", "apply_overrides", "copy_value", "read_yaml", "substitute"]

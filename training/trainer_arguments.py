# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The `trainer` part of a recipe: fields of transformers' `TrainingArguments`, checked before anything is loaded."""

import re
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, get_args, get_type_hints

from xllm.training.strict import RecipeError, check_choice, is_kind, kind_name, nearest


# TrainingArguments that the runner sets itself, and why a recipe may not.
OWN_ARGUMENTS = {
    "output_dir": "set output_dir of the recipe",
    "seed": "set seed of the recipe",
    "remove_unused_columns": "the collator needs every column",
    "label_names": "the targets are always `labels`",
    "label_smoothing_factor": "the Trainer smooths unshifted labels of this model; it would train the wrong targets",
    "ddp_find_unused_parameters": "the model touches every trained parameter itself",
    "disable_tqdm": "progress is shown by the runner",
}


@cache
def _training_arguments() -> dict[str, Any]:
    """Types of the fields of `TrainingArguments`."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    return {item.name: hints[item.name] for item in fields(TrainingArguments) if item.init}


def check_argument(where: str, name: str, value: Any) -> Any:
    """The value of one field of `TrainingArguments`, in its type; `where` names the mapping, for messages.

    Raises:
        RecipeError: no such field, one that the runner sets, a value of another kind, a tracker that is not installed.
    """
    if name in OWN_ARGUMENTS:
        raise RecipeError(f"{where}.{name} cannot be set: {OWN_ARGUMENTS[name]}")
    if name not in _training_arguments():
        raise RecipeError(f"{where}: unknown key {name!r}{nearest(name, _training_arguments())}")
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        value = float(value)  # YAML reads 1e-4 as text, 1.0e-4 as a number
    elif value is False and name.endswith("_strategy"):
        value = "no"  # which YAML reads as false
    kind = _training_arguments()[name]
    if choices := [one for one in get_args(kind) if isinstance(one, type) and issubclass(one, Enum)]:
        check_choice(f"{where}.{name}", value, tuple(member.value for member in choices[0]))
    elif not is_kind(value, kind):
        raise RecipeError(f"{where}.{name} is {value!r}, expected {kind_name(kind)}")
    if name == "report_to":
        _check_trackers(f"{where}.{name}", value)
    return value


def _check_trackers(where: str, value: str | list[str] | None) -> None:
    from transformers.integrations import integration_utils

    for name in [value] if isinstance(value, str) else value or []:
        if name not in ("none", "all"):
            check_choice(where, name, ("none", "all", *integration_utils.INTEGRATION_TO_CALLBACK))
            if name not in integration_utils.get_available_reporting_integrations() and name != "flyte":
                raise RecipeError(f"{where}: {name} is not installed: pip install {name.replace('_', '-')}")


__all__ = ["OWN_ARGUMENTS", "check_argument"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Mappings as dataclasses, strictly: every key is known, every value of the declared kind, errors name the place.

A field whose metadata is `{"of": Class}` holds that dataclass, or a list of it (a single one may stand for the list).
The `trainer` part of a recipe, fields of transformers' `TrainingArguments`, is checked before anything is loaded.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import MISSING, fields
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


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
            is_argument = key in _training_arguments() and (not where or "trainer" in known)
            hint = f"; did you mean '{where}trainer.{key}'?" if is_argument else nearest(key, known)
            raise RecipeError(f"{source}: unknown key {where + str(key)!r}{hint}")
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
        if item.default is None:
            return None
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
        raise RecipeError(f"{source}: {at} is {value!r}, expected {_kind_name(item.type)}")
    return value


def _is_kind(value: Any, kind: Any) -> bool:
    """Whether a value of a YAML file fits a type of an annotation; True is no number, and 1 is also a float."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin is Any:
        return True
    if origin in (Union, UnionType):
        return any(_is_kind(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin in (None, NoneType):
        return value is None
    if isinstance(value, bool):
        return origin is bool
    if origin is list and inner:
        return isinstance(value, list) and all(_is_kind(entry, inner[0]) for entry in value)
    return isinstance(value, (int, float) if origin is float else origin)


def _kind_name(kind: Any) -> str:
    """A type as it is written in an annotation: "int", "str | None"."""
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")


def check_choice(where: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises a `RecipeError` that lists the choices where the value is none of them."""
    if value not in choices:
        raise RecipeError(f"{where} is {value!r}; choose one of {', '.join(choices)}")


_PUSH = "nothing is pushed while training: use `xllm push`"
_METRICS = "the evaluation while training is the loss alone: use `evaluate`"
_UNREAD = "it has no effect here: leave it out"
# TrainingArguments that the runner sets itself, or that nothing reads, and what a recipe does instead.
OWN_ARGUMENTS = {
    "output_dir": "set output_dir of the recipe",
    "seed": "set seed of the recipe",
    "remove_unused_columns": "the collator needs every column",
    "label_names": "the targets are always `labels`",
    "label_smoothing_factor": "the Trainer smooths unshifted labels of this model; it would train the wrong targets",
    "ddp_find_unused_parameters": "every process runs all that is trained",
    "disable_tqdm": "progress is shown by the runner",
    "resume_from_checkpoint": "use `xllm train RECIPE --resume`",
    "restore_callback_states_from_checkpoint": "`--resume` restores what there is",
    "ignore_data_skip": "a resumed run goes on with the samples that it has not seen",
    "enable_jit_checkpoint": "SIGTERM and Ctrl-C save a checkpoint anyway",
    "save_only_model": "a run cannot go on without the optimizer's state; the stage's own checkpoint has none",
    "logging_nan_inf_filter": "NaN and Inf stop the run",
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "local_rank"), _UNREAD),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_strategy", "hub_token", "hub_private_repo"), _PUSH),
    **dict.fromkeys(("hub_always_push", "hub_revision"), _PUSH),
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics", "eval_do_concat_batches"), _METRICS),
    **dict.fromkeys(("eval_use_gather_object", "eval_accumulation_steps", "prediction_loss_only"), _METRICS),
}
EXTRAS = ("tensorboard",)  # trackers that an extra of this package brings


@cache
def _training_arguments() -> dict[str, Any]:
    """Types of the fields of `TrainingArguments`."""
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    hints["fsdp"] = bool | hints["fsdp"]  # as its documentation has it
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
    elif not _is_kind(value, kind):
        raise RecipeError(f"{where}.{name} is {value!r}, expected {_kind_name(kind)}")
    if name == "report_to":
        _check_trackers(f"{where}.{name}", value)
    return value


def _check_trackers(where: str, value: str | list[str] | None) -> None:
    from transformers.integrations import integration_utils

    for name in [value] if isinstance(value, str) else value or []:
        if name not in ("none", "all"):
            check_choice(where, name, ("none", "all", *integration_utils.INTEGRATION_TO_CALLBACK))
            if name not in integration_utils.get_available_reporting_integrations() and name != "flyte":
                package = f'"xllm-transformers[{name}]"' if name in EXTRAS else name.replace("_", "-")
                raise RecipeError(f"{where}: {name} is not installed: pip install {package}")


__all__ = ["OWN_ARGUMENTS", "RecipeError", "build", "check_argument", "check_choice", "nearest"]

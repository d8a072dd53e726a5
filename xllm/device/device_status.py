# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The status of a device as a modality: JSON, as a declared JSON Schema has it, to tokens that a language model reads.

    {"battery": 37, "wifi": true, "alarm": {"hour": 7, "minute": 30}}   a state, `{"type": "status", "path": ...}`
    battery 37 | wifi true | alarm.hour 7 | alarm.minute 30             its fields, two tokens each by default

| field                      | becomes                                                                |
|----------------------------|------------------------------------------------------------------------|
| number, integer            | its value: sines of each digit, its place from `minimum` to `maximum`  |
| boolean, `enum` of strings | a code of the value                                                    |
| other string               | its letters, one field per word (of up to 8 bytes)                     |
| array of numbers           | a time series: its first, last, lowest, highest and mean value, and    |
|                            | where its items may be null the number of these                        |
| other array, object        | the fields in it                                                       |
| null, or left out          | that it is absent                                                      |

Names and categories have codes derived from their hash, so that nothing but the schema needs to be stored, and a
schema may grow without a change of shapes (feature hashing, Weinberger et al. 2009, arXiv 0902.2206). Numbers:
FoNE (Zhou et al. 2025, arXiv 2502.09741), with harmonics. This file travels with the checkpoints that use it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError, best_match
from torch import nn

from xllm.modeling_xllm.converters import ConverterOutput, X2LConverter, register_converter
from xllm.processing.media_kinds import MediaKind, register_media_kind
from xllm.processing.media_sources import MediaError, describe_source, open_media


SETTINGS = "device.json"
KINDS = ("number", "code", "text", "absent")
CODE = 64  # bits of a name, of a category, and of the letters of a word
MOST_TOKENS = 4  # per field
HARMONICS = np.arange(1, 6)
PERIODS = 10.0 ** np.arange(-1, 6)  # of the digits from hundredths to ten thousands
SUMMARY: dict[str, Callable[[list[float]], Any]] = {
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
    "lowest": min,
    "highest": max,
    "mean": np.mean,
}
NUMBERS = {"integer", "number", "null"}  # types of a series' items
FEATURES = 2 * CODE + len(KINDS) + MOST_TOKENS + 3 + 2 * HARMONICS.size * PERIODS.size
WIDTH = 256


class Field(NamedTuple):
    """One field of a state: its path in it, its part of the schema, one of `KINDS`, and its value."""

    path: str
    schema: dict
    kind: str
    value: Any = None


@dataclass(frozen=True, eq=False)
class DeviceStatus:
    """A state that has been read and keeps to its schema, its features `values (positions, FEATURES)`, and of which
    field each position is."""

    state: dict
    values: np.ndarray
    names: tuple[str, ...] = ()


class DeviceStatusReader:
    """Opens states, checks them, and turns them to tensors.

    Args:
        status (`dict`): JSON Schema of a state, an object with `properties`. Numbers may have an `x-unit`; what the
            schema does not declare may not be there.
        commands (`dict`, *optional*): JSON Schema of the device's commands, for `xllm chat --commands`.
        tokens_per_field (`int`): placeholders of each field, 1 to 4.

    Raises:
        ValueError: no schema of such states; the message names the part of it.
    """

    def __init__(self, status: dict | None = None, commands: dict | None = None, tokens_per_field: int = 2):
        if status is None:
            raise ValueError("a status needs the schema of its device: --modality status=DEVICE.json")
        if tokens_per_field not in range(1, MOST_TOKENS + 1):
            raise ValueError(f"tokens_per_field is {tokens_per_field!r}, expected 1 to {MOST_TOKENS}")
        for name, schema in {"status": status, "commands": commands or {}}.items():
            try:
                Draft202012Validator.check_schema(schema)
            except SchemaError as error:
                raise ValueError(f"{name}{error.json_path[1:]}: not a JSON Schema: {error.message}") from error
        self.status, self.commands, self.tokens_per_field = status, commands, tokens_per_field
        self._validator = Draft202012Validator(_strict(status, "status"))
        if status.get("type") != "object":
            raise ValueError("status: the schema of a state is one of an object: give type: object")

    @classmethod
    def from_file(cls, path: str | Path) -> "DeviceStatusReader":
        """The reader that a JSON file with these arguments describes."""
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**values)
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{path}: no device, an object with status, commands and tokens_per_field: {error}"
            ) from error

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "DeviceStatusReader":
        """The reader of a checkpoint."""
        return cls.from_file(Path(folder, SETTINGS))

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:
        """Writes what `from_pretrained` reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        values = {"status": self.status, "commands": self.commands, "tokens_per_field": self.tokens_per_field}
        Path(folder, SETTINGS).write_text(json.dumps(values, indent=2, ensure_ascii=False), encoding="utf-8")

    def load(self, source: Any) -> DeviceStatus:
        """A state from a path, URL, bytes or a dict that is the state itself; a `DeviceStatus` passes.

        Raises:
            MediaError: no JSON, or it breaks the schema; the message names file and field, and says what to give.
        """
        if isinstance(source, DeviceStatus):
            return source
        name, state = describe_source(source), source
        if not isinstance(source, dict) or source.keys() and source.keys() <= {"path", "url", "bytes", "base64"}:
            with open_media(source) as (file, name):
                state = _parse(file.read(), name)
        if error := best_match(self._validator.iter_errors(state)):
            raise MediaError(name, _explain(error))
        try:
            fields = list(fields_of(state, self.status))
            values = [features(field, slot) for field in fields for slot in range(self.tokens_per_field)]
        except ValueError as wrong:
            raise MediaError(name, str(wrong)) from wrong
        if not values:
            raise MediaError(name, "the schema of this device has no fields, so there is nothing to read")
        names = tuple(field.path for field in fields for _ in range(self.tokens_per_field))
        return DeviceStatus(state, np.stack(values), names)

    def __call__(self, items: list, return_tensors: str = "pt", **kwargs: Any) -> dict[str, torch.Tensor]:
        """`status_values (items, positions, FEATURES)` and `status_mask (items, positions)`, padded."""
        rows = [torch.from_numpy(self.load(item).values) for item in items]
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
        return {"status_values": nn.utils.rnn.pad_sequence(rows, batch_first=True), "status_mask": mask}


def _strict(schema: dict, path: str) -> dict:
    """A copy of the schema that allows what it declares alone; a `ValueError` names a part that cannot be read."""
    schema = {} if isinstance(schema, bool) else schema
    if unread := sorted({"patternProperties", "prefixItems"} & schema.keys()):
        raise ValueError(f"{path}.{unread[0]}: what it allows would not be read: declare it by properties and items")
    if undeclared := set(schema.get("required", ())) - schema.get("properties", {}).keys():
        raise ValueError(f"{path}.required: {min(undeclared)} is none of the properties: declare it there")
    for key, kind in (("properties", "object"), ("items", "array")):
        if key in schema:
            types = _types(schema) or [kind]
            if not set(types) <= {kind, "null"}:
                raise ValueError(
                    f"{path}: type is {schema['type']}, but {key} are those of an {kind}: give type: {kind}"
                )
            schema = {**schema, "type": types}
    if properties := schema.get("properties"):
        own = {name: _strict(part, f"{path}.{name}") for name, part in properties.items()}
        return {**schema, "properties": own, "additionalProperties": False}
    if "items" in schema:
        return {**schema, "items": _strict(schema["items"], f"{path}[]")}
    names = set(_types(schema)) - {"null"}
    choices = {*schema.get("enum", [schema.get("const")])} - {None}
    named = choices and all(isinstance(choice, str) for choice in choices)
    if not named and not (names and names <= {"boolean", "string", "integer", "number"}):
        raise ValueError(
            f"{path}: no field that a status can have: give the type (boolean, integer, number, string), an enum of "
            "strings, properties or items"
        )
    return schema


def _types(schema: dict) -> list[str]:
    names = schema.get("type", [])
    return [names] if isinstance(names, str) else names


def _parse(data: bytes, name: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict:
        names = [key for key, _ in pairs]
        if twice := next((key for key in names if names.count(key) > 1), None):
            raise ValueError(f"{twice} is there twice: keep one")
        return dict(pairs)

    try:
        return json.loads(data, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise MediaError(name, f"not the JSON of a status: {error}") from error


def _explain(error: ValidationError) -> str:
    """Field, what is wrong with it, and what to give."""
    path, schema = list(error.absolute_path), error.schema if isinstance(error.schema, dict) else {}
    declared = schema.get("properties", {})
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        return f"field {_join([*path, missing])} is missing: give {_expected(declared.get(missing, {}))}"
    if error.validator == "additionalProperties":
        extra = min(str(name) for name in error.instance.keys() - declared.keys())
        return f"field {_join([*path, extra])}: the device has none; its fields are {', '.join(declared)}"
    shown = error.message if len(error.message) < 200 else f"{error.message[:200]}..."
    return f"{f'field {_join(path)}' if path else 'the state'}: {shown}: give {_expected(schema)}"


def _expected(schema: dict) -> str:
    """A field's values in words: "an integer from 0 to 100 %"."""
    if "enum" in schema or "const" in schema:
        return f"one of {', '.join(map(str, schema.get('enum', [schema.get('const')])))}"
    words = " or ".join(_types(schema)) or "what its schema says"
    low, high, unit = schema.get("minimum"), schema.get("maximum"), schema.get("x-unit", "")
    bounds = "" if low is None else f" from {low}", "" if high is None else f" to {high}", unit and f" {unit}"
    return f"{words}{''.join(bounds)}"


def _join(path: list) -> str:
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".")


def fields_of(state: Any, schema: dict, path: str = "") -> Iterator[Field]:
    """The fields of a state that keeps to its schema, in the schema's order."""
    if state is None and "const" not in schema and None not in schema.get("enum", []):
        yield Field(path, schema, "absent")
    elif "properties" in schema:
        for name, part in schema["properties"].items():
            yield from fields_of(state.get(name), part, f"{path}.{name}".removeprefix("."))
    elif isinstance(state, list) and state and {"null"} < {"null", *_types(schema["items"])} <= NUMBERS:
        yield from _series(state, schema["items"], path)
    elif isinstance(state, list):
        for place, item in enumerate(state):
            yield from fields_of(item, schema["items"], f"{path}[{place}]")
        yield Field(f"{path}.length", {}, "number", len(state))
    elif isinstance(state, str) and "enum" not in schema and "const" not in schema:
        for place, word in enumerate(map(str.encode, state.split(" "))):
            for at in range(0, max(1, len(word)), CODE // 8):
                yield Field(f"{path} {place}.{at}", schema, "text", word[at : at + CODE // 8])
    elif isinstance(state, (bool, str)) or state is None:
        yield Field(path, schema, "code", json.dumps(state))
    else:
        yield Field(path, schema, "number", state)


def _series(state: list, items: dict, path: str) -> Iterator[Field]:
    given = [(at, value) for at, value in enumerate(state) if value is not None]
    values = [_finite(Field(f"{path}[{at}]", items, "number", value)) for at, value in given]
    for name, summary in SUMMARY.items():
        yield Field(f"{path}.{name}", items, *(("number", summary(values)) if values else ("absent",)))
    if "null" in _types(items):
        yield Field(f"{path}.gaps", {}, "number", len(state) - len(values))


def features(field: Field, slot: int = 0) -> np.ndarray:
    """What the converter gets for token `slot` of a field, `(FEATURES,)` float32.

    Raises:
        ValueError: a number that is not finite.
    """
    code, numbers, place = np.zeros(CODE), np.zeros(2 * HARMONICS.size * PERIODS.size), np.zeros(3)
    if field.kind == "number":
        value = _finite(field)
        angles = 2 * math.pi * (HARMONICS * np.fmod(value, PERIODS)[:, None] / PERIODS[:, None])
        numbers = np.concatenate([np.cos(angles), np.sin(angles)]).ravel()
        low, high = field.schema.get("minimum", 0), field.schema.get("maximum", 0)
        place = np.array([(value - low) / (high - low) if high > low else 0, value > 0, math.log1p(abs(value)) / 10])
    elif field.kind == "text":
        bits = np.unpackbits(np.frombuffer(field.value, np.uint8))
        code[: bits.size] = 2.0 * bits - 1
    elif field.kind == "code":
        code = _code(field.value)
    name = _code(f"{field.path} {field.schema.get('x-unit', '')}")
    kind, token = np.eye(len(KINDS))[KINDS.index(field.kind)], np.eye(MOST_TOKENS)[slot]
    return np.concatenate([name, kind, token, code, place, numbers]).astype(np.float32)


def _finite(field: Field) -> float:
    try:
        value = float(field.value)
    except (TypeError, OverflowError):  # a gap in a series, or an integer that no float holds
        value = math.inf
    if not math.isfinite(value):
        shown = f"{field.value!s:.40}"
        raise ValueError(f"field {field.path}: {shown} is not a finite number: give {_expected(field.schema)}")
    return value


def _code(text: str) -> np.ndarray:
    """64 values of -1 or 1 that depend on a text."""
    bits = np.unpackbits(np.frombuffer(hashlib.sha256(text.encode()).digest()[: CODE // 8], np.uint8))
    return 2.0 * bits - 1


class FieldsConverter(X2LConverter):
    """Two layers over the features of each token."""

    def __init__(self, row, owner_row):
        super().__init__(row, owner_row)
        self.inner = nn.Linear(row.encoder_hidden_size, WIDTH)
        self.outer = nn.Linear(WIDTH, WIDTH)

    @classmethod
    def output_size(cls, owner_row) -> int:
        """Width C of the tokens."""
        return WIDTH

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None = None, **options: Any) -> ConverterOutput:
        """(N, T, FEATURES), mask (N, T) -> (N, T, 256) and the same mask."""
        inner = nn.functional.gelu(self.inner(hidden))
        return ConverterOutput(embeddings=nn.functional.gelu(self.outer(inner)), mask=mask)


register_converter("fields", FieldsConverter)
STATUS = register_media_kind(
    MediaKind(
        type="status",
        reader_class=DeviceStatusReader,
        row={
            "encoder": None,
            "encoder_hidden_size": FEATURES,
            "converter": "fields",
            "input_name": "status_values",
            "mask_name": "status_mask",
        },
        extensions=(".json",),
        prompts=("Describe the device.",),
        example="state.json",
    )
)

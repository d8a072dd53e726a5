# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""JSON Schemas of clients that cannot be kept to, or are meant to do harm."""

import json

import pytest
from serving_fixtures import NAME, post

from xllm.serving import Limits, answer_schemas
from xllm.serving.answer_schemas import KEPT, AnswerSchemas
from xllm.serving.limits import RequestError


def asked(serving, schema) -> tuple[int, str]:
    """Status and message of an answer that must keep to a schema."""
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": NAME, "messages": messages, "max_tokens": 20, "response_format": wanted}
    status, text = post(serving, "/v1/chat/completions", body)
    return status, text if status == 200 else json.loads(text)["error"]["message"]


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "nothing"}, "response_format.type: not a JSON Schema"),
        ({"not": {}}, "Unimplemented keys"),
        ({"$ref": "#"}, "no text from here on fulfils it"),
        # What must follow is looked for without end.
        ({"type": "object", "properties": {"c": {"$ref": "#"}}, "required": ["c"]}, "Too many items (limit 10000"),
        ({"enum": ["x" * 70_000]}, "a schema of 70014 bytes is longer than 65536"),
        ({"type": "integer", "multipleOf": 999_999_937}, "fuel exhausted"),
    ],
)
def test_what_cannot_be_kept_to_is_said(serving, schema, message):
    status, told = asked(serving, schema)
    assert (status, message in told) == (400, True), told
    assert asked(serving, {"type": "null"})[0] == 200


def patterns(count: int) -> dict:
    """Reading each pattern more takes twice as long, and twice the memory: 18 take 10 s and half a GiB."""
    return {"allOf": [{"type": "string", "pattern": f".*{chr(97 + n)}.{{{n + 3}}}"} for n in range(count)]}


@pytest.mark.parametrize("limits", [Limits(schema_seconds=1), Limits(schema_memory=96 << 20)])
def test_a_schema_that_takes_all_time_and_memory_is_given_up(serving, limits):
    assert AnswerSchemas(limits).matcher({"type": "null"}, serving.service.engine.pieces)
    with pytest.raises(RequestError, match="reading this schema takes more than . s or .* MiB: make it simpler"):
        AnswerSchemas(limits).matcher(patterns(26), None)


def test_a_reader_of_schemas_that_fails_by_itself_is_not_the_clients_fault(serving, monkeypatch):
    monkeypatch.setattr(answer_schemas, "TRIAL", "import no_such_module")
    with pytest.raises(RequestError, match="reads schemas failed .*No module named 'no_such_module'") as error:
        AnswerSchemas(Limits()).matcher({"type": "null"}, serving.service.engine.pieces)
    assert error.value.status == 500


def test_a_schema_is_read_once(serving, monkeypatch):
    schemas, pieces = AnswerSchemas(Limits()), serving.service.engine.pieces
    first = schemas.matcher({"const": 0}, pieces)
    monkeypatch.setattr(schemas, "_try", lambda grammar: None)
    assert schemas.matcher({"const": 0}, pieces) is first
    for number in range(KEPT):
        schemas.matcher({"const": number}, pieces)
    assert schemas.matcher({"const": 0}, pieces) is first
    for number in range(1, KEPT + 1):
        schemas.matcher({"const": number}, pieces)
    assert schemas.matcher({"const": 0}, pieces) is not first

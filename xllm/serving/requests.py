# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Bodies of requests, in the words of OpenAI's API. What is not understood is refused by name; nothing is ignored that
would change the answer."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xllm.serving.limits import Limits, RequestError
from xllm.serving.sampling import Sampling


MOST_NAMES = 10_000  # of an object


class RequestBody(BaseModel):
    """What a client sends; a name that is not understood is an error. Of many errors few are made."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _few(cls, values: Any) -> Any:
        inner = values.values() if isinstance(values, dict) else ()
        if any(isinstance(one, dict) and len(one) > MOST_NAMES for one in (values, *inner)):
            raise ValueError(f"more than {MOST_NAMES} names")
        return values


class JSONSchema(RequestBody):
    """`json_schema` of a response format."""

    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestBody):
    """What an answer must be; the Responses API has the members of `json_schema` beside its type."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    def json_schema_of(self) -> dict[str, Any] | None:
        """The JSON Schema of the answer, or `None` for any text."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "object"}
        found = self.json_schema.schema_ if self.json_schema else self.schema_
        if found is None:
            raise RequestError("response_format: 'json_schema' needs a schema", param="response_format")
        return found


class StreamOptions(RequestBody):
    """`stream_options`."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class _Asked(RequestBody):
    """What all ways of asking share; what only OpenAI's own servers can heed, and no answer depends on, is allowed."""

    model: str
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_none(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if v is not None} if isinstance(values, dict) else values


class ChatBody(_Asked):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int = Field(1, ge=1)
    stop: str | Annotated[list[str], Field(fail_fast=True)] = Field(default_factory=list)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: dict[int, float] = Field(default_factory=dict)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    stream_options: StreamOptions | None = None
    modalities: Annotated[list[Literal["text"]], Field(fail_fast=True)] | None = None

    def forget(self) -> None:
        """What was asked has been read: its media need not stay in memory."""
        self.messages = []

    @property
    def most_tokens(self) -> int | None:
        """Of the answer."""
        return self.max_completion_tokens or self.max_tokens

    def sampling(self) -> dict[str, Any]:
        """The settings that this way of asking has beside the common ones."""
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if len(stop) > 16 or not all(stop):
            raise RequestError("stop: expected up to 16 strings that are not empty", param="stop")
        if any(not -100 <= bias <= 100 for bias in self.logit_bias.values()):
            raise RequestError("logit_bias: expected values from -100 to 100", param="logit_bias")
        return {
            "stop": stop,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": self.logit_bias,
            "top_logprobs": (self.top_logprobs or 0) if self.logprobs else None,
        }

    def conversation(self) -> list[dict[str, Any]]:
        """The messages, for the processor."""
        return [message_of(message, f"messages[{place}]") for place, message in enumerate(self.messages)]

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """JSON Schema of the answer, if it must have one."""
        return self.response_format.json_schema_of() if self.response_format else None


class TextOptions(RequestBody):
    """`text` of the Responses API."""

    format: ResponseFormat | None = None


class ResponsesBody(_Asked):
    """Body of POST /v1/responses."""

    input: str | Annotated[list[dict[str, Any]], Field(fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    text: TextOptions | None = None
    n: Literal[1] = 1

    def forget(self) -> None:
        """What was asked has been read: its media need not stay in memory."""
        self.input = ""

    @property
    def most_tokens(self) -> int | None:
        """Of the answer."""
        return self.max_output_tokens

    def sampling(self) -> dict[str, Any]:
        """None beside the common ones."""
        return {}

    def conversation(self) -> list[dict[str, Any]]:
        """The messages, for the processor."""
        given = [{"role": "user", "content": self.input}] if isinstance(self.input, str) else self.input
        if not given:
            raise RequestError("input: expected a text or messages", param="input")
        own = {"type", "id", "status"}  # of the API's messages
        if any(item.get("type", "message") != "message" for item in given):
            raise RequestError("input: only items of type 'message' are understood here", param="input")
        given = [{name: value for name, value in item.items() if name not in own} for item in given]
        instructions = {"role": "system", "content": self.instructions}
        first = [message_of(instructions, "instructions")] if self.instructions else []
        return first + [message_of(message, f"input[{place}]") for place, message in enumerate(given)]

    @property
    def schema_of_answer(self) -> dict[str, Any] | None:
        """JSON Schema of the answer, if it must have one."""
        return self.text.format.json_schema_of() if self.text and self.text.format else None


def parse_json(content: bytes, most_values: int) -> Any:
    """The JSON of a body; `RequestError` for what is none, has too many values, or holds half a character."""
    try:
        text = content.decode("utf-8-sig")
        if text.count(",") > most_values:
            raise RequestError(f"the body has more than {most_values} values: send media as base64 text", 413)
        body = json.loads(text)
        if "\\u" in text:  # half a character can only be an escape
            json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # of Unicode, too
        raise RequestError(f"the body is no JSON in UTF-8: {error}") from error
    if not isinstance(body, dict):
        raise RequestError("the body is no JSON object")
    return body


def parse_body(kind: type[RequestBody], body: dict[str, Any]) -> Any:
    """A body or form of this kind; the `RequestError` names the first parameter at fault."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise RequestError(f"{where} is not supported by this server", param=where) from error
        raise RequestError(f"{where}: {first['msg']}", param=where or None) from error


LOWEST_TEMPERATURE = 1e-4  # below, the likeliest token is all that is left, and scores overflow
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def message_of(message: dict[str, Any], where: str) -> dict[str, Any]:
    """A message for the processor, its content a list of parts."""
    given = {name: value for name, value in message.items() if value not in (None, [])}
    role, content = given.pop("role", None), given.pop("content", "")
    if not isinstance(role, str) or role not in ROLES:
        raise RequestError(f"{where}.role: expected one of {', '.join(ROLES)}, got {role!r:.80}", param=where)
    if given:
        raise RequestError(f"{where}: {min(given)} is not supported by this server", param=where)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RequestError(f"{where}.content: expected a text or a list of parts", param=where)
    return {"role": ROLES[role], "content": [_chat_part(part) for part in content]}


def _chat_part(part: dict[str, Any]) -> dict[str, Any]:
    """A part of the Responses API (`input_text`, `output_text`, `input_image`) as one of chat completions."""
    kind = part.get("type")
    if kind in ("input_text", "output_text", "refusal"):
        return {"type": "text", "text": part.get("text", part.get("refusal"))}
    if isinstance(kind, str) and kind.startswith("input_") and (name := f"{kind[6:]}_url") in part:
        return {"type": name, name: part[name]}
    return part


def sampling_of(body: Any, limits: Limits, defaults: Any, room: int | None) -> Sampling:
    """How the answers to a request are written.

    Args:
        defaults (`GenerationConfig`): the model's, for what the request leaves open.
        room: tokens that the context has left behind the prompt.
    """
    if room is not None and room < (body.most_tokens or 1):
        asked = f" for the {body.most_tokens} that the answer may have" if body.most_tokens else ""
        message = f"the prompt leaves {max(room, 0)} tokens of the model's context{asked}"
        raise RequestError(message, code="context_length_exceeded", param="messages")
    temperature = body.temperature
    if temperature is None:
        temperature = (defaults.temperature or 1.0) if defaults.do_sample else 0.0
    temperature = temperature if temperature > LOWEST_TEMPERATURE else 0.0
    most = body.most_tokens or min(limits.new_tokens, room or limits.new_tokens)
    top_p = body.top_p if body.top_p is not None else (defaults.top_p if defaults.do_sample else None)
    top_k = body.top_k if body.top_k is not None else (defaults.top_k if defaults.do_sample else None)
    common = {"temperature": temperature, "top_p": top_p or 1.0, "top_k": top_k or 0, "seed": body.seed}
    return Sampling(max_tokens=most, **common, **body.sampling())

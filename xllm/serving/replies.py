# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Answers as OpenAI's API says them: whole, or as events while they are written."""

import json
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from typing import Any

from xllm.serving.limits import RequestError
from xllm.serving.requests import ChatBody, ResponsesBody
from xllm.serving.service import Asking, told_of


class _Written:
    """The choices of an answer so far."""

    def __init__(self, number: int):
        self.texts, self.reasons = [""] * number, ["stop"] * number
        self.logprobs: list[list[dict]] = [[] for _ in range(number)]
        self.tokens = [0] * number

    async def take(self, asking: Asking) -> AsyncIterator[tuple[int, Any]]:
        """The deltas, each of which is counted."""
        async for place, delta in asking:
            self.texts[place] += delta.text
            self.logprobs[place] += delta.logprobs
            self.tokens[place] = delta.tokens
            self.reasons[place] = delta.finish_reason or self.reasons[place]
            yield place, delta


def event(data: dict[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def _warnings(asking: Asking) -> dict[str, list[str]]:
    """A member of ours, where there is something to say: media that were answered although they are doubtful."""
    return {"warnings": [told_of(*doubt) for doubt in asking.doubts]} if asking.doubts else {}


# ---- chat completions -----------------------------------------------------------------------------------------------


def _head(kind: str, body: ChatBody) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": body.model}


def _usage(asking: Asking, written: _Written) -> dict[str, int]:
    said = sum(written.tokens)
    return {
        "prompt_tokens": asking.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": asking.prompt_tokens + said,
    }


def _logprobs(body: ChatBody, found: list[dict]) -> dict | None:
    return {"content": found, "refusal": None} if body.logprobs else None


async def chat_completion(asking: Asking, body: ChatBody) -> dict[str, Any]:
    """The whole answer."""
    written = _Written(len(asking.jobs))
    async for _ in written.take(asking):
        pass
    choices = [
        {
            "index": place,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": _logprobs(body, written.logprobs[place]),
            "finish_reason": written.reasons[place],
        }
        for place, text in enumerate(written.texts)
    ]
    usage = _usage(asking, written)
    return {**_head("chat.completion", body), "choices": choices, "usage": usage, **_warnings(asking)}


async def chat_events(asking: Asking, body: ChatBody) -> AsyncIterator[bytes]:
    """The answer as it is written; an error behind its beginning is an event, too."""
    head, written = {**_head("chat.completion.chunk", body), **_warnings(asking)}, _Written(len(asking.jobs))
    tells_usage = body.stream_options is not None and body.stream_options.include_usage
    rest = {"usage": None} if tells_usage else {}

    def chunk(place: int, delta: dict, logprobs: list[dict], reason: str | None = None) -> bytes:
        choice = {"index": place, "delta": delta, "logprobs": _logprobs(body, logprobs) if logprobs else None}
        return event({**head, "choices": [{**choice, "finish_reason": reason}], **rest})

    try:
        for place in range(len(asking.jobs)):
            yield chunk(place, {"role": "assistant", "content": ""}, [])
        head.pop("warnings", None)  # once is enough
        async for place, delta in written.take(asking):
            if delta.text or delta.logprobs:
                yield chunk(place, {"content": delta.text}, delta.logprobs)
            if delta.finish_reason is not None:
                yield chunk(place, {}, [], delta.finish_reason)
        if tells_usage:
            yield event({**head, "choices": [], "usage": _usage(asking, written)})
    except RequestError as error:
        yield event(error.body())
    finally:
        asking.cancel()
    yield b"data: [DONE]\n\n"


# ---- responses ------------------------------------------------------------------------------------------------------


def response(asking: Asking, body: ResponsesBody) -> Awaitable[dict[str, Any]]:
    """The whole answer."""
    return _Response(asking, body).whole()


def response_events(asking: Asking, body: ResponsesBody) -> AsyncIterator[bytes]:
    """The answer as it is written."""
    return _Response(asking, body).events()


class _Response:
    """One answer of the Responses API."""

    def __init__(self, asking: Asking, body: ResponsesBody):
        self.asking, self.body, self.written = asking, body, _Written(1)
        self.id, self.item_id = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"
        self.created_at = int(time.time())

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self.written.texts[0], "annotations": [], "logprobs": []}

    def _item(self, status: str) -> dict[str, Any]:
        parts = [] if status == "in_progress" else [self._part()]
        return {"id": self.item_id, "type": "message", "role": "assistant", "status": status, "content": parts}

    def _object(self, status: str) -> dict[str, Any]:
        said, asked = self.written.tokens[0], self.asking.prompt_tokens
        usage = {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked + said,
        }
        is_done = status != "in_progress"
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.body.instructions,
            "max_output_tokens": self.body.max_output_tokens,
            "metadata": self.body.metadata or {},
            "model": self.body.model,
            "output": [self._item(status)] if is_done else [],
            "parallel_tool_calls": False,
            "temperature": self.body.temperature,
            "tool_choice": "none",
            "tools": [],
            "top_p": self.body.top_p,
            "usage": usage if is_done else None,
            **_warnings(self.asking),
        }

    @property
    def _status(self) -> str:
        return "incomplete" if self.written.reasons[0] == "length" else "completed"

    async def whole(self) -> dict[str, Any]:
        """The whole answer."""
        async for _ in self.written.take(self.asking):
            pass
        return self._object(self._status)

    async def events(self) -> AsyncIterator[bytes]:
        """The answer as it is written."""
        number = 0

        def told(kind: str, **members: Any) -> bytes:
            nonlocal number
            number += 1
            return event({"type": kind, "sequence_number": number - 1, **members}, kind)

        place = {"item_id": self.item_id, "output_index": 0, "content_index": 0}
        try:
            yield told("response.created", response=self._object("in_progress"))
            yield told("response.in_progress", response=self._object("in_progress"))
            yield told("response.output_item.added", output_index=0, item=self._item("in_progress"))
            yield told("response.content_part.added", **place, part=self._part())
            async for _, delta in self.written.take(self.asking):
                if delta.text:
                    yield told("response.output_text.delta", **place, delta=delta.text, logprobs=[])
            yield told("response.output_text.done", **place, text=self.written.texts[0], logprobs=[])
            yield told("response.content_part.done", **place, part=self._part())
            yield told("response.output_item.done", output_index=0, item=self._item(self._status))
            yield told(f"response.{self._status}", response=self._object(self._status))
        except RequestError as error:
            yield told("error", **{k: v for k, v in error.body()["error"].items() if k != "type"})
        finally:
            self.asking.cancel()

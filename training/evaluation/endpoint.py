# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A model behind a server that speaks OpenAI's chat completions (OpenAI, vLLM, TGI, llama.cpp, `xllm serve`).

By the standard library: huggingface_hub's client asks nobody while HF_HUB_OFFLINE is set, not even a server in the
same room, and sends the user's token where no key is given; the openai package is an extra.
"""

import http.client
import json
import queue
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar


WAITS = (1.0, 60.0)  # seconds before the first repetition, doubled before each further one; at most
MOST_FAILURES = 10  # in succession: then the rest is not asked
_LATER = frozenset((408, 409, 425, 429))  # and all from 500: the same request may go well later
_NEVER = frozenset((401, 403, 404))  # no request will go well: the key, or the model, is unknown
_BROKEN = (OSError, http.client.HTTPException)  # nobody listens, nobody answers in time, an answer breaks off


class EndpointError(ValueError):
    """A request that was not answered."""


class EndpointClosedError(EndpointError):
    """An endpoint that will answer no request."""


class _MalformedError(ValueError):
    """A reply that is none."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Another place would get the key."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


@dataclass(frozen=True)
class Reply:
    """What a model wrote; `is_cut`: it was not allowed to go on."""

    text: str
    is_cut: bool = False


@dataclass
class Endpoint:
    """Asks a model; safe to be called by several threads.

    What may go well later is asked again, `retries` times, after `WAITS` or what the server asks for: 408, 409, 425,
    429, 5xx, time-outs, broken connections, and replies that are no JSON or hold no text.

    Args:
        url: "http://host:8000/v1", with or without "/chat/completions".
        model: its name there. key: sent as a bearer token.
        timeout: seconds that one request may take.
        options: of the request, "temperature" say; `None`: is not sent.
    """

    url: str
    model: str
    key: str | None = None
    timeout: float = 120.0
    retries: int = 5
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise EndpointError(
                f"--endpoint {self.url!r}: expected the URL of a server, e.g. http://localhost:8000/v1"
            )
        base = self.url.rstrip("/")
        self.place = base if base.endswith("/chat/completions") else f"{base}/chat/completions"
        self._opener = urllib.request.build_opener(_NoRedirect)

    def __call__(self, messages: list[dict]) -> Reply:
        """The model's reply to a conversation.

        Raises:
            EndpointError: there is none, after all repetitions. EndpointClosedError: there will never be one.
        """
        sent = {"model": self.model, "messages": messages, **self.options}
        body = json.dumps({name: value for name, value in sent.items() if value is not None}).encode()
        for attempt in range(self.retries + 1):
            asked_for = None
            try:
                return _reply(self._post(body))
            except urllib.error.HTTPError as error:
                reason, asked_for = f"{error.code} {_reason(error)}", error.headers.get("Retry-After")
                if error.code in _NEVER:
                    raise EndpointClosedError(f"{self.place}: {reason}") from error
                if error.code not in _LATER and error.code < 500:
                    raise EndpointError(f"{self.place}: {reason}") from error
            except _BROKEN as error:
                reason = f"{getattr(error, 'reason', None) or error or type(error).__name__}"
            except _MalformedError as error:
                reason = str(error)
            if attempt < self.retries:
                time.sleep(_wait(attempt, asked_for))
        raise EndpointError(f"{self.place}: {reason} ({self.retries + 1} times)")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "xllm"}
        headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
        request = urllib.request.Request(self.place, body, headers)
        until = time.monotonic() + self.timeout
        with self._opener.open(request, timeout=self.timeout) as response:
            found = []
            while chunk := response.read1(1 << 16):  # a server that sends a byte now and then takes no longer either
                found.append(chunk)
                if time.monotonic() > until:
                    raise TimeoutError(f"timed out after {self.timeout:g} s")
        return b"".join(found)


def _reason(error: urllib.error.HTTPError) -> str:
    """What the server says, in one line."""
    try:
        text = error.read(2000).decode(errors="replace")
    except _BROKEN:
        text = ""
    return " ".join(text.split())[:200] or str(error.reason)


def _reply(content: bytes) -> Reply:
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
    except ValueError as error:
        raise _MalformedError(f"the reply is no JSON: {content[:60]!r}") from error
    except (KeyError, IndexError, TypeError) as error:
        raise _MalformedError(f"the reply holds no message: {content[:120]!r}") from error
    if not isinstance(text, str) or not text.strip():
        raise _MalformedError(f"the reply holds no text: {content[:120]!r}")
    return Reply(text, choice.get("finish_reason") == "length")


def _wait(attempt: int, asked_for: str | None) -> float:
    first, most = WAITS
    if asked_for is not None and asked_for.strip().isdecimal():  # a date is not read
        return min(most, float(asked_for))
    return min(most, first * 2**attempt) * random.uniform(0.5, 1.0)


T = TypeVar("T")


def ask_all(
    items: Sequence[T], ask: Callable[[T], Reply], concurrency: int
) -> Iterator[tuple[T, Reply | EndpointError]]:
    """Each item with its reply, or why there is none, in the order in which they come. At most `concurrency` are
    asked, or answered and not yet dealt with by the caller, who thus loses no more if it dies.

    Raises:
        EndpointError: no further one will be answered; what was answered has been given before.
    """
    waiting: queue.SimpleQueue = queue.SimpleQueue()
    done: queue.SimpleQueue = queue.SimpleQueue()
    room = threading.Semaphore(concurrency)
    for item in items:
        waiting.put(item)

    def work() -> None:
        while True:
            room.acquire()
            try:
                item = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((item, ask(item)))
            except BaseException as error:  # noqa: BLE001  # is raised where the replies are read
                done.put((item, error))

    workers = min(concurrency, len(items))
    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()  # an interrupted command waits for none
    failures = 0
    try:
        for _ in items:
            item, found = done.get()
            failures = failures + 1 if isinstance(found, EndpointError) else 0
            is_over = failures == MOST_FAILURES or isinstance(found, EndpointClosedError)
            if is_over or not isinstance(found, Reply | EndpointError):
                raise found
            yield item, found
            room.release()
    finally:
        with suppress(queue.Empty):
            while True:
                waiting.get_nowait()
        room.release(workers or 1)


__all__ = ["Endpoint", "EndpointClosedError", "EndpointError", "Reply", "ask_all"]

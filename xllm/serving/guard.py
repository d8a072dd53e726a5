# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Who may speak to the server: what is checked of each request before anything of its body is read.

A page of some other site, open in a browser on this machine, can send requests here; its `Origin` gives it away, and
where its own name was made to mean this machine (DNS rebinding), so does `Host`.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from xllm.serving.limits import RequestError


THROWN_AWAY, SECONDS = 1 << 30, 10.0  # of the body of a request that is refused


class Guard:
    """ASGI middleware.

    Args:
        api_key: what `Authorization: Bearer` must hold for everything under /v1 and /metrics.
        hosts: names that the server may be called by, beside localhost and bare addresses.
        origins: sites whose pages may send requests.
        body_bytes: of a request.
    """

    challenge = b"Bearer"  # how a client without a key is asked for it

    def __init__(self, app: Any, body_bytes: int, api_key: str | None = None, hosts: Iterable[str] = (), origins=()):
        self.app, self.body_bytes = app, body_bytes
        self.api_key = api_key.encode() if api_key else None
        self.hosts = {"localhost", *(host.lower() for host in hosts)}
        self.origins = frozenset(origins)

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        try:
            self._check(scope, headers)
        except RequestError as error:
            await refuse(error, send, self.challenge, receive)
            return
        taken = 0

        async def limited() -> dict:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.body_bytes:
                raise self._too_long()
            return message

        await self.app(scope, limited, send)

    def _check(self, scope: dict, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._is_known(host):
            raise RequestError(f"the host {host!r:.200} is not known here (--allow-host NAME)", 403)
        origin = headers.get(b"origin")
        if origin is not None and not self._is_allowed(origin.decode("latin-1"), host):
            raise RequestError("pages of this origin may not send requests (--allow-origin ORIGIN)", 403)
        is_open = scope["path"] == "/health" or scope["method"] == "OPTIONS"
        if self.api_key is not None and not is_open and not self._is_admitted(headers.get(b"authorization", b"")):
            raise RequestError("the API key is missing or wrong", 401, code="invalid_api_key")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.body_bytes:
            raise self._too_long()

    def _is_admitted(self, given: bytes) -> bool:
        kind, _, key = given.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(key.strip(), self.api_key or b"")

    def _is_known(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return True

    def _is_allowed(self, origin: str, host: str) -> bool:
        own = origin in (f"http://{host}", f"https://{host}")
        return own or origin in self.origins or "*" in self.origins

    def _too_long(self) -> RequestError:
        return RequestError(f"the body is longer than {self.body_bytes} bytes", 413)


async def refuse(error: RequestError, send: Any, challenge: bytes = b"", receive: Any = None) -> None:
    """Answer a request with an error. Most clients read it when all is sent; that is thrown away."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    # Of a body that is longer still, or slow, the rest is not read: the connection ends here.
    headers.append((b"connection", b"close"))
    headers += [(b"www-authenticate", challenge)] if error.status == 401 else []
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    left = THROWN_AWAY
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(SECONDS):
            while receive is not None and left > 0 and (message := await receive()).get("more_body"):
                left -= len(message["body"])
    await send({"type": "http.response.body"})

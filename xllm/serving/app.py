# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The routes of the server: OpenAI's chat completions, responses, transcriptions and models; health and metrics."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from xllm.serving import replies
from xllm.serving.guard import Guard
from xllm.serving.limits import RequestError
from xllm.serving.requests import ChatBody, ResponsesBody, parse_body, parse_json
from xllm.serving.service import Asking, Service
from xllm.serving.transcriptions import TranscriptionForm, reply, transcribe


def create_app(
    service: Service, api_key: str | None = None, hosts: Iterable[str] = (), origins: Iterable[str] = ()
) -> FastAPI:
    """The server as an ASGI application; it closes the service when it is shut down."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    routes = _Routes(service)
    app.post("/v1/chat/completions")(routes.chat)
    app.post("/v1/responses")(routes.responses)
    app.post("/v1/audio/transcriptions")(routes.transcriptions)
    app.get("/v1/models")(routes.models)
    app.get("/v1/models/{name:path}")(routes.model)
    app.get("/health")(routes.health)
    app.get("/metrics")(routes.metrics)
    app.add_exception_handler(RequestError, _told)
    app.add_exception_handler(HTTPException, _told_http)
    app.add_exception_handler(Exception, _told_any)
    app.add_middleware(_Counted, counts=routes.statuses)
    if origins:
        app.add_middleware(CORSMiddleware, allow_origins=[*origins], allow_methods=["*"], allow_headers=["*"])
    most = service.limits.body_bytes
    app.add_middleware(Guard, body_bytes=most, api_key=api_key, hosts=[*hosts], origins=[*origins])
    return app


async def _told(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.status in (429, 503) else None
    return JSONResponse(error.body(), error.status, headers)


async def _told_http(request: Request, error: Exception) -> JSONResponse:
    """Unknown routes and methods."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(RequestError(message, error.status_code).body(), error.status_code, error.headers)


async def _told_any(_request: Request, error: Exception) -> JSONResponse:
    """A fault of the server, whose traceback is in its log and is nobody else's business."""
    return JSONResponse(RequestError(f"the server failed: {type(error).__name__}", 500).body(), 500)


class _Counted:
    """ASGI middleware that counts the replies by status."""

    def __init__(self, app: Any, counts: Counter):
        self.app, self.counts = app, counts

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        async def counted(message: dict) -> None:
            if message["type"] == "http.response.start":
                self.counts[message["status"]] += 1
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)


class _Routes:
    def __init__(self, service: Service):
        self.service, self.created = service, int(time.time())
        self.statuses: Counter[int] = Counter()

    async def chat(self, request: Request) -> Response:
        body = parse_body(ChatBody, parse_json(await request.body()))
        return await self._answer(
            request,
            body,
            lambda asking: replies.chat_events(asking, body),
            lambda asking: replies.chat_completion(asking, body),
        )

    async def responses(self, request: Request) -> Response:
        body = parse_body(ResponsesBody, parse_json(await request.body()))
        return await self._answer(
            request,
            body,
            lambda asking: replies.Response(asking, body).events(),
            lambda asking: replies.Response(asking, body).whole(),
        )

    async def _answer(
        self,
        request: Request,
        body: Any,
        events: Callable[[Asking], AsyncIterator[bytes]],
        whole: Callable[[Asking], Awaitable[dict]],
    ) -> Response:
        asking = await self.service.ask(body)
        if body.stream:
            headers = {"Cache-Control": "no-store"}
            return StreamingResponse(events(asking), media_type="text/event-stream", headers=headers)
        try:
            return JSONResponse(await _while_connected(request, whole(asking)))
        finally:
            asking.cancel()

    async def transcriptions(self, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=16) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("file: expected a recording as multipart/form-data", param="file")
            recording = await file.read()
            fields: dict[str, Any] = {name: value for name, value in form.items() if name != "file"}
            if times := [*form.getlist("timestamp_granularities[]"), *form.getlist("timestamp_granularities")]:
                fields.pop("timestamp_granularities[]", None)
                fields["timestamp_granularities"] = times
        try:
            parsed = TranscriptionForm.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise RequestError(f"{where}: {first['msg']}", param=where) from error
        parsed.check()
        self.service.check_model(parsed.model)
        segments = await _while_connected(request, transcribe(self.service, recording, parsed))
        answer = reply(segments, parsed)
        return PlainTextResponse(answer) if isinstance(answer, str) else JSONResponse(answer)

    def _model(self) -> dict[str, Any]:
        modalities = sorted(self.service.model.config.modalities)
        card = {"id": self.service.name, "object": "model", "created": self.created, "owned_by": "xllm"}
        return {**card, "modalities": modalities, "context_length": self.service.context}

    async def models(self) -> dict[str, Any]:
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> dict[str, Any]:
        self.service.check_model(name)
        return self._model()

    async def health(self) -> JSONResponse:
        engine = self.service.engine
        return JSONResponse({"status": "ok", "running": engine.running, "waiting": engine.waiting})

    async def metrics(self) -> PlainTextResponse:
        engine = self.service.engine
        values: list[tuple[str, str, Any]] = [
            *(("requests_total", f'{{status="{status}"}}', n) for status, n in sorted(self.statuses.items())),
            *(
                (f"{name}_total", "", engine.counts[name])
                for name in ("prompt_tokens", "tokens", "refused", "timed_out")
            ),
            ("media_cache_hits_total", "", engine.features.hits),
            ("media_cache_misses_total", "", engine.features.misses),
            ("media_cache_bytes", "", engine.features.held),
            ("answers_running", "", engine.running),
            ("answers_waiting", "", engine.waiting),
        ]
        lines, named = [], set()
        for name, labels, value in values:
            if name not in named:
                named.add(name)
                lines.append(f"# TYPE xllm_{name} {'counter' if name.endswith('_total') else 'gauge'}")
            lines.append(f"xllm_{name}{labels} {value}")
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


async def _while_connected(request: Request, work: Awaitable[Any]) -> Any:
    """The result of work that ends when the client goes away."""
    task = asyncio.ensure_future(work)

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watcher = asyncio.create_task(gone())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError("the client closed the connection", 499)
        return task.result()
    finally:
        watcher.cancel()
        task.cancel()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The routes of the server: OpenAI's chat completions, responses, transcriptions and models; health and metrics."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException

from xllm.serving import replies
from xllm.serving.guard import Guard
from xllm.serving.limits import RequestError
from xllm.serving.requests import ChatBody, ResponsesBody, parse_body, parse_json
from xllm.serving.service import Asking, Service
from xllm.serving.transcriptions import TranscriptionForm, reply, transcribe


logger = logging.getLogger(__name__)


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
    app.api_route("/health", methods=["GET", "HEAD"])(routes.health)
    app.get("/metrics")(routes.metrics)
    app.add_exception_handler(RequestError, _told)
    app.add_exception_handler(HTTPException, _told_http)
    app.add_exception_handler(Exception, _told_any)
    app.add_middleware(_Counted, counts=routes.statuses)
    most = service.limits.body_bytes
    app.add_middleware(Guard, body_bytes=most, api_key=api_key, hosts=[*hosts], origins=[*origins])
    if origins:  # around the guard: their pages may read why it refuses
        app.add_middleware(CORSMiddleware, allow_origins=[*origins], allow_methods=["*"], allow_headers=["*"])
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
    """ASGI middleware that counts the replies by status, and answers for a fault of the server.

    Starlette raises a fault again after its own answer, and uvicorn then closes the connection under the client's next
    request.
    """

    def __init__(self, app: Any, counts: Counter):
        self.app, self.counts = app, counts

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        has_begun = False

        async def counted(message: MutableMapping[str, Any]) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                self.counts[message["status"]] += 1
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception as error:
            if has_begun:
                raise
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await (await _told_any(Request(scope), error))(scope, receive, counted)


class _Routes:
    def __init__(self, service: Service):
        self.service, self.created = service, int(time.time())
        self.statuses: Counter[int] = Counter()
        self._bodies = asyncio.Semaphore(service.limits.bodies)
        self._recordings = asyncio.Semaphore(service.limits.workers)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatBody, replies.chat_events, replies.chat_completion)

    async def responses(self, request: Request) -> Response:
        return await self._answer(request, ResponsesBody, replies.response_events, replies.response)

    async def _answer(
        self,
        request: Request,
        kind: type[ChatBody] | type[ResponsesBody],
        events: Callable[[Asking, Any], AsyncIterator[bytes]],
        whole: Callable[[Asking, Any], Awaitable[dict]],
    ) -> Response:
        async with self._bodies:
            body = parse_body(kind, parse_json(await self._in_time(request.body()), self.service.limits.body_values))
            asking = await self.service.ask(body, body.stream)
            body.forget()
        if body.stream:
            headers = {"Cache-Control": "no-store"}
            # A client may be gone before its stream begins, which then has nothing to end.
            gone = BackgroundTask(asking.cancel)
            stream = events(asking, body)
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers, background=gone)
        try:
            return JSONResponse(await _while_connected(request, whole(asking, body)))
        finally:
            asking.cancel()

    async def _in_time(self, reading: Awaitable[Any]) -> Any:
        try:
            return await asyncio.wait_for(reading, self.service.limits.body_seconds)
        except TimeoutError as error:
            raise RequestError("the body took too long to come", 408) from error

    async def transcriptions(self, request: Request) -> Response:
        async with self._recordings:
            return await self._transcription(request)

    async def _transcription(self, request: Request) -> Response:
        form = await self._in_time(_form(request))
        try:
            file = form.get("file")
            if not isinstance(file, UploadFile):
                raise RequestError("file: expected a recording as multipart/form-data", param="file")
            recording = await file.read()
        finally:
            await form.close()
        fields: dict[str, Any] = {name: value for name, value in form.items() if name != "file"}
        if times := [*form.getlist("timestamp_granularities[]"), *form.getlist("timestamp_granularities")]:
            fields.pop("timestamp_granularities[]", None)
            fields["timestamp_granularities"] = times
        parsed = parse_body(TranscriptionForm, fields)
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


async def _form(request: Request) -> FormData:
    return await request.form(max_files=1, max_fields=16)


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

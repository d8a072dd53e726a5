# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Gradio pages, one per language, as an ASGI application behind a guard.

Gradio has many more routes than a page needs, some of which fetch addresses or run code in its other modes: a request
for anything else is answered 404 before Gradio sees it. The policy of the page lets a browser load nothing from
elsewhere and run nothing that is not part of it.
"""

import base64
import contextlib
import hmac
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import gradio
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse

from xllm.page.texts import all_texts, language_of
from xllm.serving.guard import Guard, refuse
from xllm.serving.limits import Limits, RequestError


EVENTS = ("/queue/join", "/run/predict")  # where clicks go
EVENT_BYTES = 1 << 20  # of what a click sends: texts, names of files
FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "sans-serif")
# Gradio cuts films in the browser, by a script that it makes there.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
TRANSLATE = """
function translate(said) {
  const patterns = Object.entries(said).map(([pattern, text]) => [new RegExp(pattern), text]);
  const look = () => document.querySelectorAll(".toast-body, #camera button").forEach(part => {
    const nodes = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
    while (nodes.nextNode()) for (const [pattern, text] of patterns) {
      const old = nodes.currentNode.data.trim();
      if (pattern.test(old)) nodes.currentNode.data = old.replace(pattern, text);
    }
  });
  new MutationObserver(look).observe(document, {childList: true, subtree: true, characterData: true});
}"""
_NEEDED = re.compile(
    r"/(?:[a-z]{2}/?)?"
    r"|/[a-z]{2}/(?:assets/.*|static/.*|theme\.css|config/?|favicon\.ico|manifest\.json)"
    r"|/[a-z]{2}/gradio_api/(?:file=.*|queue/(?:join|data)/?|run/predict/?|upload/?|upload_progress/?|heartbeat/[^/]*|cancel/?|reset/?"
    r"|startup-events|theme\.css|info/?)"
    r"|/favicon\.ico"
)


def create_page_app(
    build: Callable[[str], gradio.Blocks],
    folder: Path,
    password: str | None = None,
    hosts: Iterable[str] = (),
    origins: Iterable[str] = (),
    limits: Limits | None = None,
    close: Callable[[], None] | None = None,
) -> FastAPI:
    """The pages as an ASGI application.

    Args:
        build: from a language of `texts.yaml` to its page.
        folder: what is uploaded is written here; Gradio must have been told so (GRADIO_TEMP_DIR) before.
        password: what a browser asks its user for; any name goes with it.
        hosts, origins: as in `xllm.serving.guard.Guard`.
        close: called when the application is shut down.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if close is not None:
            close()

    limits = limits or Limits()
    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/")
    async def choose(request: Request) -> RedirectResponse:
        """The page in the browser's language."""
        return RedirectResponse(f"/{language_of(request.headers.get('accept-language', ''))}/")

    @app.get("/favicon.ico")
    async def icon() -> RedirectResponse:
        """What browsers ask for unasked."""
        return RedirectResponse(f"/{next(iter(all_texts()))}/favicon.ico")

    theme = gradio.themes.Default(primary_hue="blue", font=FONTS, font_mono=("ui-monospace", "monospace"))
    css = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.css")))
    for language in all_texts():
        blocks = build(language)
        # Without it Gradio takes a path that a client sends for one of its own.
        blocks.has_launched = True
        gradio.mount_gradio_app(
            app, blocks, f"/{language}", theme=theme, css=css, footer_links=[], run_history=False, ssr_mode=False,
            pwa=False, mcp_server=False, enable_monitoring=False, show_error=False, max_file_size=limits.body_bytes,
            head=_head(language),
        )  # fmt: skip
    most = limits.body_bytes
    app.add_middleware(UploadsAlone, folder=folder)
    app.add_middleware(PageGuard, body_bytes=most, folder=folder, api_key=password, hosts=[*hosts], origins=[*origins])
    return app


def _head(language: str) -> str:
    """A script that tells Gradio's the language of the page, and translates what is English in them whatever it is:
    these texts have no keys that `gradio.I18n` could fill."""
    said = json.dumps(all_texts("gradio_texts.yaml")[language])
    own = f'Object.defineProperty(navigator, "language", {{value: "{language}"}});'
    return f"<script>{own}{TRANSLATE}translate({said})</script>"


class PageGuard(Guard):
    """The server's guard for browsers: they are asked for a password, and shown nothing but the page.

    Args:
        folder: of uploads. uploads_bytes: of all files in it.
    """

    challenge = b'Basic realm="xllm", charset="UTF-8"'

    def __init__(
        self, app: Any, body_bytes: int, folder: Path, api_key: str | None = None, hosts: Iterable[str] = (),
        origins: Iterable[str] = (), uploads_bytes: int = 4 << 30,
    ):  # fmt: skip
        super().__init__(app, body_bytes, api_key, hosts, origins)
        self.folder, self.uploads_bytes = folder, uploads_bytes

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass the request on, or refuse it; what is answered carries the policy."""

        async def guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        await super().__call__(scope, receive, guarded if scope["type"] == "http" else send)

    def _check(self, scope: dict, headers: dict[bytes, bytes]) -> None:
        super()._check(scope, headers)
        path = scope["path"]
        if not _NEEDED.fullmatch(path) or not self._is_uploaded(path):
            raise RequestError(f"{path!r:.200} is no part of this page", 404)
        if path.rstrip("/").endswith("/upload"):
            length = int(headers.get(b"content-length", b"0"))
            if length + _bytes_in(self.folder) > self.uploads_bytes:
                raise RequestError("too much has been uploaded; try again later", 507)

    def _is_uploaded(self, path: str) -> bool:
        """Whether a file that is asked for lies in the folder; what asks for no file may pass. Gradio would also fetch
        addresses."""
        _, is_file, name = path.partition("/gradio_api/file=")
        return not is_file or is_inside(name, self.folder)

    def _is_admitted(self, given: bytes) -> bool:
        kind, _, encoded = given.partition(b" ")
        try:
            _, _, password = base64.b64decode(encoded, validate=True).partition(b":")
        except ValueError:
            return False
        return kind.lower() == b"basic" and hmac.compare_digest(password, self.api_key or b"")


class UploadsAlone:
    """ASGI middleware that refuses events which name other files than those in a folder, or addresses: Gradio would
    fetch these, and for some ways of starting it, copy those."""

    def __init__(self, app: Any, folder: Path):
        self.app, self.folder = app, folder

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        """Pass an event on, or refuse it."""
        if scope["type"] != "http" or not scope["path"].rstrip("/").endswith(EVENTS):
            await self.app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
            if len(body) > EVENT_BYTES:
                await refuse(RequestError(f"an event is longer than {EVENT_BYTES} bytes", 413), send)
                return
        try:
            named = [*_places(json.loads(body))]
        except (ValueError, RecursionError):
            await refuse(RequestError("the body is no JSON"), send)
            return
        if not all(isinstance(place, str) and is_inside(place, self.folder) for place in named):
            await refuse(RequestError("a file was not uploaded here", 403), send)
            return
        sent = False

        async def again() -> dict:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, send)


def is_inside(name: str, folder: Path) -> bool:
    """Whether a path, with all its links followed, leads into a folder."""
    return "\0" not in name and os.path.realpath(name).startswith(os.path.realpath(folder) + os.sep)


def _places(value: Any) -> Iterator[Any]:
    """All that is called a path in a JSON value."""
    if isinstance(value, dict):
        yield from (inner for name, inner in value.items() if name == "path" and inner is not None)
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _places(inner)


def _bytes_in(folder: Path) -> int:
    found = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # it is gone by now
                found += os.path.getsize(os.path.join(place, name))
    return found


__all__ = ["PageGuard", "UploadsAlone", "create_page_app"]

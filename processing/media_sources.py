# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Where a medium comes from: a path, an http(s), file or data URL, bytes, base64 text or a `datasets` struct, opened
as a byte stream.

`open_media` turns all of them into one seekable binary file, and `MediaError` is the only exception that a medium
which cannot be read may cause. Nothing is opened by name further down: the decoders get the stream, so a file cannot
make them open another one. Deviation from the authors' code: theirs reads local absolute paths only.
"""

import base64
import binascii
import contextlib
import io
import os
import re
import socket
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, BinaryIO, TypeVar, cast

from transformers.utils import logging


logger = logging.get_logger(__name__)
ItemT = TypeVar("ItemT")

MAX_BYTES = 1 << 30  # of memory that reading one medium may take, whatever its kind, with the copies made on the way
DECODE_SECONDS = 300  # for the frames of one film, or one sound as a whole
MAX_DOWNLOAD_BYTES = 1 << 30
DOWNLOAD_SECONDS = 300  # for a whole file, from the connection to its last byte; one read may wait SOCKET_SECONDS
SOCKET_SECONDS = 30
REDIRECTS = 5
_IN_MEMORY = 1 << 25  # bytes; a longer download lies in a temporary file

_memory: ContextVar[int | None] = ContextVar("memory", default=None)
_kept: ContextVar["list[MediaError] | None"] = ContextVar("kept", default=None)
_URL = re.compile(r"^([a-zA-Z][a-zA-Z0-9+.-]+)://")
_BASE64 = re.compile(r"^[A-Za-z0-9+/_\-\s]+={0,2}\s*$")
_MIN_BASE64 = 64  # a shorter string is taken for a file name


class MediaError(ValueError):
    """A medium that cannot be used: its file, URL or short description, and the reason, in one line."""

    def __init__(self, source: str, reason: str | None = None):
        # Both stay in `args`, so that the error survives pickling between data loader workers.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        text = self.source if self.reason is None else f"{self.source}: {self.reason}"
        return " ".join(text.split())


@contextlib.contextmanager
def media_errors(name: str, what: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turns errors of these `kinds` into a `MediaError` that says `what` is wrong, with the error's own short text."""
    try:
        yield
    except MediaError:
        raise
    except kinds as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MediaError(name, f"{what} ({reason})") from error


@contextlib.contextmanager
def memory_limit(size: int) -> Iterator[None]:
    """Within it, in this thread, one medium may take so many bytes of memory instead of `MAX_BYTES`."""
    token = _memory.set(size)
    try:
        yield
    finally:
        _memory.reset(token)


def check_memory(name: str, size: int, what: str) -> None:
    """`MediaError` where `what` of a medium ("5 frames of 640 x 480 pixels") takes more than `MAX_BYTES`, or the
    `memory_limit`."""
    most = _memory.get() or MAX_BYTES
    if size > most:
        limit = most / 2**30
        raise MediaError(name, f"{what} take {size / 2**30:.1f} GiB of memory, more than the limit of {limit:g} GiB")


def warn_of(name: str, reason: str) -> None:
    """Says once, in one line, what is doubtful about a medium that is used all the same."""
    warning, kept = MediaError(name, reason), _kept.get()
    if kept is None:
        logger.warning_once(str(warning))
    else:
        kept.append(warning)


@contextlib.contextmanager
def kept_warnings() -> "Iterator[list[MediaError]]":
    """Within it, in this thread, what is doubtful about media comes into the list instead of the log."""
    kept: list[MediaError] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def in_time(items: Iterable[ItemT], name: str) -> Iterator[ItemT]:
    """The same items; a `MediaError` once making them has taken longer than `DECODE_SECONDS`."""
    left, iterator = float(DECODE_SECONDS), iter(items)
    while True:
        start = time.monotonic()
        try:
            item = next(iterator)
        except StopIteration:
            return
        left -= time.monotonic() - start
        if left < 0:
            raise MediaError(name, f"decoding it takes longer than {DECODE_SECONDS} s: make it smaller or shorter")
        yield item


def describe_source(source: Any) -> str:
    """A short name of a medium for error messages: the path or URL, or the kind and size of what is in memory."""
    if isinstance(source, dict):
        for key in ("path", "url"):
            if source.get(key) is not None:
                return describe_source(source[key])
        return f"<dict with {', '.join(sorted(map(str, source)))}>"
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<{len(source)} bytes in memory>"
    if isinstance(source, (str, os.PathLike)):
        text = os.fspath(source)
        return text if len(text) <= 200 else f"{text[:60]}... ({len(text)} characters)"
    shape = getattr(source, "shape", None)
    return f"<{type(source).__name__}>" if shape is None else f"<{type(source).__name__} of shape {tuple(shape)}>"


def _decode_base64(text: str, name: str) -> bytes:
    """Bytes of standard or URL-safe base64 text (the authors' annotation files use the latter)."""
    compact = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(name, "not valid base64") from error


def _read_data_url(url: str) -> bytes:
    name = describe_source(url)
    header, comma, payload = url.partition(",")
    if not comma:
        raise MediaError(name, "a data: URL needs a comma between its header and its data")
    if header.endswith(";base64"):
        return _decode_base64(urllib.parse.unquote(payload), name)
    return urllib.parse.unquote_to_bytes(payload)


class _Watch:
    """The connections of one download: where each leads, and their end when the time is over, since each read may wait
    and a server may trickle."""

    def __init__(self, seconds: float, address_of: Callable[[str, int], str] | None):
        self.is_over, self._lock, self._address_of = False, threading.Lock(), address_of
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> urllib.request.OpenerDirector:
        """What opens http(s) URLs, and nothing else, wherever they are redirected to."""
        self._timer.start()
        opener = urllib.request.OpenerDirector()
        for handler in (
            _WatchedHandler(self), _Redirects(), urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(),
        ):  # fmt: skip
            opener.add_handler(handler)
        if self._address_of is None:  # a proxy would look names up by itself
            opener.add_handler(urllib.request.ProxyHandler())
        return opener

    def __exit__(self, *error: object) -> None:
        self._timer.cancel()

    def connect(self, place: tuple[str, int], *args: Any) -> socket.socket:
        """`socket.create_connection`, to the address that `address_of` gives."""
        host, port = place
        address = host if self._address_of is None else self._address_of(host, port)
        return self.add(socket.create_connection((address, port), *args))

    def add(self, sock: socket.socket) -> socket.socket:
        """One more socket that is to last no longer."""
        with self._lock:
            self._sockets.append(sock)
        if self.is_over:
            self._end()
        return sock

    def _end(self) -> None:
        with self._lock:
            self.is_over = True
            for each in self._sockets:
                with contextlib.suppress(OSError):
                    socket.socket.shutdown(each, socket.SHUT_RDWR)  # that of TLS forgets it: a handshake then crashes


class _Connection(HTTPConnection):
    """One that a `_Watch` makes."""

    def __init__(self, host: str, *, watch: _Watch, **options: Any):
        super().__init__(host, **options)
        self.watch, self._create_connection = watch, watch.connect


class _SecureConnection(_Connection, HTTPSConnection):
    """One with TLS in the name of the host, whose handshake is watched, too."""

    def connect(self) -> None:
        """To the host, or through a proxy's tunnel."""
        HTTPConnection.connect(self)
        name = self._tunnel_host or self.host  # type: ignore[attr-defined]
        self.sock = self._context.wrap_socket(  # type: ignore[attr-defined]
            self.sock, server_hostname=name, do_handshake_on_connect=False
        )
        self.watch.add(self.sock)
        self.sock.do_handshake()


class _WatchedHandler(urllib.request.HTTPSHandler):
    """Opens http(s) URLs by connections that a `_Watch` knows."""

    http_request = urllib.request.AbstractHTTPHandler.do_request_

    def __init__(self, watch: _Watch):
        super().__init__()
        self.watch = watch

    def http_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(lambda host, **options: _Connection(host, watch=self.watch, **options), request)

    def https_open(self, request: urllib.request.Request) -> Any:
        return self.do_open(lambda host, **options: _SecureConnection(host, watch=self.watch, **options), request)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A few of them, to http(s) only."""

    max_redirections = max_repeats = REDIRECTS

    def redirect_request(self, request: Any, reply: Any, code: int, message: str, headers: Any, url: str) -> Any:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(url, code, message, headers, reply)
        return super().redirect_request(request, reply, code, message, headers, url)


def download(
    url: str,
    most_bytes: int | None = None,
    seconds: float | None = None,
    address_of: Callable[[str, int], str] | None = None,
) -> BinaryIO:
    """Fetches an http(s) URL as a file at its start, which may be a temporary one that its end removes.

    Args:
        most_bytes, seconds: of all of it; default `MAX_DOWNLOAD_BYTES` and `DOWNLOAD_SECONDS`.
        address_of: takes a host and a port, and gives the one address that is connected to: for the URL, and for each
            redirect. What it raises ends the download. With it no proxy is asked, and errors tell no more than that
            there was one: whoever gave the URL may be a stranger.

    Raises:
        MediaError: it cannot be fetched as a whole within the limits.
    """
    name, most = describe_source(url), most_bytes or MAX_DOWNLOAD_BYTES
    seconds = seconds or DOWNLOAD_SECONDS
    watch = _Watch(seconds, address_of)
    content = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115, it is what is returned
    try:
        with watch as opener:
            request = urllib.request.Request(_quoted(url), headers={"User-Agent": "xllm-transformers"})
            with opener.open(request, timeout=min(seconds + 1, SOCKET_SECONDS)) as response:  # the watch is first
                stated = response.headers.get("Content-Length") or ""
                expected = int(stated) if stated.isdecimal() else 0
                while max(expected, content.tell()) <= most and (chunk := response.read1(1 << 20)):
                    content.write(chunk)
        if max(expected, content.tell()) > most:
            raise MediaError(name, f"larger than the limit of {most} bytes for a download")
        if watch.is_over:
            raise TimeoutError
        if content.tell() < expected:
            raise MediaError(name, f"the download ended after {content.tell()} of {expected} bytes")
    except (OSError, HTTPException, ValueError, OverflowError) as error:  # URLError and timeouts are OSErrors
        content.close()
        if isinstance(error, MediaError):
            raise
        if watch.is_over:
            raise MediaError(name, f"the download took longer than {seconds:g} s") from error
        if isinstance(error, urllib.error.HTTPError):
            raise MediaError(name, _refusal(error, address_of is None)) from error
        raise MediaError(name, "cannot be downloaded" + (f" ({error})" if address_of is None else "")) from error
    content.seek(0)
    return cast(BinaryIO, content)


def _quoted(url: str) -> str:
    """A URL whose path and query may hold any characters, as a request takes it."""
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or parts.port == 0:
        raise MediaError(describe_source(url), "expected an http(s) URL with a host")
    path, query = (urllib.parse.quote(text, safe="/%:@!$&'()*+,;=~?") for text in (parts.path, parts.query))
    return parts._replace(path=path, query=query, fragment="").geturl()


def _refusal(error: urllib.error.HTTPError, in_full: bool) -> str:
    if error.code in (301, 302, 303, 307, 308):
        return f"more than {REDIRECTS} redirects, or one to what is no http(s) URL"
    return f"the server answered {error.code}" + (f" {error.reason}" if in_full else "")


def _open_path(path: str | os.PathLike) -> BinaryIO:
    name = describe_source(path)
    path = os.path.expanduser(path)
    if not os.path.exists(path):
        raise MediaError(name, "no such file")
    if not os.path.isfile(path):  # a folder, or a pipe that would be waited on for ever
        raise MediaError(name, "not a regular file")
    with media_errors(name, "cannot be opened", (OSError,)):
        return open(path, "rb")


def _is_base64(text: str) -> bool:
    """Whether a string is encoded data: long, of the alphabet, and neither a file nor a name in a folder."""
    if len(text) < _MIN_BASE64 or not _BASE64.match(text) or os.path.exists(text):
        return False
    folder = os.path.dirname(text)  # base64 of a JPEG starts with "/9j/"
    return not folder or not os.path.isdir(folder)


def _open_text(text: str) -> BinaryIO:
    """Opens a string: URL, path or base64."""
    if text.startswith("data:"):
        return io.BytesIO(_read_data_url(text))
    scheme = _URL.match(text)
    if scheme is None:
        return io.BytesIO(_decode_base64(text, describe_source(text))) if _is_base64(text) else _open_path(text)
    kind = scheme.group(1).lower()
    if kind in ("http", "https"):
        return download(text)
    if kind == "file":
        return _open_path(urllib.request.url2pathname(urllib.parse.urlparse(text).path))
    raise MediaError(describe_source(text), f"URL scheme {kind!r} is not supported: use http, https, file or data")


def _open_any(source: Any) -> BinaryIO:
    if isinstance(source, dict):
        key = next((key for key in ("bytes", "path", "url", "base64") if source.get(key) is not None), None)
        if key is None:
            raise MediaError(describe_source(source), "no media in it: give one of 'bytes', 'path', 'url' or 'base64'")
        if key == "base64":
            return io.BytesIO(_decode_base64(source[key], describe_source(source)))
        return _open_any(source[key])
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(bytes(source))
    if isinstance(source, str):
        return _open_text(source)
    if isinstance(source, os.PathLike):
        return _open_path(source)
    raise MediaError(
        describe_source(source),
        f"a {type(source).__name__} is no media source: give a path, URL, bytes or a dict with 'bytes' or 'path'",
    )


@contextlib.contextmanager
def open_media(source: Any) -> Iterator[tuple[BinaryIO, str]]:
    """Opens a medium for reading, as a seekable binary file at its start, and its name for messages.

    Args:
        source: path, http(s)/file/data URL, base64 text, encoded bytes, or a dict with one of `bytes`, `path`, `url`,
            `base64` (the first that is not None counts).

    Raises:
        MediaError: nothing there, not readable, empty, or plainly a web page.
    """
    name = describe_source(source)
    with _open_any(source) as file:
        head = file.read(512)
        if not head:
            raise MediaError(name, "empty: 0 bytes")
        if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
            raise MediaError(name, "an HTML page, not a media file (an error page saved by a download?)")
        file.seek(0)
        yield file, name

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Servers that trickle, never end, lie about lengths or send elsewhere: each is one line, in the stated time."""

import contextlib
import socket
import threading
import time

import pytest

from xllm.processing import media_sources
from xllm.processing.media_sources import MediaError, in_time, open_media


OK = b"HTTP/1.1 200 OK\r\n"
BODY = bytes(range(256)) * 8


def trickle(send, content):
    for byte in content:
        send(bytes([byte]))
        time.sleep(0.05)


def endlessly(send):
    while True:
        send(b"x" * 65536)


def chunks(send, end=b"0\r\n\r\n"):
    for start in range(0, len(BODY), 512):
        send(b"200\r\n" + BODY[start : start + 512] + b"\r\n")
    send(end)


def redirect(place):
    return lambda send: send(b"HTTP/1.1 302 Found\r\nLocation: " + place + b"\r\nContent-Length: 0\r\n\r\n")


PAGES = {
    "/whole": lambda send: send(OK + b"Content-Length: 2048\r\n\r\n" + BODY),
    "/chunks": lambda send: (send(OK + b"Transfer-Encoding: chunked\r\n\r\n"), chunks(send)),
    "/cut-chunks": lambda send: (send(OK + b"Transfer-Encoding: chunked\r\n\r\n"), chunks(send, b"")),
    "/unstated": lambda send: send(OK + b"\r\n" + BODY),
    "/short": lambda send: send(OK + b"Content-Length: 4096\r\n\r\n" + BODY),
    "/huge": lambda send: send(OK + b"Content-Length: 99999999999999\r\n\r\n" + BODY),
    "/endless": lambda send: (send(OK + b"\r\n"), endlessly(send)),
    "/slow-body": lambda send: (send(OK + b"\r\n"), trickle(send, BODY)),
    "/slow-head": lambda send: trickle(send, OK + b"X: y\r\n" * 999),
    "/nothing": lambda send: time.sleep(3),
    "/hang-up": lambda send: None,
    "/no-http": lambda send: send(b"SSH-2.0-OpenSSH\r\n" * 9),
    "/sent-on": redirect(b"/whole"),
    "/round": redirect(b"/round"),
    "/to-file": redirect(b"file:///etc/passwd"),
    "/to-ftp": redirect(b"ftp://127.0.0.1/a.wav"),
    "/to-data": redirect(b"data:,abc"),
    "/gone": lambda send: send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
}


@pytest.fixture(scope="module")
def address():
    """A server that answers as `PAGES` say."""
    server = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            path = connection.recv(65536).split(b" ")[1].decode()
            with contextlib.suppress(OSError):  # the client has had enough
                PAGES[path](connection.sendall)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=[connection], daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{server.getsockname()[1]}"
    server.close()


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    monkeypatch.setattr(media_sources, "DOWNLOAD_SECONDS", 0.5)
    monkeypatch.setattr(media_sources, "MAX_DOWNLOAD_BYTES", 1 << 22)


@pytest.mark.parametrize("page", ["/whole", "/chunks", "/unstated", "/sent-on"])
@pytest.mark.parametrize("in_memory", [1 << 25, 100])
def test_what_is_whole_is_read(address, page, in_memory, monkeypatch):
    monkeypatch.setattr(media_sources, "_IN_MEMORY", in_memory)
    with open_media(address + page) as (file, name):
        assert file.read() == BODY
        assert file.seek(-6, 2) == 2042
        assert name == address + page


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("/short", "ended after 2048 of 4096 bytes"),
        ("/cut-chunks", "cannot be downloaded"),
        ("/huge", "larger than the limit of 4194304 bytes"),
        ("/endless", "larger than the limit of 4194304 bytes"),
        ("/slow-body", "took longer than 0.5 s"),
        ("/slow-head", "took longer than 0.5 s"),
        ("/nothing", "took longer than 0.5 s"),
        ("/hang-up", "cannot be downloaded"),
        ("/no-http", "cannot be downloaded"),
        ("/round", "redirect error"),
        ("/to-file", "redirect|302"),
        ("/to-ftp", "unknown url type: ftp"),
        ("/to-data", "redirect|302"),
        ("/gone", "the server answered 404"),
    ],
)
def test_what_is_not_is_one_line_in_time(address, page, reason):
    start = time.monotonic()
    with pytest.raises(MediaError, match=reason) as caught, open_media(address + page):
        pass
    assert time.monotonic() - start < 2
    assert str(caught.value).startswith(address + page)
    assert "\n" not in str(caught.value)


def test_decoding_ends_in_time(monkeypatch):
    monkeypatch.setattr(media_sources, "DECODE_SECONDS", 0.1)

    def slow():
        for number in range(100):
            time.sleep(0.02)
            yield number

    seen = []
    with pytest.raises(MediaError, match=r"^a\.mp4: decoding it takes longer than 0\.1 s"):
        seen.extend(in_time(slow(), "a.mp4"))
    for _ in in_time(iter(range(3)), "a.mp4"):
        time.sleep(0.1)  # what is done with the items does not count

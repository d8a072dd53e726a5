# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Servers that trickle, never end, lie about lengths or send elsewhere: each is one line, in the stated time."""

import base64
import contextlib
import shutil
import socket
import ssl
import subprocess
import threading
import time
from urllib.parse import quote

import numpy as np
import pytest

from xllm.processing import media_sources
from xllm.processing.media_sources import (
    MediaError,
    check_memory,
    describe_source,
    download,
    in_time,
    memory_limit,
    open_media,
)


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
        ("/round", "more than 5 redirects"),
        ("/to-file", "one to what is no http"),
        ("/to-ftp", "one to what is no http"),
        ("/to-data", "one to what is no http"),
        ("/gone", "the server answered 404"),
    ],
)
@pytest.mark.timeout(60)  # the slow ones take two minutes to the end
def test_what_is_not_is_one_line_in_time(address, page, reason):
    with pytest.raises(MediaError, match=reason) as caught, open_media(address + page):
        pass
    assert str(caught.value).startswith(address + page)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("late", [0, 0.6])
@pytest.mark.timeout(60)  # all of the record takes two minutes
def test_a_handshake_ends_in_time(late, monkeypatch):
    """A record of TLS is announced, and comes byte by byte; or the time is over before the handshake begins."""
    wrap = ssl.SSLContext.wrap_socket

    def wrap_late(*args, **options):
        sock = wrap(*args, **options)
        time.sleep(late)
        return sock

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_late)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(b"\x16\x03\x03\x40\x00")
                trickle(connection.sendall, bytes(2000))

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(MediaError, match=r"took longer than 0\.5 s"):
            download(f"https://127.0.0.1:{server.getsockname()[1]}/")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_a_chosen_address_must_have_the_certificate_of_the_host(tmp_path, monkeypatch):
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=media.example"
    names = ["-addext", "subjectAltName=DNS:media.example", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
    asked = []

    def address_of(host, port):
        asked.append((host, port))
        return "127.0.0.1"

    with context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as server:

        def answer() -> None:
            for _ in range(2):
                with contextlib.suppress(OSError):  # the second client does not trust us
                    connection, _ = server.accept()
                    connection.recv(65536)
                    PAGES["/whole"](connection.sendall)
                    connection.close()

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        with download(f"https://media.example:{port}/a", address_of=address_of) as file:
            assert file.read() == BODY
        with pytest.raises(MediaError, match=r"^https://other\.example:\d+/a: cannot be downloaded$"):
            download(f"https://other.example:{port}/a", address_of=address_of)
    assert asked == [("media.example", port), ("other.example", port)]


def test_a_proxy_is_asked_where_no_address_is_chosen(address, monkeypatch):
    monkeypatch.setenv("http_proxy", f"{address}/")
    monkeypatch.setitem(PAGES, "http://nowhere.example:1/a", PAGES["/whole"])  # a proxy is sent the whole URL
    monkeypatch.setenv("no_proxy", "")
    with download("http://nowhere.example:1/a") as file:
        assert file.read() == BODY
    with pytest.raises(MediaError, match="cannot be downloaded"):
        download("http://nowhere.example:1/a", address_of=lambda host, port: "127.0.0.1")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http:///a.wav", "expected an http"),
        ("http://127.0.0.1:0/a.wav", "expected an http"),
        ("http://127.0.0.1:99999/a.wav", "cannot be downloaded"),
        ("http://[::1/a.wav", "cannot be downloaded"),
        ("http://127.0.0.1:1/ä b?c=ü d", "cannot be downloaded .*refused"),
    ],
)
def test_a_url_that_leads_nowhere_is_one_line(url, reason):
    with pytest.raises(MediaError, match=reason):
        download(url)


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


DATA = bytes(range(60)) + b"\xfb\xff\xfe"  # in base64 with "+" and "/", which URL-safe text writes as "-" and "_"
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "source",
    [
        DATA, bytearray(DATA), memoryview(DATA), TEXT, TEXT.replace("+", "-").replace("/", "_").rstrip("="),
        f"{TEXT[:40]}\n {TEXT[40:]}\n", f"data:audio/wav;base64,{TEXT}", f"data:;base64,{quote(TEXT)}",
        "data:," + quote(DATA), {"bytes": DATA, "path": "not there"}, {"bytes": None, "base64": TEXT},
        {"url": f"data:;base64,{TEXT}"}, {"path": None, "url": f"data:;base64,{TEXT}"},
    ],
    ids=lambda one: type(one).__name__,
)  # fmt: skip
def test_one_medium_in_every_form(source):
    with open_media(source) as (file, _):
        assert file.tell() == 0
        assert file.read() == DATA


def test_files_in_every_form_and_text_that_might_be_one(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for source in (
        path,
        str(path),
        path.as_uri(),
        "~/a.bin",
        "a.bin",
        {"path": path},
        {"path": str(path), "url": "x"},
    ):
        with open_media(source) as (file, name):
            assert file.read() == DATA
            assert name == (str(source["path"]) if isinstance(source, dict) else str(source))
    long = tmp_path / ("A" * 70)  # of base64's alphabet, but it is there
    long.write_bytes(b"a file")
    for source in (long.name, str(long)):
        with open_media(source) as (file, _):
            assert file.read() == b"a file"
    for source in ("B" * 63, str(tmp_path / ("B" * 70)), "nothing/here.png"):
        with pytest.raises(MediaError, match="no such file"), open_media(source):
            pass
    with open_media("B" * 64) as (file, name):
        assert file.read() == base64.b64decode("B" * 64)
        assert name == "B" * 64


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("A" * 65, "not valid base64"),
        ("data:audio/wav;base64", "needs a comma"),
        ("ftp://host/a.wav", "URL scheme 'ftp' is not supported"),
        ({"sampling_rate": 3, "array": None}, "<dict with array, sampling_rate>: no media in it"),
        (3, "a int is no media source"),
        (b"", "<0 bytes in memory>: empty: 0 bytes"),
        (b"  \n<!DOCTYPE html><p>404", "an HTML page"),
        (b"<HTML>", "an HTML page"),
    ],
)
def test_what_is_no_medium_says_so(source, reason):
    with pytest.raises(MediaError, match=reason), open_media(source):
        pass


def test_long_texts_are_named_in_short():
    assert describe_source("a" * 200) == "a" * 200
    assert describe_source("a" * 201) == "a" * 60 + "... (201 characters)"
    assert describe_source({"path": None, "url": "x", "bytes": b""}) == "x"
    assert describe_source({"bytes": b"12"}) == "<dict with bytes>"
    assert describe_source(np.zeros((2, 3))) == "<ndarray of shape (2, 3)>"
    assert describe_source(None) == "<NoneType>"


def test_folders_are_no_files(tmp_path):
    with pytest.raises(MediaError, match="not a regular file"), open_media(tmp_path):
        pass


def test_memory_is_limited_where_it_is_said(monkeypatch):
    monkeypatch.setattr(media_sources, "MAX_BYTES", 100)
    check_memory("x", 100, "it")
    with pytest.raises(MediaError, match="x: it take 0.0 GiB of memory, more than the limit of"):
        check_memory("x", 101, "it")
    with memory_limit(2**31):
        check_memory("x", 2**31, "it")
        with pytest.raises(MediaError, match="take 3.0 GiB of memory, more than the limit of 2 GiB"):
            check_memory("x", 3 * 2**30, "it")
    with pytest.raises(MediaError):
        check_memory("x", 101, "it")

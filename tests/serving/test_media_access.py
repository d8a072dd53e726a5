# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a hostile client tries: files, private addresses, redirects, names that change, slow servers, bombs."""

import contextlib
import http.server
import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib

import openai
import pytest
import torch
from media_files import write_wav
from serving_fixtures import NAME, chat, data_url, post, running

from xllm.processing.media_kinds import media_kind
from xllm.processing.media_sources import MediaError
from xllm.serving import Limits, MediaAccess
from xllm.serving.media_access import is_public


IMAGE = media_kind("image")


class Page(http.server.BaseHTTPRequestHandler):
    """Answers by the first part of the path; what comes behind it is where `to` leads."""

    def do_GET(self):
        self.server.paths.append(self.path)
        kind, _, rest = urllib.parse.unquote(self.path)[1:].partition("/")
        getattr(self, kind, self.picture)(rest)

    def reply(self, *headers):
        self.send_response(302 if "Location" in dict(headers) else 200)
        for header in headers:
            self.send_header(*header)
        self.end_headers()

    def picture(self, rest):
        self.reply()
        self.wfile.write(self.server.content)

    def to(self, rest):
        self.reply(("Location", rest.replace("|", "/") or self.path))

    def trickle(self, rest):
        self.reply()
        self.slowly()

    def slowly(self):
        for _ in range(1200):
            self.wfile.write(b"x")
            time.sleep(0.1)

    def endless(self, rest):
        self.reply()
        while True:
            self.wfile.write(b"x" * 65536)

    def head(self, rest):
        self.slowly()

    def short(self, rest):
        self.reply(("Content-Length", str(len(self.server.content) + 10)))
        self.wfile.write(self.server.content)

    def gone(self, rest):
        self.send_error(404, "a reason of the inside")

    def handle(self):
        with contextlib.suppress(OSError):  # the client had enough
            super().handle()

    def log_message(self, *args):
        """Nothing."""


class Site(http.server.ThreadingHTTPServer):
    """A web server on this machine that remembers who came."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), Page)
        self.paths, self.content = [], content
        self.host = f"127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.shutdown()
        self.server_close()


@pytest.fixture
def site(media):
    site = Site((media / "red.png").read_bytes())
    yield site
    site.close()


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address, expected):
    assert is_public(address) is expected


@pytest.mark.parametrize(
    "url",
    [
        "http://{host}/picture",
        "HTTP://{host}/picture",
        "http://localhost:{port}/picture",
        "http://2130706433:{port}/picture",
        "http://0x7f.1:{port}/picture",
        "http://[::ffff:127.0.0.1]:{port}/picture",
        "http://0.0.0.0:{port}/picture",
        "http://user@{host}/picture",
        "http://example.org@{host}/picture",
    ],
)
def test_a_private_address_is_never_reached(site, url):
    url = url.format(host=site.host, port=site.server_port)
    with pytest.raises(MediaError, match="fetches nothing from this address|without a user"):
        MediaAccess().open(url, IMAGE)
    assert not site.paths


def test_an_allowed_host_is_fetched_and_its_redirects_are_checked(site, media):
    access, content = MediaAccess([site.host]), (media / "red.png").read_bytes()
    assert access.open(f"http://{site.host}/picture", IMAGE) == content
    assert access.open(f"http://{site.host}/to/|picture", IMAGE) == content
    with pytest.raises(MediaError, match="more than 5 redirects"):
        access.open(f"http://{site.host}/to/", IMAGE)
    other = Site(content)
    try:
        with pytest.raises(MediaError, match="fetches nothing from this address"):
            access.open(f"http://{site.host}/to/http:||{other.host}|picture", IMAGE)
        assert not other.paths
        for target in ("file:|||etc|passwd", "ftp:||example.org|x"):
            with pytest.raises(MediaError, match=r"one to what is no http\(s\) URL$"):
                access.open(f"http://{site.host}/to/{target}", IMAGE)
    finally:
        other.close()


def test_a_name_is_looked_up_once(site, monkeypatch):
    """The first answer of the name server is public, the second would be this machine."""
    answers = iter(["93.184.216.34", "127.0.0.1"])
    connected = []

    def look_up(host, port, **options):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    def connect(address, *args):
        connected.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(MediaError, match="cannot be downloaded$"):
        MediaAccess().open("http://rebind.example/picture", IMAGE)
    assert connected == [("93.184.216.34", 80)]


def test_one_private_address_among_several_is_enough_to_refuse(monkeypatch):
    found = [(socket.AF_INET, 1, 6, "", (address, 80)) for address in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: found)
    with pytest.raises(MediaError, match="fetches nothing from this address"):
        MediaAccess().open("http://both.example/picture", IMAGE)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("trickle", "the download took longer than 0.6 s"),
        ("head", "the download took longer than 0.6 s"),
        ("endless", "larger than the limit of 100000 bytes"),
        ("short", "ended after"),
        ("gone", "the server answered 404$"),
    ],
)
@pytest.mark.timeout(60)  # what is slow takes two minutes to the end
def test_a_site_cannot_hold_or_fill_the_server(site, path, message):
    seconds = 0.6 if "0.6 s" in message else 30
    access = MediaAccess([site.host], Limits(download_seconds=seconds, download_bytes=100_000))
    with pytest.raises(MediaError, match=message):
        access.open(f"http://{site.host}/{path}", IMAGE)


def test_files_of_the_server_are_closed_to_clients(tmp_path, media, monkeypatch):
    (tmp_path / "open").mkdir()
    inside = tmp_path / "open" / "red.png"
    inside.write_bytes((media / "red.png").read_bytes())
    secret = tmp_path / "secret.png"
    secret.write_bytes(inside.read_bytes())
    (tmp_path / "open" / "link.png").symlink_to(secret)
    monkeypatch.chdir(tmp_path)
    access = MediaAccess([str(tmp_path / "open")])
    assert access.open(str(inside), IMAGE) == access.open(f"file://{inside}", IMAGE) == str(inside)
    closed = [
        str(secret),
        "secret.png",
        f"file://{secret}",
        f"{tmp_path}/open/../secret.png",
        f"file://{tmp_path}/open/%2e%2e/secret.png",
        f"{tmp_path}/open/link.png",
        f"{tmp_path}/openly/red.png",
        "~/secret.png",
        "/etc/passwd\0.png",
        "/proc/self/environ",
        "/nowhere/at/all.png",
    ]
    refusals = {str(error_of(access, text)).partition(": ")[2] for text in closed}
    assert len(refusals) == 1  # whether a file is there is not told
    assert isinstance(error_of(MediaAccess(), str(inside)), MediaError)
    for form in ({"path": str(secret)}, {"url": str(secret)}, {"bytes": str(secret)}):
        assert isinstance(error_of(access, form), MediaError)


def error_of(access, source):
    """What opening it raises."""
    with pytest.raises(MediaError) as error:
        access.open(source, IMAGE)
    return error.value


def test_a_client_is_refused_what_the_server_would_open(serving, media, site):
    sources = [
        {"type": "image", "path": str(media / "red.png")},
        {"type": "image_url", "image_url": {"url": f"file://{media}/red.png"}},
        {"type": "image", "image": {"path": str(media / "red.png")}},
        {"type": "image", "image": str(media / "red.png")},
        {"type": "image_url", "image_url": {"url": f"http://{site.host}/picture"}},
        {"type": "image_url", "image_url": {"url": f"{serving.url}/health"}},
    ]
    with serving.client() as client:
        for part in sources:
            with pytest.raises(openai.BadRequestError, match="opens no files here|fetches nothing from this address"):
                chat(client, [part])
    assert not site.paths


def test_a_trickling_site_keeps_nobody_waiting(loaded, site):
    limits = Limits(download_seconds=3.0, workers=2)
    with running(loaded, limits, [site.host]) as server, server.client() as client:
        slow = {"type": "image_url", "image_url": {"url": f"http://{site.host}/trickle"}}
        results = []

        def ask():
            with pytest.raises(openai.BadRequestError, match="took longer than 3 s"):
                chat(client, [slow])
            results.append(time.monotonic())

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(0.3)
        assert json.loads(post(server, "/health", None)[1])["status"] == "ok"
        assert chat(client, "Hello").choices
        assert not results  # answered before the slow one was given up
        thread.join()
        assert results


def png_of_zeros(side: int) -> bytes:
    """A picture whose file is a thousandth of what it decodes to."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    lines = zlib.compress(bytes((side * 3 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_before_it_is_decoded(loaded, tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_of_zeros(4000))  # 48 MB of pixels
    write_wav(tmp_path / "long.wav", torch.zeros(1, 8000 * 200), 8000)
    with running(loaded, Limits(medium_memory=10_000_000)) as server, server.client() as client:
        picture = {"type": "image_url", "image_url": {"url": data_url(tmp_path / "bomb.png", "image/png")}}
        sound = {"type": "audio_url", "audio_url": {"url": data_url(tmp_path / "long.wav", "audio/wav")}}
        for part in (picture, sound):
            with pytest.raises(openai.BadRequestError, match="more than the limit of 0.00931"):
                chat(client, [part])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic secret"}, 401),
        ({"Authorization": "Bearer secret"}, 200),
        ({"Authorization": "Bearer secret", "Host": "evil.example"}, 403),
        ({"Authorization": "Bearer secret", "Host": "models.example:80"}, 200),
        ({"Authorization": "Bearer secret", "Origin": "http://evil.example"}, 403),
        ({"Authorization": "Bearer secret", "Origin": "null"}, 403),
        ({"Authorization": "Bearer secret", "Origin": "http://page.example"}, 200),
    ],
)
def test_who_may_ask(guarded, headers, status):
    body = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    found, text = post(guarded, "/v1/chat/completions", body, headers)
    assert found == status
    assert status == 200 or json.loads(text)["error"]["message"]
    assert "secret" not in text


def test_an_allowed_page_reads_why_it_is_refused(guarded):
    request = urllib.request.Request(f"{guarded.url}/v1/models", headers={"Origin": "http://page.example"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=60)
    assert (error.value.status, error.value.headers["access-control-allow-origin"]) == (401, "http://page.example")


@pytest.fixture(scope="module")
def guarded(loaded):
    """A server with a key, a name and a page of its own."""
    guard = {"api_key": "secret", "hosts": ["models.example"], "origins": ["http://page.example"]}
    with running(loaded, **guard) as server:
        yield server

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Media that a client names: what is sent along is taken; files and addresses only as far as the server allows them.

Without leave no file of the server is opened, and no address that is not public: a name is looked up once, all its
addresses are checked, and the connection goes to a checked one, so that a second answer of the name server changes
nothing; each redirect is checked like the first address. Nothing here tells a client what lies behind a refusal.
"""

import contextlib
import http.client
import ipaddress
import os
import re
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterable, Iterator
from typing import Any

from xllm.processing.media_kinds import OWN_KINDS, MediaKind, is_values
from xllm.processing.media_sources import MediaError, describe_source
from xllm.serving.limits import Limits


REDIRECTS = 5
SOURCE_KEYS = frozenset({"bytes", "path", "url", "base64"})
NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")


class MediaAccess:
    """Where media may come from.

    Args:
        allowed: folders whose files clients may name, and hosts ("media.local", "10.0.0.5:9000") that are fetched from
            though their addresses are private.
    """

    def __init__(self, allowed: Iterable[str] = (), limits: Limits | None = None):
        self.limits = limits or Limits()
        self.folders, self.hosts = [], set()
        for name in allowed:
            if os.path.isdir(name):
                self.folders.append(os.path.realpath(name))
            elif os.sep in name:
                raise ValueError(f"--allow-media-from {name}: no such folder")
            else:
                self.hosts.add(name.lower())

    def open(self, source: Any, kind: MediaKind) -> Any:
        """A medium as `XLLMProcessor.load` takes it, of which nothing else is opened.

        Raises:
            MediaError: it is not allowed, cannot be fetched, or is of no form that JSON has for a medium.
        """
        if isinstance(source, str):
            return self._open_text(source)
        if isinstance(source, dict) and source and SOURCE_KEYS.issuperset(source):
            key = next((key for key in ("url", "path", "base64") if isinstance(source.get(key), str)), None)
            if key is None:
                raise MediaError(describe_source(source), "expected a string under 'url' or 'base64'")
            return {"base64": source[key]} if key == "base64" else self._open_text(source[key])
        if isinstance(source, dict) and is_values(source.get("array")):
            return source
        if is_values(source) or (
            isinstance(source, dict) and kind not in OWN_KINDS
        ):  # JSON that a reader of its own takes
            return source
        raise MediaError(describe_source(source), f"no {kind.type}: send a data: URL, base64 text or an http(s) URL")

    def _open_text(self, text: str) -> Any:
        if text.startswith("data:"):
            return text
        scheme = _SCHEME.match(text)
        if scheme and scheme.group().lower() in ("http:", "https:"):
            return self._fetch(text)
        return self._allowed_path(text)

    def _allowed_path(self, text: str) -> str:
        url = urllib.parse.urlsplit(text) if text.lower().startswith("file:") else None
        path = text if url is None else urllib.parse.unquote(url.path)
        path = os.path.realpath(path.replace("\0", ""))
        if not any(os.path.commonpath([folder, path]) == folder for folder in self.folders):
            what = "the server opens no files here; send a data: URL, base64 text or an http(s) URL"
            raise MediaError(describe_source(text), what)
        return path

    # ---- http -------------------------------------------------------------------------------------------------------

    def _fetch(self, url: str) -> bytes:
        name = describe_source(url)
        with _deadline(self.limits.download_seconds) as timer:
            for _ in range(REDIRECTS + 1):
                try:
                    found = self._get(url, name, timer)
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if isinstance(error, MediaError):
                        raise
                    late = f"took longer than {self.limits.download_seconds:g} s" if timer.is_over else "failed"
                    raise MediaError(name, f"the download {late}") from error
                if isinstance(found, bytes):
                    return found
                url = urllib.parse.urljoin(url, found)
            raise MediaError(name, f"more than {REDIRECTS} redirects")

    def _get(self, url: str, name: str, timer: "_Timer") -> bytes | str:
        """The content, or where the server says that it is."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
            raise MediaError(name, "expected an http(s) URL with a host and without a user")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        address = self._address(parts.hostname, port, name)
        with contextlib.closing(_Connection(parts.hostname, port, address, parts.scheme, timer)) as connection:
            target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            query = f"?{urllib.parse.quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else ""
            headers = {"User-Agent": "xllm-transformers", "Accept-Encoding": "identity"}
            connection.request("GET", target + query, headers=headers)
            reply = connection.getresponse()
            if reply.status in (301, 302, 303, 307, 308) and (place := reply.getheader("Location")):
                return place
            if reply.status != 200:
                raise MediaError(name, f"the server answered {reply.status}")
            return self._read(reply, name, timer)

    def _read(self, reply: http.client.HTTPResponse, name: str, timer: "_Timer") -> bytes:
        most, content = self.limits.download_bytes, bytearray()
        expected = reply.length or 0
        while len(content) <= most >= expected and (chunk := reply.read1(1 << 16)):
            content += chunk
        timer.check()
        if max(len(content), expected) > most:
            raise MediaError(name, f"larger than the limit of {most} bytes for a download")
        if len(content) < expected:
            raise MediaError(name, f"the download ended after {len(content)} of {expected} bytes")
        return bytes(content)

    def _address(self, host: str, port: int, name: str) -> str:
        """An address of a host that may be connected to."""
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if {host.lower(), f"{host.lower()}:{port}"}.isdisjoint(self.hosts) and not all(map(is_public, found)):
            raise MediaError(name, "the server fetches nothing from this address")
        return found[0]


def is_public(address: str) -> bool:
    """Whether an IP address, or the one packed into it, belongs to the public internet."""
    ip: Any = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        packed = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
        packed += [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)] if ip in NAT64 else []
        if not all(inner.is_global for inner in packed if inner is not None):
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _Timer:
    """Breaks connections when time is over, also one whose server sends a byte now and then."""

    def __init__(self, seconds: float):
        self.is_over, self._lock = False, threading.Lock()
        self._sockets: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True
        self._timer.start()

    def watch(self, sock: socket.socket) -> None:
        """A socket that is to last no longer."""
        with self._lock:
            self._sockets.append(sock)
        if self.is_over:
            self._end()

    def check(self) -> None:
        """`TimeoutError` if it is over: what was broken off looks like an end."""
        if self.is_over:
            raise TimeoutError

    def _end(self) -> None:
        with self._lock:
            self.is_over = True
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def cancel(self) -> None:
        """All is done in time."""
        self._timer.cancel()


class _Connection(http.client.HTTPConnection):
    """A connection to one address, whatever the name of its host would mean by now."""

    def __init__(self, host: str, port: int, address: str, scheme: str, timer: _Timer):
        super().__init__(host, port, timeout=10)
        self._at, self._is_secure, self._timer = (address, port), scheme == "https", timer
        self.default_port = 443 if self._is_secure else 80

    def connect(self) -> None:
        """To the address; with TLS, in the name of the host."""
        self.sock = socket.create_connection(self._at, self.timeout)
        if not self._is_secure:
            self._timer.watch(self.sock)
            return
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
        self._timer.watch(self.sock)
        self.sock.do_handshake()


@contextlib.contextmanager
def _deadline(seconds: float) -> Iterator[_Timer]:
    timer = _Timer(seconds)
    try:
        yield timer
    finally:
        timer.cancel()

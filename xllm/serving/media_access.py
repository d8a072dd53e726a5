# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Media that a client names: what is sent along is taken; files and addresses only as far as the server allows them.

Without leave no file of the server is opened, and no address that is not public: a name is looked up once, all its
addresses are checked, and the connection goes to a checked one, so that a second answer of the name server changes
nothing; each redirect is checked like the first address. Nothing here tells a client what lies behind a refusal.
"""

import ipaddress
import os
import re
import socket
import urllib.parse
from collections.abc import Iterable
from functools import partial
from typing import Any

from xllm.processing.media_kinds import OWN_KINDS, MediaKind, is_values
from xllm.processing.media_sources import MediaError, describe_source, download
from xllm.serving.limits import Limits


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
        if is_values(source) or (isinstance(source, dict) and kind not in OWN_KINDS):  # JSON for a reader of its own
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

    def _fetch(self, url: str) -> bytes:
        address_of = partial(self._address, describe_source(url))
        with download(url, self.limits.download_bytes, self.limits.download_seconds, address_of) as file:
            return file.read()

    def _address(self, name: str, host: str, port: int) -> str:
        """An address of a host that may be connected to."""
        if "@" in host:
            raise MediaError(name, "expected an http(s) URL with a host and without a user")
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

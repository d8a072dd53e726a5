# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""When a server lets go: of clients that read nothing, and of all of them some seconds after it is told to end."""

import asyncio
import socket
from typing import Any

import uvicorn

from xllm.serving.service import Service


SENDING = 3  # seconds for what clients are told; those that read nothing are cut off
UNREAD = 60  # seconds that a client may read nothing while something is sent


class Server(uvicorn.Server):
    """Uvicorn's, which alone keeps an answer for as long as its client likes to leave it unread."""

    async def startup(self, sockets: Any = None) -> None:
        """Listen; connections have the options of what they come through."""
        await super().startup(sockets)
        for listening in (one for server in self.servers for one in server.sockets):
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: it ends connections that take nothing
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD)


class DrainingServer(Server):
    """One that tells running answers, after some seconds, that it ends; uvicorn cuts them off."""

    def __init__(self, config: uvicorn.Config, service: Service, seconds: float):
        super().__init__(config)
        self._service, self._seconds = service, seconds
        config.timeout_graceful_shutdown = int(seconds) + SENDING

    async def shutdown(self, sockets: Any = None) -> None:
        """Take no more connections and wait for answers."""

        async def end() -> None:
            await asyncio.sleep(self._seconds)
            await asyncio.to_thread(self._service.close)

        ending = asyncio.create_task(end())
        await super().shutdown(sockets)
        ending.cancel()

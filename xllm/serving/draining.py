# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The end of a server: running answers have some seconds left, then their clients are told."""

import asyncio
from typing import Any

import uvicorn

from xllm.serving.service import Service


SENDING = 3  # seconds for what clients are told; those that read nothing are cut off


class DrainingServer(uvicorn.Server):
    """Uvicorn's, which alone cuts off what is late in the midst of a stream; `seconds` are those that answers have."""

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

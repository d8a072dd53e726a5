# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How often the engine's thread wakes the event loop: once for all rows of a step, once for a whole answer."""

import asyncio
import threading

import pytest
from serving_fixtures import NAME

from xllm.serving import Limits, MediaAccess, Service
from xllm.serving.requests import ChatBody
from xllm.serving.service import Bell


@pytest.fixture
def calls(monkeypatch):
    """How often a `Bell` called its event loop from another thread."""
    found, call = [], asyncio.BaseEventLoop.call_soon_threadsafe

    def counted(loop, callback, *args, **options):
        found.extend([callback] * (getattr(callback, "__func__", None) is Bell._wake))
        return call(loop, callback, *args, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_soon_threadsafe", counted)
    return found


def test_one_call_wakes_all_who_wait(calls):
    async def wait() -> None:
        bell, events = Bell(), [asyncio.Event() for _ in range(5)]
        for times in (1, 2):
            thread = threading.Thread(target=lambda: [bell.ring(event) for event in events])
            thread.start()
            thread.join()
            await asyncio.wait_for(asyncio.gather(*(event.wait() for event in events)), 5)
            assert len(calls) == times
            for event in events:
                event.clear()

    asyncio.run(wait())


def test_an_answer_told_as_a_whole_is_that_of_a_stream_and_wakes_the_loop_once(loaded, calls):
    body = {
        "model": NAME,
        "messages": [{"role": "user", "content": "What is it?"}],
        "max_tokens": 12,
        "temperature": 0,
    }

    async def ask(service: Service, streams: bool) -> list:
        return [delta async for _, delta in await service.ask(ChatBody(**body), streams)]

    service = Service(*loaded, NAME, MediaAccess(), Limits())
    try:
        streamed = asyncio.run(ask(service, True))
        calls.clear()
        (whole,) = asyncio.run(ask(service, False))
    finally:
        service.close()
    assert len(calls) == 1
    assert whole.tokens == streamed[-1].tokens > 2
    assert whole.text == "".join(delta.text for delta in streamed) != ""
    assert whole.finish_reason == streamed[-1].finish_reason

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""From a conversation to answers: media are opened and decoded in threads of their own, the engine writes."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jinja2 import TemplateError

from xllm.processing.conversations import clean_part, part_source, with_track
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.processing.media_sources import MediaError, kept_warnings, memory_limit
from xllm.serving.answer_schemas import AnswerSchemas
from xllm.serving.engine import Engine, Job
from xllm.serving.limits import Limits, RequestError, context_length
from xllm.serving.media_access import MediaAccess
from xllm.serving.requests import sampling_of
from xllm.serving.sampling import Delta, Sampling


CHARACTERS = 256  # of the longest tokens: runs of spaces


def told_of(where: str, error: MediaError) -> str:
    """What is wrong with a medium, by its place in the request where it has no name of its own."""
    is_sent = error.source.startswith(("data:", "<"))
    return f"{where}: {error.reason}" if is_sent and error.reason else str(error)


class Bell:
    """Wakes what waits in an event loop, from the engine's thread: any number of answers by one call, since each call
    makes the two threads wait for each other."""

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self._waiting: deque[asyncio.Event] = deque()
        self._is_ringing = False

    def ring(self, event: asyncio.Event) -> None:
        """Set an event of the loop soon."""
        self._waiting.append(event)
        if not self._is_ringing:
            self._is_ringing = True
            self.loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._is_ringing = False
        while self._waiting:
            self._waiting.popleft().set()


class Asking:
    """Answers that were asked for, as they are told; `doubts`: what was found about media, with the place of each."""

    def __init__(self, bell: Bell, prompt_tokens: int):
        self.jobs: list[Job] = []
        self.prompt_tokens, self._bell = prompt_tokens, bell
        self.most_tokens = 0  # of each answer
        self.doubts: list[tuple[str, MediaError]] = []
        self._told: deque[tuple[int, Delta | RequestError]] = deque()
        self._news = asyncio.Event()

    def tell(self, place: int, what: Delta | RequestError) -> None:
        """What is new of a choice; in the engine's thread."""
        self._told.append((place, what))
        self._bell.ring(self._news)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """`(choice, delta)` until all choices have ended; raises the `RequestError` that ends one."""
        left = len(self.jobs)
        while left > 0:  # what is stopped may have ended already
            await self._news.wait()
            self._news.clear()
            told = [self._told.popleft() for _ in range(len(self._told))]  # a loop that is late catches up
            for place, delta in _together(told):
                yield place, delta
                left -= delta.finish_reason is not None

    def cancel(self) -> None:
        """Nobody waits for the answers any more."""
        for job in self.jobs:
            job.is_cancelled = True

    def stop(self) -> None:
        """What is written by now are the answers; in the thread of the loop that waits for them."""
        self.cancel()
        self._told += [(place, Delta(finish_reason="stop")) for place in range(len(self.jobs))]
        self._news.set()


def _together(told: list[tuple[int, Delta | RequestError]]) -> list[tuple[int, Delta]]:
    """What was told of each choice as one delta; raises what ended one."""
    found: dict[int, list[Delta]] = {}
    for place, delta in told:
        if isinstance(delta, RequestError):
            raise delta
        found.setdefault(place, []).append(delta)
    return [(place, deltas[0] if len(deltas) == 1 else _joined(deltas)) for place, deltas in found.items()]


def _joined(deltas: list[Delta]) -> Delta:
    logprobs = [one for delta in deltas for one in delta.logprobs]
    return replace(deltas[-1], text="".join(delta.text for delta in deltas), logprobs=logprobs)


class Service:
    """A model that answers.

    Args:
        name: what requests call the model.
    """

    def __init__(self, model: Any, processor: Any, name: str, access: MediaAccess, limits: Limits):
        self.model, self.processor, self.name = model, processor, name
        self.access, self.limits = access, limits
        self.engine = Engine(model, processor, limits)
        self._schemas = AnswerSchemas(limits)
        self._workers = ThreadPoolExecutor(limits.workers, thread_name_prefix="xllm-media")
        self._bell: Bell | None = None  # of the loop that asks
        self._tokenizer_lock = threading.Lock()  # fast tokenizers refuse two threads at once
        self.context = context_length(model.config)
        self._vocabulary = model.config.get_text_config().vocab_size

    def close(self) -> None:
        """Answer nothing more."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        self.engine.close()

    def check_model(self, name: str) -> None:
        """`RequestError` 404 for the name of another model."""
        if name != self.name:
            message = f"the model {name!r} does not exist here; this server has {self.name!r}"
            raise RequestError(message, 404, param="model", code="model_not_found")

    async def in_worker(self, work: Any, *args: Any) -> Any:
        """The result of something that takes its time, which may refuse the request."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, self._limited, work, *args)
        except (ValueError, TemplateError) as error:
            raise RequestError(str(error)) from error
        except RuntimeError as error:
            if "shutdown" in str(error):
                raise RequestError("the server is shutting down", 503) from error
            raise

    def _limited(self, work: Any, *args: Any) -> Any:
        with memory_limit(self.limits.medium_memory), torch.no_grad():
            return work(*args)

    async def ask(self, body: Any, streams: bool = True, most: int | None = None) -> Asking:
        """Begin to answer a parsed body of chat completions or responses.

        Args:
            streams: as in `Job`. most: tokens of the answer to a body that names no number; by default the limit.
        """
        self.check_model(body.model)
        if body.n > self.limits.choices:
            raise RequestError(f"n: at most {self.limits.choices} answers", param="n")
        schema, conversation = body.schema_of_answer, body.conversation()
        inputs, doubts = await self.in_worker(self.prepare, conversation)
        room = None if self.context is None else self.context - inputs["input_ids"].shape[1]
        limits = self.limits if most is None else replace(self.limits, new_tokens=most)
        sampling = sampling_of(body, limits, self.model.generation_config, room)
        if wrong := [token for token in sampling.logit_bias if not 0 <= token < self._vocabulary]:
            raise RequestError(f"logit_bias: there is no token {wrong[0]}", param="logit_bias")
        if schema is not None:
            sampling = replace(sampling, grammar=await self.in_worker(self._matcher_of, schema))
        asking = self.begin([inputs] * body.n, sampling, streams)
        asking.doubts = doubts
        return asking

    def begin(self, rows: list[dict], sampling: Sampling, streams: bool = False) -> Asking:
        """Put one answer per row of inputs in the engine's queue; further ones get further seeds."""
        if self._bell is None or self._bell.loop is not asyncio.get_running_loop():
            self._bell = Bell()
        asking = Asking(self._bell, rows[0]["input_ids"].shape[1])
        asking.most_tokens, deadline = sampling.max_tokens, time.monotonic() + self.limits.request_seconds
        for place, inputs in enumerate(rows):
            seed = None if sampling.seed is None else (sampling.seed + place) % 2**63
            tell = partial(asking.tell, place)
            asking.jobs.append(Job(inputs, replace(sampling, seed=seed), tell, deadline, streams))
        self.engine.submit(asking.jobs)
        return asking

    # ---- in a worker's thread ---------------------------------------------------------------------------------------

    def prepare(self, conversation: list[dict]) -> tuple[dict[str, torch.Tensor], list[tuple[str, MediaError]]]:
        """The processor's output for one conversation of a client, whose control tokens are text; and what is doubtful
        about its media, with the place of each.

        Raises:
            ValueError: a part or medium that cannot be used.
        """
        self._check_text(conversation)
        messages, count, doubts = [], 0, list[tuple[str, MediaError]]()
        for number, message in enumerate(conversation):
            content = []
            for place, given in enumerate(message["content"]):
                parts = with_track(clean_part(given))
                count += sum(part["type"] != "text" for part in parts)
                if count > self.limits.items:
                    raise RequestError(f"more than {self.limits.items} media in one request", param="messages")
                where = f"messages[{number}].content[{place}]"
                with kept_warnings() as kept:
                    content += [self._decoded(part, where) for part in parts]
                doubts += [(where, warning) for warning in kept]
            messages.append({"role": message["role"], "content": content})
        return self.encode(messages), doubts

    def encode(self, messages: list[dict]) -> dict[str, torch.Tensor]:
        """The processor's output for decoded messages."""
        with self._tokenizer_lock:
            return dict(self.processor.encode_conversations([messages], sanitize_control_tokens=True))

    def _check_text(self, conversation: list[dict]) -> None:
        """`RequestError` for texts that no tokenizer makes short enough: it would work on them for long."""
        texts = (part.get("text") for message in conversation for part in message["content"])
        length = sum(len(text) for text in texts if isinstance(text, str))
        if self.context is not None and length > CHARACTERS * self.context:
            message = f"{length} characters of text are more than the {self.context} tokens of the model's context"
            raise RequestError(message, code="context_length_exceeded", param="messages")

    def _matcher_of(self, schema: dict) -> Any:
        return self._schemas.matcher(schema, self.engine.pieces)  # made here the first time, in seconds if it is large

    def _decoded(self, part: dict, where: str) -> dict:
        if part["type"] == "text":
            return part
        try:
            source = self.access.open(part_source(part), MEDIA_KINDS[part["type"]])
            medium = self.processor.load(part["type"], source)
            self.processor.check_length(part["type"], medium, "/v1/audio/transcriptions")
        except MediaError as error:
            raise RequestError(told_of(where, error), param="messages") from error
        return {"type": part["type"], part["type"]: medium}

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One thread that writes all answers: prompts join the running batch as they come, answers leave it as they end."""

import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch

from xllm.modeling_xllm.generation_xllm import SuppressPlaceholders
from xllm.serving.limits import Limits, RequestError
from xllm.serving.media_features import MediaFeatures
from xllm.serving.rows import Rows, read_prompts
from xllm.serving.sampling import Answer, Delta, Sampling


logger = logging.getLogger(__name__)

PAUSE = 4  # steps of the running answers between two readings of prompts: what comes meanwhile is read together


@dataclass(eq=False)
class Job:
    """One answer that is asked for.

    Args:
        inputs: the processor's output for one conversation.
        tell: gets each `Delta`, or the `RequestError` that ends the answer; called from the engine's thread.
        deadline: on `time.monotonic`'s clock.
        streams: each token is told; else the answer at its end.
        is_cancelled: set it, and the answer is written no further.
    """

    inputs: dict[str, torch.Tensor]
    sampling: Sampling
    tell: Callable[[Delta | RequestError], None]
    deadline: float
    streams: bool = True
    is_cancelled: bool = False
    has_begun: bool = False  # it has been told something

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return self.inputs["input_ids"].shape[1]


class Engine:
    """Answers jobs until it is closed."""

    def __init__(self, model: Any, processor: Any, limits: Limits):
        self.model, self.processor, self.limits = model, processor, limits
        self.features = MediaFeatures(model, limits.cache_bytes)
        self.counts: Counter[str] = Counter()
        self._queue: deque[Job] = deque()
        self._wake = threading.Condition()
        self._running: list[tuple[Job, Answer]] = []
        self._rows: Rows | None = None
        self._next: list[int] = []  # the last token of each running row
        self._steps = 0  # since prompts were read
        self._is_closed = False
        ends = model.generation_config.eos_token_id
        ends = [processor.tokenizer.eos_token_id] if ends is None else ends
        self._ends = {end for end in (ends if isinstance(ends, list) else [ends]) if end is not None}
        self._thread = threading.Thread(target=self._run, name="xllm-engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Answers that are being written."""
        return len(self._running)

    @cached_property
    def pieces(self) -> Any:
        """The tokenizer as llguidance takes it."""
        from xllm.device.commands import token_table

        vocabulary = self.model.config.get_text_config().vocab_size
        return token_table(self.processor.tokenizer, vocabulary, sorted(self._ends) or None)

    def submit(self, jobs: list[Job]) -> None:
        """Put jobs in the queue; `RequestError` 429 if it is full, 503 if the engine is closed."""
        with self._wake:
            if self._is_closed:
                raise RequestError("the server is shutting down", 503)
            if len(self._queue) + len(jobs) > self.limits.queue:
                self.counts["refused"] += len(jobs)
                raise RequestError("too many requests are waiting; try again later", 429, code="rate_limit_exceeded")
            self._queue.extend(jobs)
            self._wake.notify()

    def close(self) -> None:
        """End after the step at hand; what is unfinished is told so."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        self._thread.join()

    # ---- the engine's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        with torch.no_grad():
            while True:
                with self._wake:
                    self._wake.wait_for(lambda: self._queue or self._running or self._is_closed)
                    if self._is_closed:
                        break
                    self._drop_dead()
                    jobs = self._take_jobs()
                if jobs:
                    self._guarded(jobs, partial(self._admit, jobs))
                if self._running:
                    self._guarded([job for job, _ in self._running], self._advance)
        for job in [*self._queue, *(job for job, _ in self._running)]:
            self._tell(job, RequestError("the server is shutting down", 503))

    def _guarded(self, jobs: list[Job], work: Callable[[], None]) -> None:
        """An error ends the answers that it befell, not the engine."""
        try:
            work()
        except Exception as error:  # noqa: BLE001  # whatever befalls the model
            if any(job in jobs for job, _ in self._running):  # their rows are in an unknown state
                self._running, self._rows, self._next = [], None, []
            elif len(jobs) > 1 and not any(
                job.has_begun for job in jobs
            ):  # whose fault it is shows when each is read alone
                for job in jobs:
                    self._guarded([job], partial(self._admit, [job]))
                return
            for job in jobs:
                self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        """Tell a client what ended its answer; of a fault of ours, no more than its kind."""
        if isinstance(error, ValueError):
            self._tell(job, RequestError(str(error)))
        elif not job.is_cancelled:
            logger.error("answering failed", exc_info=error)
            self._tell(job, RequestError(f"the model failed: {type(error).__name__}", 500))

    def _tell(self, job: Job, what: Delta | RequestError) -> None:
        if isinstance(what, RequestError):
            job.is_cancelled = True
        job.has_begun = True
        with contextlib.suppress(RuntimeError):  # the client's loop is closed
            job.tell(what)

    def _drop_dead(self) -> None:
        """Jobs that nobody waits for, and those whose time is over."""
        now, late = time.monotonic(), RequestError("the answer took longer than the server allows", 504)
        for job in [*self._queue, *(job for job, _ in self._running)]:
            if now > job.deadline and not job.is_cancelled:
                self.counts["timed_out"] += 1
                self._tell(job, late)
        self._queue = deque(job for job in self._queue if not job.is_cancelled)
        self._keep([place for place, (job, _) in enumerate(self._running) if not job.is_cancelled])

    def _take_jobs(self) -> list[Job]:
        """The first of the queue, and others that can be read with it: at most half of what is read may be padding."""
        free = self.limits.rows - len(self._running)
        if not self._queue or free <= 0:
            return []
        if self._rows is not None and (self._steps < PAUSE or not self._rows.can_join):
            return []
        jobs: list[Job] = []
        for job in self._queue:
            lengths = [one.length for one in [*jobs, job]]
            padded = max(lengths) * len(lengths)
            if jobs and (len(jobs) == free or padded > self.limits.prefill_tokens):
                break
            if padded <= 2 * sum(lengths):
                jobs.append(job)
        self._queue = deque(job for job in self._queue if job not in jobs)
        return jobs

    def _admit(self, jobs: list[Job]) -> None:
        """Read the prompts of jobs, say their first tokens, and let them join the batch."""
        self._steps = 0
        width = max(job.length for job in jobs)
        text = {name: self._padded(jobs, name, width) for name in ("input_ids", "attention_mask")}
        features = self.features.of([job.inputs for job in jobs])
        rows, scores = read_prompts(self.model, **text, modality_features=features or None)
        self.counts["prompt_tokens"] += sum(job.length for job in jobs)
        tokenizer = self.processor.tokenizer
        answers = []
        for job in jobs:
            pieces = self.pieces if job.sampling.grammar is not None else None
            answers.append((job, Answer(job.sampling, tokenizer, self._ends, pieces, job.streams)))
        tokens = self._choose(rows, scores, answers)
        left = self._say(answers, tokens)
        if len(left) < len(jobs):
            if not left:
                return
            rows.keep(left)
        self._rows = rows if self._rows is None else self._rows.join(rows)
        self._running += [answers[place] for place in left]
        self._next += [tokens[place] for place in left]

    def _padded(self, jobs: list[Job], name: str, width: int) -> torch.Tensor:
        empty = self.processor.tokenizer.pad_token_id or 0 if name == "input_ids" else 0
        rows = [torch.nn.functional.pad(job.inputs[name], (width - job.length, 0), value=empty) for job in jobs]
        return torch.cat(rows).to(self.model.device)

    def _advance(self) -> None:
        """One more token for each running answer."""
        assert self._rows is not None
        self._steps += 1
        scores = self._rows.step(self.model, self._next)
        self._next = self._choose(self._rows, scores, self._running)
        self._keep(self._say(self._running, self._next))

    def _choose(self, rows: Rows, scores: torch.Tensor, answers: list[tuple[Job, Answer]]) -> list[int]:
        """The next token of each row; the model's own settings (a repetition penalty, say) see that row's tokens."""
        if all(isinstance(one, SuppressPlaceholders) for processors in rows.processors for one in processors):
            scores = rows.processors[0](answers[0][0].inputs["input_ids"], scores)
        else:
            for place, (job, answer) in enumerate(answers):
                ids = torch.cat([job.inputs["input_ids"], torch.tensor([answer.ids], dtype=torch.long)], dim=1)
                scores[place] = rows.processors[place](ids.to(scores.device), scores[place : place + 1])[0]
        tokens = scores.argmax(-1).tolist()
        for place, (job, answer) in enumerate(answers):
            if not answer.sampling.is_plain:
                try:
                    tokens[place] = answer.choose(scores[place])
                except Exception as error:  # noqa: BLE001  # a schema, say: nobody else is ended for it
                    self._fail(job, error)
        return tokens

    def _say(self, answers: list[tuple[Job, Answer]], tokens: list[int]) -> list[int]:
        """Tell each client its token; the places of those whose answers go on."""
        left, told = list[int](), list[tuple[Job, Delta]]()
        for place, ((job, answer), token) in enumerate(zip(answers, tokens)):
            if job.is_cancelled:
                continue
            delta = answer.add(token)
            self.counts["tokens"] += 1
            if delta.finish_reason is None:
                left.append(place)
            if job.streams or delta.finish_reason is not None:
                told.append((job, delta))
        for job, delta in told:  # at once, so that who waits is woken once
            self._tell(job, delta)
        return left

    def _keep(self, places: list[int]) -> None:
        """Only the running answers at these places."""
        if len(places) == len(self._running):
            return
        self._running = [self._running[place] for place in places]
        self._next = [self._next[place] for place in places]
        if not places:
            self._rows = None
        elif self._rows is not None:
            self._rows.keep(places)

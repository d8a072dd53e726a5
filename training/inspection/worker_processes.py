# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Work spread over processes that may die: what one was at when it was killed is known, and tried once more.

`multiprocessing.Pool` waits for ever for a killed process, `ProcessPoolExecutor` gives everything up. Here each has a
pipe of its own and answers in order, so the task that it died of is the first one without an answer. The processes are
started without forking this one (it may have threads), by a server that has imported what they need.
"""

import contextlib
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


WAITING = 4  # tasks that a process has been given; it need not wait for the next one
MOST_FALSE_STARTS = 3


@dataclass
class WorkerDied:
    """Instead of a result: the process died of this task, twice."""

    how: str  # e.g. "killed by SIGSEGV"


@dataclass
class TaskFailed:
    """Instead of a result: an exception that the task's function should not have let through."""

    error: str
    details: str


def default_workers() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_tasks(
    make: Callable[..., Callable[[Any], Any]],
    arguments: tuple,
    tasks: Iterable[Any],
    workers: int,
    on_death: Callable[[str], None] = lambda how: None,
) -> Iterator[tuple[Any, Any]]:
    """`(task, make(*arguments)(task))` of each task, in order of the tasks.

    Args:
        make: importable by name; called once in each process. It and `arguments` are pickled.
        tasks: taken as they are needed, a few at a time.
        workers (`int`): processes; 0 does everything in this one.
        on_death: called with how a process died; its task is tried again in a fresh one.

    Yields:
        each task and its result: `TaskFailed` if it raised, `WorkerDied` if two processes died of it.

    Raises:
        ChildProcessError: processes die before they have begun.
    """
    if workers < 1:
        function = make(*arguments)
        yield from ((task, _answer(function, task)) for task in tasks)
        return
    pool = _Pool(make, arguments, on_death)
    try:
        yield from pool.run(enumerate(tasks), workers)
    finally:
        pool.close()


def _answer(function: Callable[[Any], Any], task: Any) -> Any:
    try:
        return function(task)
    except Exception as error:  # noqa: BLE001  # one broken task must not end the others
        return TaskFailed(f"{type(error).__name__}: {error}", traceback.format_exc())


def _serve(connection: Connection, make: Callable, arguments: tuple) -> None:
    """A process: says that it is ready, then answers tasks until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business, which then ends this one
    function = make(*arguments)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(None)
        while True:
            connection.send(_answer(function, connection.recv()))


class _Worker:
    """A process, its pipe, and the tasks it has been given: (place, task, how often it was tried)."""

    def __init__(self, context, make: Callable, arguments: tuple):
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make, arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.given: deque[tuple[int, Any, int]] = deque()
        self.is_ready = False

    def how_it_died(self) -> str:
        self.process.join()
        status = self.process.exitcode or 0
        return f"killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class _Pool:
    def __init__(self, make: Callable, arguments: tuple, on_death: Callable[[str], None]):
        methods = multiprocessing.get_all_start_methods()
        self.context: Any = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
        if "forkserver" in methods:
            self.context.set_forkserver_preload([__name__, make.__module__])
        self.make, self.arguments, self.on_death = make, arguments, on_death
        self.workers: list[_Worker] = []
        self.again: deque[tuple[int, Any, int]] = deque()
        self.false_starts = 0

    def run(self, tasks: Iterator[tuple[int, Any]], workers: int) -> Iterator[Any]:
        results: dict[int, Any] = {}
        place = 0
        fresh = ((index, task, 0) for index, task in tasks)
        while True:
            while (task := self._next(fresh)) is not None:
                worker = self._free(workers)
                if worker is None:
                    self.again.appendleft(task)
                    break
                self._give(worker, task)
            if not any(worker.given for worker in self.workers) and not self.again:
                break
            results.update(self._collect())
            while place in results:
                yield results.pop(place)
                place += 1

    def _next(self, fresh: Iterator) -> tuple[int, Any, int] | None:
        return self.again.popleft() if self.again else next(fresh, None)

    def _free(self, workers: int) -> _Worker | None:
        """The process with the fewest tasks, a new one if there may be more; None if all have enough."""
        least = min(self.workers, key=lambda worker: len(worker.given), default=None)
        if len(self.workers) < workers and (least is None or least.given):
            self.workers.append(least := _Worker(self.context, self.make, self.arguments))
        return least if least is not None and len(least.given) < WAITING else None

    def _give(self, worker: _Worker, task: tuple[int, Any, int]) -> None:
        worker.given.append(task)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dead: `_collect` finds out
            worker.connection.send(task[1])

    def _collect(self) -> dict[int, Any]:
        """What has been answered, once anything has; places of the tasks."""
        results: dict[int, Any] = {}
        ready = wait([item for worker in self.workers for item in (worker.connection, worker.process.sentinel)])
        for worker in list(self.workers):
            if not {worker.connection, worker.process.sentinel} & set(ready):
                continue
            try:
                while worker.connection.poll():
                    answer = worker.connection.recv()
                    if worker.is_ready:
                        place, task, _ = worker.given.popleft()
                        results[place] = (task, answer)
                    worker.is_ready, self.false_starts = True, 0
            except (EOFError, OSError):
                results.update(self._bury(worker))
            else:
                if worker.process.sentinel in ready:
                    results.update(self._bury(worker))
        return results

    def _bury(self, worker: _Worker) -> dict[int, Any]:
        """Takes a dead process's tasks back; the result of the one that it died of, if that was the second time."""
        self.workers.remove(worker)
        worker.connection.close()
        how = worker.how_it_died()
        self.on_death(how)
        waiting = list(worker.given)
        if not worker.is_ready:
            self.false_starts += 1
            if self.false_starts > MOST_FALSE_STARTS:
                raise ChildProcessError(f"worker processes die before they have begun: {how}")
        elif waiting:
            place, task, tries = waiting.pop(0)
            if tries:
                self.again.extendleft(reversed(waiting))
                return {place: (task, WorkerDied(how))}
            waiting.insert(0, (place, task, tries + 1))
        self.again.extendleft(reversed(waiting))
        return {}

    def close(self) -> None:
        for worker in self.workers:
            worker.connection.close()
            worker.process.terminate()
        for worker in self.workers:
            worker.process.join()


__all__ = ["TaskFailed", "WorkerDied", "default_workers", "map_tasks"]

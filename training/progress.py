# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The line that every long step shows on standard error: how far it is, how long it took, how long it will take."""

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm import tqdm


SILENCE = 10.0  # seconds that may pass without a line where standard error is no terminal


def progress_line(
    title: str,
    done: int,
    total: int | None,
    elapsed: float,
    what: str,
    facts: str = "",
    first: int = 0,
    since: float | None = None,
) -> str:
    """E.g. "stage 2 (speech): step 50/400, loss 1.2345, 00:12 elapsed, ETA 01:24".

    Args:
        total (`int`, *optional*): of `done`; unknown for a stream, and so is the time left.
        elapsed (`float`): seconds; `since` those since the one numbered `first`, by which the time left is judged.
        what, facts (`str`): what is counted; what else is to be said.
    """
    since = elapsed if since is None else since
    count = f"{done:,}" if total is None else f"{done}/{total}"
    parts = [f"{what} {count}", *([facts] if facts else []), f"{tqdm.format_interval(elapsed)} elapsed"]
    if total is not None:
        left = tqdm.format_interval(since / (done - first) * (total - done)) if done > first else "?"
        parts.append(f"ETA {left}")
    return f"{title}: {', '.join(parts)}"


class SharedLines:
    """Standard error for one of several processes that show their progress on it: line by line, nothing rewritten."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return False


class ProgressLine:
    """One line that is rewritten on a terminal; on anything else, a line every ten seconds and at the end.

    Args:
        title, what (`str`): what is done, and what is counted.
        total (`int`, *optional*): how many there are.
        stream (`TextIO`, *optional*): default standard error; `clock`: seconds that only grow.
    """

    def __init__(
        self,
        title: str,
        what: str,
        total: int | None = None,
        stream: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.title, self.what, self.total = title, what, total
        self.stream, self.clock = sys.stderr if stream is None else stream, clock
        self.started = self.shown = clock()
        self.first: tuple[int, float] | None = None  # how far it was, and when: before that, processes had to start

    def update(self, done: int, facts: str = "", is_last: bool = False) -> None:
        """Show that `done` of them are done, if it is time to."""
        now, on_terminal = self.clock(), self.stream.isatty()
        self.first = self.first or (done, now)
        if not is_last and now - self.shown < (0.1 if on_terminal else SILENCE):
            return
        self.shown = now
        steps, begun = self.first
        since = (steps, now - begun) if done > steps else (0 if done == self.total else done, now - self.started)
        line = progress_line(self.title, done, self.total, now - self.started, self.what, facts, *since)
        self.stream.write(f"\r{line}\033[K" + "\n" * is_last if on_terminal else f"{line}\n")
        self.stream.flush()


__all__ = ["SILENCE", "ProgressLine", "SharedLines", "progress_line"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Forks processes that run scripts: importing all they need takes longer than most runs of tests.

A line of JSON on standard input asks for a run: the script and its arguments, two files for what it prints, the
environment of each process, a limit in seconds. A line on standard output has their exit codes. Nothing runs in the
process that forks: each run begins as in a new process, with everything imported. As under torchrun, all end when one
fails.
"""

import json
import os
import runpy
import signal
import sys
import time
from pathlib import Path

import several_runs

import xllm.training.train  # noqa: F401 (what commands import when they are called)


def become(arguments: list[str], outputs: list[str], environment: dict[str, str]) -> None:
    """This process is `python *arguments` from here on."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.update(environment)
    sys.argv, sys.path[0] = arguments, str(Path(arguments[0]).parent)
    runpy.run_path(arguments[0], run_name="__main__")


def ends_of(pids: list[int], limit: float) -> list[int]:
    """Exit codes; when one fails, or it takes too long, the others get SIGTERM, and half a minute later SIGKILL."""
    codes: dict[int, int] = {}
    send, at = signal.SIGTERM, time.monotonic() + limit
    while left := [pid for pid in pids if pid not in codes]:
        for pid in left:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
                if codes[pid] and send == signal.SIGTERM:
                    at = min(at, time.monotonic() + 0.1)
        if time.monotonic() > at:
            for pid in left:
                if pid not in codes:
                    os.kill(pid, send)
            send, at = signal.SIGKILL, time.monotonic() + 30
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def main() -> None:
    """Answer requests; a forked process returns when its script is over, and ends as any does."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    several_runs.without_compiler()
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for environment in request["environments"]:
            if (pid := os.fork()) == 0:
                return become(request["arguments"], request["outputs"], environment)
            pids.append(pid)
        print(json.dumps(ends_of(pids, request["limit"])), file=answers, flush=True)


if __name__ == "__main__":
    main()

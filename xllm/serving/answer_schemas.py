# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""JSON Schemas that answers are held to.

A schema of one line can take minutes and gigabytes to understand (an `allOf` of a few patterns), and nothing stops
llguidance meanwhile. So another process reads it first, which may take little of both.
"""

import json
import signal
import subprocess
import sys
import threading
from collections import OrderedDict
from typing import Any

from xllm.serving.limits import Limits, RequestError


KEPT = 64  # schemas: clients ask with the same ones again and again
TRIAL = """
import resource, sys
seconds, memory = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
from llguidance import LLMatcher
LLMatcher.validate_grammar(sys.stdin.read())
"""


class AnswerSchemas:
    """Makes llguidance's matchers of schemas."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._kept: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, schema: dict, pieces: Any) -> Any:
        """A schema's matcher at its beginning, to be copied.

        Args:
            pieces: the tokenizer as llguidance takes it.

        Raises:
            RequestError: it is no JSON Schema, has a rule that decoding cannot follow, or takes too much.
        """
        text = json.dumps(schema)
        with self._lock:
            found = self._kept.get(text)
        found = found or self._made(schema, len(text), pieces)
        with self._lock:
            self._kept[text] = found
            self._kept.move_to_end(text)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found

    def _made(self, schema: dict, size: int, pieces: Any) -> Any:
        from xllm.device.commands import DeviceCommands, check, grammar_of, matcher_of

        if size > self._limits.schema_bytes:
            raise _error(f"a schema of {size} bytes is longer than {self._limits.schema_bytes}")
        try:
            grammar = grammar_of(schema)
            self._try(grammar)
            DeviceCommands(schema)
            found = matcher_of(grammar, pieces)
            check(found)
        except (ValueError, RecursionError) as error:
            raise RequestError(str(error).replace("commands", "response_format"), param="response_format") from error
        return found

    def _try(self, grammar: str) -> None:
        seconds, memory = self._limits.schema_seconds, self._limits.schema_memory
        command = [sys.executable, "-P", "-c", TRIAL, str(seconds), str(memory)]
        try:
            trial = subprocess.run(command, input=grammar.encode(), capture_output=True)
        except OSError as error:
            message = f"response_format: no process can be started that reads schemas ({error.strerror})"
            raise RequestError(message, 500) from error
        if -trial.returncode in (signal.SIGKILL, signal.SIGXCPU, signal.SIGABRT):  # time, time, memory
            raise _error(f"reading this schema takes more than {seconds} s or {memory >> 20} MiB: make it simpler")
        if trial.returncode:
            *_, reason = trial.stderr.decode(errors="replace").strip().splitlines() or [f"exit {trial.returncode}"]
            raise RequestError(f"response_format: the process that reads schemas failed ({reason})", 500)


def _error(reason: str) -> RequestError:
    return RequestError(f"response_format: {reason}", param="response_format")

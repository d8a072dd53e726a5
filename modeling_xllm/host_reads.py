# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Numbers on a device that the host must know, read together: each read waits for all that was launched before it.

Inside a function decorated with [`reads_together`], what is checked and asked for waits until somebody needs a number;
all of it then comes in one transfer, and what a check found wrong is said. Elsewhere each is read at once.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers.utils import torch_compilable_check
from transformers.utils.import_utils import is_tracing


class _Waiting(threading.local):
    asked: list["Asked"] | None = None


_WAITING = _Waiting()


class Asked:
    """Whole numbers on a device that the host will need; `message` says what is wrong where one of them is 0."""

    def __init__(self, numbers: torch.Tensor, message: Callable[[], str] | None = None):
        self.numbers, self.message = numbers.detach().flatten(), message
        self._values: list[int] | None = None
        if _WAITING.asked is not None:
            _WAITING.asked.append(self)

    def values(self) -> list[int]:
        """The numbers; the first call reads all that waits."""
        if self._values is None:
            waiting = [self] if _WAITING.asked is None else _WAITING.asked
            _read(waiting if self in waiting else [*waiting, self])
            waiting.clear()
        return self._values  # type: ignore[return-value]


def _read(waiting: list[Asked]) -> None:
    for device in dict.fromkeys(asked.numbers.device for asked in waiting):
        here = [asked for asked in waiting if asked.numbers.device == device]
        values = torch.cat([asked.numbers.long() for asked in here]).tolist()
        for asked in here:
            asked._values, values = values[: len(asked.numbers)], values[len(asked.numbers) :]
    for asked in waiting:
        if asked.message is not None and not all(asked._values or ()):
            raise ValueError(asked.message())


def check(ok: torch.Tensor, message: Callable[[], str]) -> None:
    """A `ValueError` with `message()` unless all of `ok` are true, at the latest at the end of what reads together.
    A graph asserts it on the device, without the message: it would break where something is read."""
    if is_tracing():
        torch._assert_async(ok.all(), "an input that a check refuses: it is named where this runs without a graph")
    elif _WAITING.asked is None:
        torch_compilable_check(ok.all(), message)
    else:
        Asked(ok.all(), message)


def reads_together(function: Callable) -> Callable:
    """A function whose checks and questions wait for each other. If it fails, what they say is the better reason."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs) -> Any:
        if _WAITING.asked is not None or is_tracing():  # the latter asks the device
            return function(*args, **kwargs)
        waiting: list[Asked] = []
        _WAITING.asked = waiting
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            _WAITING.asked = None
            checks = [asked for asked in waiting if asked.message is not None]
            try:
                _read(checks)
            except ValueError as reason:
                raise reason from error
            raise
        finally:
            _WAITING.asked = None
        if any(asked.message is not None for asked in waiting):
            _read(waiting)
        return result

    return wrapper


def true_places(mask: torch.Tensor, count: int) -> torch.LongTensor:
    """Where in the flattened `mask` its `count` true values are, in order; `nonzero` would wait to count them."""
    return (~mask.flatten()).byte().argsort(stable=True)[:count]

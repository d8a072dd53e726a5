# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Runs in processes of their own, which may be killed at a chosen call, and what they have learnt."""

import hashlib
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

from accelerate.state import AcceleratorState
from safetensors import safe_open


TRAINER = {
    "num_train_epochs": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "logging_steps": 1,
    "learning_rate": 1e-2, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "use_cpu": True,
}  # fmt: skip


def digest(folder):
    """SHA-256 over the bytes of all tensors in a folder."""
    sums = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                data = file.get_tensor(name).contiguous().view(-1).numpy().tobytes()
                sums[f"{path.name} {name}"] = hashlib.sha256(data).hexdigest()
    assert sums
    return sums


def in_child(function):
    """Run something in a process of its own that costs no new imports; returns its exit status, negative if killed."""
    if (pid := os.fork()) == 0:
        status = 70
        try:
            function()
            status = 0
        except KeyboardInterrupt as error:
            sys.__stderr__.write(f"{error}\n")
            status = getattr(error, "status", 130)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(function, target, name, number):
    """Run something, and SIGKILL the process at the given call of `target.name`, before it does anything."""

    def run():
        calls, original = iter(range(1, 10_000)), getattr(target, name)

        def call(*args, **kwargs):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(target, name, call)
        function()

    return in_child(run)


def in_two_processes(function):
    """Run something as two ranks of gloo; their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pids = []
    for rank in ("0", "1"):
        if (pid := os.fork()) == 0:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            os.environ.update(names, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
            AcceleratorState._reset_state(reset_partial_state=True)
            os._exit(in_child(function) % 256)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

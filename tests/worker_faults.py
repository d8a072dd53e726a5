# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Tasks that kill their process; this file imports nothing of the package, so that processes start at once."""

import os
import signal
from pathlib import Path


def make_doubler(folder):
    """Doubles numbers; "kill" takes its process along, "once" the first time only, "raise" raises."""
    once = Path(folder, "once")

    def double(task):
        if task == "raise":
            raise RuntimeError("a task that fails")
        if task == "once" and not once.exists():
            once.touch()
            task = "kill"
        if task == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return 2 * task

    return double


def fail_to_start():
    """A process that cannot begin."""
    raise SystemExit(3)

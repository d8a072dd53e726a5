# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a run shows and leaves behind while it trains: a progress line with an ETA, `log.jsonl`, `losses.png`."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from transformers import TrainerCallback

from xllm.training.plots import plot_losses


LOG_NAME = "log.jsonl"
PLOT_NAME = "losses.png"


def format_seconds(seconds: float) -> str:
    """Seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class ProgressCallback(TrainerCallback):
    """One line that is rewritten on a terminal; on anything else, a line per logged step.

    Args:
        title (`str`): what is trained, e.g. "stage 2 (speech)".
        stream (`TextIO`, *optional*): default standard error.
        clock (`Callable`): seconds that only grow.
    """

    def __init__(self, title: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self.title = title
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.started, self.first_step, self.loss = 0.0, 0, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = self.clock(), state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.stream.isatty():
            self.stream.write(f"\r{self.line(state)}\033[K")
            self.stream.flush()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        self.loss = logs["loss"]
        if not self.stream.isatty():
            self.stream.write(self.line(state) + "\n")
            self.stream.flush()

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero and self.stream.isatty():
            self.stream.write("\n")

    def line(self, state) -> str:
        """E.g. "stage 2 (speech): step 50/400, loss 1.2345, 0:12 elapsed, ETA 1:24"."""
        elapsed = self.clock() - self.started
        done = state.global_step - self.first_step
        eta = format_seconds(elapsed / done * (state.max_steps - state.global_step)) if done else "?"
        loss = "" if self.loss is None else f", loss {self.loss:.4f}"
        steps = f"step {state.global_step}/{state.max_steps}"
        return f"{self.title}: {steps}{loss}, {format_seconds(elapsed)} elapsed, ETA {eta}"


class JsonlCallback(TrainerCallback):
    """Writes every log entry to `log.jsonl` in `folder`, and draws `losses.png` of it at each save and at the end.

    Args:
        folder (`Path`): where; created when training begins.
        skipped (`Callable`, *optional*): gives the samples left out so far; their number goes into the log, their
            names into its last entry.
    """

    def __init__(self, folder: Path, skipped: Callable[[], list[str]] | None = None):
        self.folder = Path(folder)
        self.skipped = skipped

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            if state.global_step == 0:
                (self.folder / LOG_NAME).write_text("", encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        entry = {
            "step": state.global_step,
            "epoch": logs.get("epoch", state.epoch),
            "time": round(time.time(), 3),
            **logs,
        }
        skipped = self.skipped() if self.skipped else []
        if skipped:
            entry["skipped_samples"] = len(skipped)
        if skipped and "train_runtime" in logs:
            entry["skipped"] = skipped
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def on_save(self, args, state, control, **kwargs):
        self._plot(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._plot(state)

    def _plot(self, state) -> None:
        if state.is_world_process_zero:
            plot_losses(self.folder / LOG_NAME, self.folder / PLOT_NAME)


__all__ = ["LOG_NAME", "PLOT_NAME", "JsonlCallback", "ProgressCallback", "format_seconds"]

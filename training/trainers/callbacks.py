# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a run shows and leaves behind while it trains: a progress line with an ETA, `log.jsonl`, `losses.png`."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import TrainerCallback

from xllm.modeling_xllm.weight_files import replacing
from xllm.training.progress import SILENCE, progress_line


LOG_NAME = "log.jsonl"
PLOT_NAME = "losses.png"
RUNTIME = "train_runtime"  # of the last entry


class ProgressCallback(TrainerCallback):
    """One line that is rewritten on a terminal; on anything else, a line per logged step and every ten seconds.

    Args:
        title (`str`): what is trained, e.g. "stage 2 (speech)".
        stream (`TextIO`, *optional*): default standard error.
        clock (`Callable`): seconds that only grow.
    """

    def __init__(self, title: str, stream: Any = None, clock: Callable[[], float] = time.monotonic):
        self.title = title
        self.stream = sys.stderr if stream is None else stream
        self.clock = clock
        self.started, self.first_step, self.loss = 0.0, 0, None
        self.shown = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started = self.shown = self.clock()
        self.first_step = state.global_step

    def on_step_end(self, args, state, control, **kwargs):
        if self.stream.isatty():
            self._write(state, f"\r{self.line(state)}\033[K")
        elif self.clock() - self.shown >= SILENCE:
            self._write(state, self.line(state) + "\n")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.loss = logs["loss"]
            if not self.stream.isatty():
                self._write(state, self.line(state) + "\n")

    def on_train_end(self, args, state, control, **kwargs):
        if self.stream.isatty():
            self._write(state, "\n")

    def _write(self, state, text: str) -> None:
        if state.is_world_process_zero:
            self.shown = self.clock()
            self.stream.write(text)
            self.stream.flush()

    def line(self, state) -> str:
        """E.g. "stage 2 (speech): step 50/400, loss 1.2345, 00:12 elapsed, ETA 01:24"."""
        elapsed = self.clock() - self.started
        loss = "" if self.loss is None else f"loss {self.loss:.4f}"
        return progress_line(self.title, state.global_step, state.max_steps, elapsed, "step", loss, self.first_step)


class JsonlCallback(TrainerCallback):
    """Writes every log entry to `log.jsonl` in `folder`, and draws `losses.png` of it at each save and at the end.

    Args:
        folder (`Path`): where; created when training begins.
        skipped (`Callable`, *optional*): gives the samples left out so far; their number goes into the log, their
            names into its last entry.
        cuts (`Callable`, *optional*): gives how many samples were cut so far, by what was cut.
    """

    def __init__(
        self,
        folder: Path,
        skipped: Callable[[], list[str]] | None = None,
        cuts: Callable[[], dict[str, int]] = dict,
    ):
        self.folder = Path(folder)
        self.skipped, self.cuts = skipped, cuts

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            log = self.folder / LOG_NAME
            kept = read_log(log) if state.global_step and log.is_file() else []
            lines = [line for line, entry in kept if entry["step"] <= state.global_step and RUNTIME not in entry]
            with replacing(log) as aside:
                aside.write_text("".join(lines), encoding="utf-8")  # what comes after the checkpoint comes again

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        entry = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3), **logs}
        if skipped := self.skipped() if self.skipped else []:
            entry["skipped_samples"] = len(skipped)
            if RUNTIME in logs:
                entry["skipped"] = skipped
        entry |= {f"cut_{name}": count for name, count in self.cuts().items()}
        with (self.folder / LOG_NAME).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            plot_losses(self.folder / LOG_NAME, self.folder / PLOT_NAME)

    on_train_end = on_save


class NoCheckpointAtTheEnd(TrainerCallback):
    """The Trainer saves after the last step too; the stage's own checkpoint is written then anyway."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps:
            control.should_save = False


def read_log(log: Path) -> list[tuple[str, dict]]:
    """(line, entry) of a `log.jsonl`, less a last line that was cut."""
    entries = []
    for line in log.read_text(encoding="utf-8").splitlines(keepends=True):
        with suppress(ValueError):
            entries.append((line, json.loads(line)))
    return entries


def loss_curves(entries: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) by curve: "loss", "eval_loss", and each key that names a loss of a modality or a term."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        for key, value in entry.items():
            is_loss = key == "loss" or key.startswith("loss_") or key.endswith("_loss")
            if is_loss and key != "train_loss" and isinstance(value, (int, float)):
                curves.setdefault(key, []).append((entry["step"], value))
    return curves


def plot_losses(log: Path, output: Path) -> None:
    """Draw the curves of a `log.jsonl` as a PNG; no file where it holds none yet."""
    curves = loss_curves([entry for _, entry in read_log(log)])
    if not curves:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    for name, points in curves.items():
        steps, losses = zip(*points)
        width = 2.0 if name == "loss" else 1.2
        axes.plot(steps, losses, marker="o" if len(points) < 3 else None, linewidth=width, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token or item)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=120)


__all__ = ["LOG_NAME", "PLOT_NAME", "JsonlCallback", "NoCheckpointAtTheEnd", "ProgressCallback", "loss_curves"]
__all__ += ["plot_losses"]

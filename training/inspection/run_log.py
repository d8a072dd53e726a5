# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The curves of a `log.jsonl` that is being written, of which each look reads only what is new."""

import json
from statistics import median
from typing import Any

from xllm.training.inspection.run_files import RunFiles, Tail
from xllm.training.trainers.callbacks import LOG_NAME, RUNTIME, loss_curves


MOST_POINTS = 2_000  # of a curve: of a longer one every second point is left out, the last aside
RECENT = 20  # entries by which the time left is judged
COUNTS = ("skipped_samples", "cut_", "features_damaged")  # entries that count what was left out or done again
# What is said of the whole run, or of the machine, and is no curve of learning.
NO_CURVES = ("step", "epoch", "time", "train_", *COUNTS)
NO_CURVE_ENDS = ("_runtime", "_per_second", "_flos")
LARGEST = 1e100
GROUPS = ("losses", "metrics", "learning_rate", "grad_norm", "others")

Point = tuple[float, float]


def group_of(name: str) -> str | None:
    """In which picture a number of the log is drawn; `None`: in none."""
    if name.startswith(NO_CURVES) or name.endswith(NO_CURVE_ENDS):
        return None
    if loss_curves([{"step": 0, name: 0.0}]):
        return "losses"
    if name.startswith(("learning_rate", "grad_norm")):
        return "learning_rate" if name.startswith("learning") else "grad_norm"
    return "metrics" if name.startswith("eval_") else "others"


class RunLog:
    """What the log of a stage has said so far.

    Attributes:
        curves: group -> name -> (step, value), thinned where they are long.
        step, epoch, time: of the last entry; began: the time of the first.
        counts: what was left out, by name. damaged: lines that are none of JSON. infinite: values that are no numbers.
        is_over: training has come to its end.
    """

    def __init__(self, files: RunFiles, folder: str):
        self._tail = Tail(files, f"{folder}/{LOG_NAME}")
        self._empty()

    def _empty(self) -> None:
        self.curves: dict[str, dict[str, list[Point]]] = {group: {} for group in GROUPS}
        self.step, self.epoch, self.entries = 0, 0.0, 0
        self.began, self.time = 0.0, 0.0
        self.counts: dict[str, int] = {}
        self.damaged, self.infinite, self.is_over = 0, 0, False
        self.skipped: list[str] = []
        self._pace: list[tuple[float, int]] = []

    def look(self) -> bool:
        """Read on; whether anything was new."""
        begun, lines = self._tail.look()
        if begun:
            self._empty()
        for _, line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                self.damaged += bool(line.strip())
                continue
            if isinstance(entry, dict):
                self.take(entry)
        return begun or bool(lines)

    def take(self, entry: dict[str, Any]) -> None:
        """One entry of the log."""
        step = finite(entry.get("step"))
        if step is None:
            self.damaged += 1
            return
        self.entries += 1
        self.step, self.is_over = int(step), RUNTIME in entry
        self.epoch = finite(entry.get("epoch")) or self.epoch
        if now := finite(entry.get("time")):
            self.time, self.began = now, self.began or now
            if "loss" in entry:
                self._pace = [*self._pace[-RECENT:], (self.time, self.step)]
        if isinstance(entry.get("skipped"), list):
            self.skipped = [str(name) for name in entry["skipped"]]
        for name, value in entry.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if name.startswith(COUNTS):
                self.counts[name] = int(finite(value) or 0)
            elif (group := group_of(name)) is not None:
                self._add(group, name, finite(value))

    def _add(self, group: str, name: str, value: float | None) -> None:
        if value is None:
            self.infinite += 1
            return
        points = self.curves[group].setdefault(name, [])
        points.append((self.step, value))
        if len(points) > MOST_POINTS:
            del points[-2:0:-2]

    def last(self, name: str) -> float | None:
        """The last value of a curve."""
        found = self.curves[group_of(name) or "others"].get(name)
        return found[-1][1] if found else None

    def seconds_per_step(self) -> float | None:
        """The median over the last entries: a pause, or a start anew, does not count."""
        paces = [
            (later - before) / (done - begun)
            for (before, begun), (later, done) in zip(self._pace, self._pace[1:])
            if done > begun and later > before
        ]
        return median(paces) if paces else None


def finite(value: Any) -> float | None:
    """A number that is one, of a size that numbers have; `None` for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if abs(value) < LARGEST else None
    except OverflowError:  # a whole number of hundreds of digits
        return None


__all__ = ["GROUPS", "RunLog", "finite", "group_of"]

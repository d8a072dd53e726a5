# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Loss curves of a run as a PNG: one curve for the whole, one per modality or term."""

import json
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def read_log(path: str | Path) -> list[dict]:
    """The entries of a `log.jsonl`."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line]


def loss_curves(entries: list[dict]) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) by curve: "loss", "eval_loss", and each key that names a loss of a modality or a term."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for entry in entries:
        for key, value in entry.items():
            is_loss = key in ("loss", "eval_loss") or key.startswith("loss_") or key.endswith("_loss")
            if is_loss and key != "train_loss" and isinstance(value, (int, float)):
                curves.setdefault(key, []).append((entry["step"], value))
    return curves


def plot_losses(log: str | Path, output: str | Path) -> bool:
    """Draw the curves of a `log.jsonl`; False, and no file, where it holds none yet."""
    curves = loss_curves(read_log(log))
    if not curves:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, points in curves.items():
        steps, losses = zip(*points)
        width = 2.0 if name == "loss" else 1.2
        axes.plot(steps, losses, marker="o" if len(points) < 3 else None, linewidth=width, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per token or item)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(output, dpi=120)
    return True


__all__ = ["loss_curves", "plot_losses", "read_log"]

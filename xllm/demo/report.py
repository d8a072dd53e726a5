# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the demo leaves for a reader: results.json, a picture of the table, some samples."""

import json
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def write_report(output: Path, results: dict[str, Any]) -> None:
    """Write `results.json` and `results.png` to `output`."""
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = FigureCanvasAgg(figure).figure.subplots()
    tasks = results["tasks"]
    names = list(tasks)
    # An error rate is drawn as what is right, so that all bars tell the same way.
    right = [max(0.0, 1 - cell["value"]) if cell["metric"] == "cer" else cell["value"] for cell in tasks.values()]
    chance = [1 - min(cell["chance"], 1) if cell["metric"] == "cer" else cell["chance"] for cell in tasks.values()]
    axes.bar(names, right, color="#3b6ea5", label="right (speech: 1 - CER)")
    axes.bar(names, chance, color="#c9c9c9", width=0.4, label="chance")
    for place, (name, value) in enumerate(zip(names, right)):
        axes.text(place, value + 0.02, f"{value:.1%}\nn = {tasks[name]['n']}", ha="center", fontsize=8)
    axes.set_ylim(0, 1.2)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(output / "results.png", dpi=120)

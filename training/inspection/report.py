# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`report.html` of a stage: what was trained and what was not, the curves, samples before and after, the environment.

One file that needs nothing beside it, and in which nothing from outside can run (see `html_page`).
"""

import base64
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers.utils import logging

from xllm.training.batches.collator import XLLMDataCollator, text_of
from xllm.training.data.dataset import ChatDataset, describe
from xllm.training.evaluation.answers import answer_rows
from xllm.training.inspection.explain import media_of_sample
from xllm.training.inspection.html_page import document, figure, safe_text, table, write_page
from xllm.training.preparing import Prepared
from xllm.training.saving.checkpoints import is_full
from xllm.training.stages import Stage, count_parameters
from xllm.training.trainers.callbacks import LOG_NAME, PLOT_NAME, read_log


REPORT_NAME = "report.html"
NEW_TOKENS = 48
LIBRARIES = ("xllm-transformers", "torch", "transformers", "accelerate", "safetensors", "datasets", "peft", "av")

logger = logging.get_logger(__name__)


class StageReport:
    """Made when a stage begins, with the answers of the untrained model; written when it is done.

    Args:
        model, learner: the X-LLM, and what is trained: itself, or a stage-1 model around its modules.
        prepared (`Prepared`): the stage. `prepared.spec.report_samples` samples of its `data.eval`, or else of its
            training data, are shown with their answers; a Q-Former's stage 1 has no answers.
        begun (`dict`, *optional*): that of an earlier report of the stage: counts and answers from its beginning.
    """

    def __init__(self, model, processor, learner, prepared: Prepared, begun: Mapping | None = None):
        self.model, self.processor, self.learner, self.prepared = model, processor, learner, prepared
        self.notes: list[str] = []
        self.samples = list(self._choose())
        if begun is None:
            before = dict(zip((where for where, *_ in self.samples), self._answers()))
            begun = {"parameters": count_parameters(learner), "before": before}
        self.begun: dict[str, Any] = dict(begun)

    def _choose(self):
        """(where, media, messages) of samples spread over the data."""
        data = self.prepared.eval or self.prepared.train
        samples = getattr(data, "samples", [])
        wanted, shown = min(self.prepared.spec.report_samples, len(samples)), 0
        for sample in (samples[place * len(samples) // wanted] for place in range(wanted)):
            try:
                item = ChatDataset([[sample]], self.processor)[0]
                media = media_of_sample(self.processor, sample, item, XLLMDataCollator(self.processor)([item]))
                for medium in media:
                    shown += 1
                    medium.number = shown
                yield sample.where, media, item["messages"]
            except Exception as error:  # noqa: BLE001  # of any kind, as in training: decoders are other libraries'
                self.notes.append(f"{sample.where} cannot be shown: {describe(error)}")

    @torch.no_grad()
    def _answers(self) -> list[str]:
        stage_one = self.learner if self.learner is not self.model else None
        if stage_one is not None and not hasattr(stage_one, "transcribe"):
            return []
        was_training = [module for module in self.learner.modules() if module.training]
        self.learner.eval()
        try:
            return [self._answer(messages, stage_one) for _, _, messages in self.samples]
        finally:
            for module in was_training:
                module.training = True

    def _answer(self, messages: list[dict], stage_one: Any) -> str:
        try:
            return answer_rows(self.model, self.processor, [messages], NEW_TOKENS, stage_one)[0]
        except Exception as error:  # noqa: BLE001  # no run ends for its report (out of memory, say)
            return f"(no answer: {describe(error)})"

    def write(self, folder: Path, frozen: Mapping[str, Any], log: Mapping[str, float], evaluations: Mapping) -> None:
        """Write the page; what goes wrong with it, but for a full disk, is a warning: the checkpoint is saved already.

        Args:
            frozen: what `FreezeReceipt.check` found. log: the last entry with a loss. evaluations: by name.
        """
        try:
            body = "".join(self._body(folder, frozen, log, evaluations))
            write_page(folder / REPORT_NAME, document(f"{self.prepared.title}: {folder.name}", body))
        except (OSError, ValueError) as error:
            if is_full(error):
                raise  # with room again, `--resume` makes up for it
            logger.warning(f"{folder / REPORT_NAME}: not written: {error}")

    def _body(self, folder: Path, frozen, log, evaluations):
        yield f"<h1>{safe_text(self.prepared.title)}</h1>"
        yield f'<p class="soft">{safe_text(folder.resolve())}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC</p>'
        yield "<h2>Trained</h2>"
        counts = [
            (part, f"{trained:,}", f"{total:,}", f"{trained / total:.1%}")
            for part, (trained, total) in self.begun["parameters"].items()
        ]
        total = [sum(values) for values in zip(*self.begun["parameters"].values())]
        counts.append(("in all", f"{total[0]:,}", f"{total[1]:,}", f"{total[0] / total[1]:.1%}"))
        yield table(("part", "trained parameters", "parameters", "share"), counts)
        yield (
            f"<p>{frozen['tensors']} tensors were frozen, and are bit for bit what they were (frozen.json; SHA-256 "
            f"over all of them {safe_text(frozen['sha256'])}).</p>"
        )
        yield from self._curves(folder, log)
        if evaluations:
            yield "<h2>Evaluations</h2>"
            found = [(name, one["metric"], f"{one['value']:.2%}", one["n"]) for name, one in evaluations.items()]
            yield table(("name", "metric", "value", "samples"), found)
        yield from self._shown()
        yield "<h2>Environment</h2>"
        yield table(("", ""), environment())
        settings = yaml.safe_dump(_written(asdict(self.prepared.spec)), sort_keys=False, allow_unicode=True)
        yield f"<details><summary>The stage's recipe</summary><pre>{safe_text(settings)}</pre></details>"

    def _curves(self, folder: Path, log):
        yield "<h2>Losses</h2>"
        if (folder / PLOT_NAME).is_file():
            plot = base64.b64encode((folder / PLOT_NAME).read_bytes()).decode()
            yield f'<p><img class="plot" alt="losses by step" src="data:image/png;base64,{plot}"></p>'
        values = [(name, f"{value:.6g}") for name, value in log.items() if isinstance(value, (int, float))]
        yield f"<details><summary>The last entry of the log</summary>{table(('', ''), values)}</details>"
        entries = [entry for _, entry in read_log(folder / LOG_NAME)] if (folder / LOG_NAME).is_file() else []
        last = entries[-1] if entries else {}
        for name, count in last.items():
            if name == "skipped_samples" or name.startswith("cut_"):
                yield f"<p>{safe_text(name.replace('_', ' '))}: {count} (see log.jsonl)</p>"

    def _shown(self):
        if not self.samples and not self.notes:
            return
        yield "<h2>Samples, before and after</h2>"
        yield "".join(f"<p>{safe_text(note)}</p>" for note in self.notes)
        after = self._answers()
        if not after and self.prepared.stage is Stage.CONVERT:
            yield "<p>This stage compares media and texts; nothing is generated yet.</p>"
        for number, (where, media, messages) in enumerate(self.samples):
            yield f"<h3>{safe_text(where)}</h3>"
            yield f'<div class="media">{"".join(map(figure, media))}</div>'
            told = [(turn["role"], text_of(turn)) for turn in messages[:-1] if text_of(turn)]
            told.append(("wanted", text_of(messages[-1])))
            if after:
                told += [("before", self.begun["before"].get(where, "(not asked)")), ("after", after[number])]
            yield table(("", ""), told)


def _written(value: Any) -> Any:
    """A setting as YAML can write it; a data set in memory as its type."""
    if isinstance(value, dict):
        return {str(key): _written(item) for key, item in value.items() if item not in (None, [], {})}
    if isinstance(value, (list, tuple)):
        return [_written(item) for item in value[:100]]
    return value if isinstance(value, (str, int, float, bool)) else type(value).__name__


def environment() -> list[tuple[str, str]]:
    """Command, device and versions, by name."""
    found = [("command", " ".join(sys.argv)), ("python", platform.python_version()), ("system", platform.platform())]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} processors"
    found += [("device", device), ("processes", os.environ.get("WORLD_SIZE", "1"))]
    for name in LIBRARIES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found


__all__ = ["REPORT_NAME", "StageReport", "environment"]

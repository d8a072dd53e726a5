# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the stages in a folder are doing, while they do it and afterwards: by their files alone, which are only read.

| state         | how it is known                                                                             |
|---------------|---------------------------------------------------------------------------------------------|
| `waiting`     | `stages.json` of the recipe names it, and it has not begun                                    |
| `running`     | a process holds its lock, and it has begun                                                    |
| `done`        | its checkpoint is in place                                                                    |
| `interrupted` | it has begun, is not done, and nobody is at work; a signal, or a process that was killed      |
| `failed`      | the same, and its `stopped.json` names an error                                               |
"""

import time
from collections.abc import Iterator
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from xllm.training.inspection.report import REPORT_NAME
from xllm.training.inspection.run_files import RunFiles
from xllm.training.inspection.run_log import RunLog, finite
from xllm.training.saving.checkpoints import MANIFEST, SAVING
from xllm.training.saving.folders import STAGE_FILE, STAGES_FILE, STOPPED_FILE, lock_name
from xllm.training.saving.lineage import RECEIPT_NAME, over
from xllm.training.trainers.callbacks import LOG_NAME


STATES = ("running", "waiting", "done", "interrupted", "failed")
DEEPEST = 3  # levels of folders below the one that is opened, in which stages are looked for
MOST_FOLDERS = 2_000
LOOK_AROUND = 5.0  # seconds after which new stages are looked for
EPOCHS = 3.0  # of a run whose recipe says nothing: transformers' default


class StageState:
    """One stage's folder, as it was when `look` was called last."""

    def __init__(self, files: RunFiles, name: str, given: dict[str, Any] | None = None):
        self.files, self.name, self.given = files, name, given or {}
        self.log = RunLog(files, name)
        self.state = "waiting"
        self.record: dict[str, Any] = {}
        self.stopped: dict[str, Any] = {}
        self.max_steps: float | None = None
        self.checkpoints: list[dict[str, Any]] = []
        self.damaged: list[str] = []

    def look(self) -> None:
        """Read what is new."""
        self.log.look()
        names = self.files.files(self.name)
        self.record = self.files.json(self._file(STAGE_FILE))
        self.stopped = self.files.json(self._file(STOPPED_FILE)) if STOPPED_FILE in names else {}
        folders = self.files.folders(self.name)
        self._look_at_checkpoints(folders)
        self.damaged = [name for name in folders if name.startswith("damaged-")]
        is_locked = self.files.is_locked(_beside(self.name, lock_name(self.name.rpartition("/")[2] or self._own())))
        self.state = self._state(is_locked, names)

    def _own(self) -> str:
        return self.files.root.name

    def _file(self, name: str) -> str:
        return f"{self.name}/{name}" if self.name else name

    def _state(self, is_locked: bool, names: list[str]) -> str:
        has_begun = STAGE_FILE in names or LOG_NAME in names
        is_placed = CONFIG_NAME in names and ("result" in self.record or STAGE_FILE not in names)
        if is_placed and (REPORT_NAME in names or not is_locked):
            return "done"
        if is_locked:
            return "running" if has_begun else "waiting"
        if not has_begun:
            return "waiting"
        is_failure = self.stopped.get("state") == "failed" and (number_of(self.stopped, "time") or 0) >= self.log.time
        return "failed" if is_failure else "interrupted"

    @property
    def began(self) -> float:
        """When, in seconds since 1970: what waits begins last, in the recipe's order."""
        return self.log.began or self.files.changed(self._file(STAGE_FILE)) or float("inf")

    def _look_at_checkpoints(self, folders: list[str]) -> None:
        steps = {name: name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for name in folders}
        names = sorted((name for name, step in steps.items() if step.isdigit()), key=lambda name: int(steps[name]))
        state = self.files.json(self._file(f"{names[-1]}/{TRAINER_STATE_NAME}")) if names else {}
        self.max_steps, best = number_of(state, "max_steps"), str(state.get("best_model_checkpoint") or "")
        self.checkpoints = []
        for name in names:
            files = table_of(self.files.json(self._file(f"{name}/{MANIFEST}")), "files")
            sizes = {file: pair[0] for file, pair in files.items() if _is_pair(pair)}
            there = {file: self.files.size(self._file(f"{name}/{file}")) for file in sizes}
            facts = {"bytes": sum(size or 0 for size in there.values()), "whole": bool(sizes) and there == sizes}
            is_best = best.rstrip("/").rpartition("/")[2] == name
            self.checkpoints.append({"name": name, "step": int(steps[name]), "best": is_best, **facts})

    @property
    def title(self) -> str:
        """E.g. "stage 2 (speech)", as the run's own lines have it."""
        if isinstance(told := self.given.get("title"), str):
            return told
        recipe = table_of(self.record, "recipe")
        rows = [str(value) for key, value in recipe.items() if key.startswith("modalities.")]
        stage = recipe.get("stage")
        if stage is None:
            return self.name or self._own()
        if not rows:  # the recipe names none, and so trains all that the model has
            own = table_of(self.files.json(self._file(CONFIG_NAME)), "stage").get("modalities")
            rows = [str(name) for name in own] if isinstance(own, list) else []
        return f"stage {stage}" + (f" ({'+'.join(rows)})" if rows else "")

    @property
    def phase(self) -> str:
        """What a stage that runs is at: "starting", "training", "saving", or "evaluating"."""
        if self.log.is_over:
            return "evaluating" if "result" in self.record else "saving"
        return "training" if self.log.entries else "starting"

    @property
    def step(self) -> int:
        """Steps done, as far as the files tell."""
        return max([self.log.step, *(one["step"] for one in self.checkpoints)])

    @property
    def steps(self) -> int | None:
        """How many there will be; `None` while nobody can tell."""
        if self.log.is_over:
            return self.log.step
        recipe = table_of(self.record, "recipe") or self.given
        if (most := number_of(recipe, "trainer.max_steps") or 0) > 0:
            return int(most)
        if self.max_steps:
            return int(self.max_steps)
        if self.log.epoch > 0:
            epochs = number_of(recipe, "trainer.num_train_epochs") or EPOCHS
            return max(self.log.step, round(self.log.step * epochs / self.log.epoch))
        return None

    def seconds_left(self, now: float | None = None) -> float | None:
        """Of the training, by the pace of the last entries."""
        pace, steps = self.log.seconds_per_step(), self.steps
        if pace is None or steps is None or self.state != "running":
            return None
        return max(0.0, (steps - self.log.step) * pace - max(0.0, (now or time.time()) - self.log.time))

    @property
    def warnings(self) -> dict[str, int]:
        """What a reader should know of, counted: samples left out or cut, damaged lines and checkpoints."""
        own = f"{self.name}/" if self.name else ""
        problems = [name for name in self.files.problems if name.startswith(own)]
        found = {**self.log.counts, "damaged_lines": self.log.damaged, "not_finite": self.log.infinite}
        found |= {"damaged_checkpoints": len(self.damaged), "unread_files": len(problems)}
        found["unlike_receipt"] = int(self.receipt()["fault"] is not None)
        return {name: count for name, count in found.items() if count}

    def receipt(self) -> dict[str, Any]:
        """What `frozen.json` proves, of the stage or else of its newest checkpoint: `{"file", "tensors", "before",
        "after", "merged", "fault"}`. The digests in it are added up again; "fault" says what does not fit.
        """
        places = [RECEIPT_NAME, *(f"{one['name']}/{RECEIPT_NAME}" for one in reversed(self.checkpoints))]
        for place in places:
            if receipt := self.files.json(self._file(place)):
                break
        else:
            return {"file": None, "fault": None}
        tensors = table_of(receipt, "tensors")
        start = table_of(self.record, "start").get("frozen")
        before, after = receipt.get("before"), receipt.get("after")
        fault = None
        if over(tensors) != before:
            fault = "sum"
        elif before != after:
            fault = "moved"
        elif start not in (None, before):
            fault = "start"
        merged = receipt.get("merged") if isinstance(receipt.get("merged"), list) else []
        return {"file": place, "tensors": len(tensors), "before": before, "after": after, "merged": merged} | {
            "fault": fault
        }

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The entries of the checkpoint's lineage."""
        entries = self.files.json(self._file(CONFIG_NAME)).get("lineage")
        return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []

    @property
    def parameters(self) -> dict[str, tuple[int, int]]:
        """Part -> (trained, all), as counted when the stage began."""
        counts = table_of(table_of(self.record, "report"), "parameters")
        pairs = {name: pair for name, pair in counts.items() if _is_pair(pair)}
        return {name: (int(pair[0]), int(finite(pair[1]) or 0)) for name, pair in pairs.items()}

    def answer_files(self) -> list[str]:
        """Files of answers: of finished evaluations, and of one that is under way."""
        return answers_in(self.files, self.name)


class RunState:
    """All stages below a folder.

    Attributes:
        stages: by name, in the order in which they began; those that wait last.
        others: folders besides that hold answers.
    """

    def __init__(self, root):
        self.files = RunFiles(root)
        self.stages: dict[str, StageState] = {}
        self.others: list[str] = []
        self._looked = float("-inf")

    def look(self) -> None:
        """Read what is new."""
        if time.monotonic() - self._looked >= LOOK_AROUND:
            self._look_around()
            self._looked = time.monotonic()
        for stage in self.stages.values():
            stage.look()
        self.stages = dict(sorted(self.stages.items(), key=lambda one: one[1].began))

    def _look_around(self) -> None:
        self.files.forget_gone()
        found, given, others = [], {}, []
        for name, names in _walk(self.files):
            if STAGE_FILE in names or LOG_NAME in names:
                found.append(name)
            elif answers_in(self.files, name, names):
                others.append(name)
            for one in _listed(self.files, name) if STAGES_FILE in names else ():
                given[f"{name}/{one['folder']}" if name else one["folder"]] = one
        stages = {name: self.stages.get(name) or StageState(self.files, name) for name in [*found, *given]}
        for name, stage in stages.items():
            stage.given = given.get(name, stage.given)
        self.stages, self.others = stages, others


def is_run(folder) -> bool:
    """Whether a folder is one of training: it holds stages, or is one that has not come to its checkpoint."""
    files = RunFiles(folder)
    if CONFIG_NAME in (own := files.files()):
        return False
    marks = (STAGE_FILE, LOG_NAME, STAGES_FILE)
    return any(mark in own for mark in marks) or any(mark in names for _, names in _walk(files) for mark in marks)


def _walk(files: RunFiles) -> Iterator[tuple[str, list[str]]]:
    """(name, names of its files) of the folders in which a stage may be."""
    waiting, seen = [("", 0)], 0
    while waiting and seen < MOST_FOLDERS:
        name, depth = waiting.pop(0)
        seen += 1
        yield name, files.files(name)
        for inner in files.folders(name) if depth < DEEPEST else ():
            if inner[0] != "." and not inner.startswith((f"{PREFIX_CHECKPOINT_DIR}-", SAVING, "damaged-")):
                waiting.append((f"{name}/{inner}" if name else inner, depth + 1))


def _listed(files: RunFiles, name: str) -> list[dict[str, Any]]:
    listed = files.json(f"{name}/{STAGES_FILE}" if name else STAGES_FILE).get("stages")
    tables = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return [one for one in tables if isinstance(one.get("folder"), str) and _is_inner(one["folder"])]


def _is_inner(name: str) -> bool:
    parts = name.split("/")
    return not any(part in ("", ".", "..") for part in parts)


def answers_in(files: RunFiles, name: str, names: list[str] | None = None) -> list[str]:
    """The files of answers in a folder."""
    own = files.files(name) if names is None else names
    kept = [one for one in own if one.endswith(".jsonl") and one.startswith(("samples_", ".answers_"))]
    return [f"{name}/{one}" if name else one for one in kept]


def table_of(value: Any, key: str) -> dict[str, Any]:
    """A table in a table; empty if there is none, whatever is there."""
    found = value.get(key) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def number_of(value: dict[str, Any], key: str) -> float | None:
    """A number in a table."""
    return finite(value.get(key))


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and finite(value[0]) is not None


def _beside(name: str, other: str) -> str:
    """A file beside a folder; beside the one that was opened lies its lock, which is looked at and not read."""
    if not name:
        return f"../{other}"
    return f"{name.rpartition('/')[0]}/{other}".removeprefix("/")


__all__ = ["STATES", "RunState", "StageState", "answers_in", "is_run"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`check_data`: every sample of a plan checked in parallel, bad rows as JSON lines, and a table of what there is."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from xllm.training.data.plan import DataPlan
from xllm.training.data.samples import Sample
from xllm.training.inspection.data_check import Problem, Report, SampleChecker, make_checker, read_group
from xllm.training.inspection.worker_processes import TaskFailed, WorkerDied, map_tasks
from xllm.training.progress import ProgressLine


@dataclass
class Summary:
    """What a group of sources holds, and how many of its rows are bad, by reason.

    Args:
        title (`str`): of the group.
        rows, bad (`int`), reasons (`Counter`): a row may be bad for several reasons.
        same_media (`int`): samples with the media of one before, and other text.
        cut (`int`): samples that lose older turns, or the end of a text of stage 1, to `max_length`.
        media (`Counter`), seconds (`dict`): number by kind; of those that have a length, how long each lasts.
        tokens, learnt (`list[int]`): of each sample, in all and those that carry loss.
        row_tokens (`Counter`): placeholders by row of the model.
        unread (`Counter`): keys that nothing reads, and in how many rows they stand.
    """

    title: str
    rows: int = 0
    bad: int = 0
    reasons: Counter = field(default_factory=Counter)
    same_media: int = 0
    cut: int = 0
    media: Counter = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    learnt: list[int] = field(default_factory=list)
    row_tokens: Counter = field(default_factory=Counter)
    unread: Counter = field(default_factory=Counter)

    def add(self, report: Report) -> None:
        """Count a row."""
        self.rows += 1
        self.bad += bool(report.problems)
        self.reasons.update({problem.reason for problem in report.problems})
        self.unread.update(set(report.unread))
        self.cut += report.cut
        for kind, seconds in report.media:
            self.media[kind] += 1
            if seconds is not None:
                self.seconds.setdefault(kind, []).append(seconds)
        if report.tokens is not None:
            self.tokens.append(report.tokens)
            self.learnt.append(report.learnt)
            self.row_tokens.update(report.row_tokens)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain numbers, for JSON."""
        seconds = {kind: {"all": round(sum(values), 2), **_spread(values)} for kind, values in self.seconds.items()}
        tokens = {"all": sum(self.tokens), **_spread(self.tokens)} if self.tokens else None
        counts = {name: getattr(self, name) for name in ("title", "rows", "bad", "same_media", "cut")}
        tables = {name: dict(getattr(self, name)) for name in ("reasons", "media", "row_tokens", "unread")}
        return {**counts, **tables, "seconds": seconds, "tokens": tokens, "learnt": sum(self.learnt)}

    def lines(self) -> Iterator[str]:
        """The table for people."""
        yield self.title
        yield f"  {'rows':<14}{self.rows:,}"
        for kind, number in self.media.items():
            length = ""
            if values := self.seconds.get(kind):
                found = _spread(values)
                length = f", {sum(values):,.1f} s (" + ", ".join(f"{k} {v:,.2f}" for k, v in found.items()) + ")"
            yield f"  {kind:<14}{number:,}{length}"
        if self.tokens:
            spread = ", ".join(f"{name} {value:,}" for name, value in _spread(self.tokens).items())
            yield f"  {'tokens':<14}{sum(self.tokens):,} ({spread}), {sum(self.learnt):,} of them learnt"
        for row, number in self.row_tokens.items():
            yield f"  {'  ' + row:<14}{number:,} placeholders"
        notes = {"same media, other text": self.same_media, "cut to max_length": self.cut}
        yield from (f"  {number:,} rows: {note}" for note, number in notes.items() if number)
        if self.unread:
            keys = ", ".join(f"{key} ({number:,})" for key, number in self.unread.most_common(20))
            yield f"  nothing reads: {keys}"
        reasons = ", ".join(f"{reason} {number:,}" for reason, number in self.reasons.most_common())
        yield f"  {'bad':<14}{self.bad:,}" + (f" ({reasons})" if reasons else "")


def _spread(values: list) -> dict[str, Any]:
    low, middle, high, top = np.percentile(values, (0, 50, 95, 100), method="nearest").tolist()
    return {"min": low, "median": middle, "p95": high, "max": top}


class BadRows:
    """Bad rows as JSON lines: written beside the file, which is there when all of them are.

    Args:
        path (`Path`, *optional*): nothing is written without one.
    """

    def __init__(self, path: str | Path | None):
        self.path = None if path is None else Path(path)
        self.partial: Path | None = None
        self.file: TextIO | None = None
        self.first: list[str] = []
        if self.path is not None:
            self.partial = self.path.with_name(f".{self.path.name}.{os.getpid()}.partial")
            self.file = self.partial.open("w", encoding="utf-8", errors="backslashreplace")

    def add(self, title: str, report: Report) -> None:
        """Write a bad row, a line per problem."""
        for problem in report.problems:
            if len(self.first) < 10:
                place = f" {problem.field}" if problem.field else ""
                self.first.append(f"{report.where}:{place} {problem.reason}: {problem.message}")
            if self.file is not None:
                line = {"where": report.where, "reason": problem.reason, "field": problem.field}
                line |= {"message": problem.message, "source": report.source, "group": title}
                self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def close(self, is_whole: bool) -> None:
        """Put the file in its place, or remove it; the first call decides."""
        if self.file is not None and self.partial is not None and self.path is not None:
            self.file.close()
            self.file = None
            if is_whole:
                os.replace(self.partial, self.path)
            else:
                self.partial.unlink()


class Duplicates:
    """Tells samples that were there before, by the contents of their media and by their text."""

    def __init__(self) -> None:
        self.training: dict[tuple[str, bytes], str] = {}  # (stage, content) -> place
        self.own: dict[tuple[int, bytes], str] = {}  # (group, content)
        self.media: set[tuple[int, bytes]] = set()

    def check(self, group: int, stage: str, is_training: bool, report: Report) -> bool:
        """Notes a sample, and in its report that it was there before; returns whether its media were, and its text
        was not.
        """
        if not report.content:
            return False
        first = self.own.setdefault((group, report.content), report.where)  # the same object, if this is the first
        learnt = None if is_training else self.training.get((stage, report.content))
        if is_training:
            self.training.setdefault((stage, report.content), report.where)
        if first is not report.where:
            report.problems.append(Problem("duplicate", "messages", f"the same media and text as {first}"))
        elif learnt is not None:
            report.problems.append(Problem("duplicate", "messages", f"the stage is trained on it: {learnt}"))
        key = (group, report.media_content)
        is_known = key in self.media and first is report.where
        if report.media_content:
            self.media.add(key)
        return is_known


def check_data(
    plan: DataPlan, workers: int, output: str | Path | None = None, stream: TextIO | None = None
) -> tuple[list[Summary], list[str], list[str]]:
    """Check everything that a plan reads.

    Args:
        workers (`int`): processes; 0 checks in this one.
        output (*optional*): file for the bad rows, a JSON line per problem.
        stream (`TextIO`, *optional*): for the progress line; default standard error.

    Returns:
        a summary of each group; the first bad rows, as lines; how processes died whose work was done again.

    Raises:
        OSError: `output` cannot be written.
    """
    check = _Check(plan, output)
    try:
        tasks, total = check.tasks(stream)
        progress, number = ProgressLine("check", "row", total, stream), 0
        answers = map_tasks(SampleChecker, make_checker(plan), tasks, workers, check.deaths.append)
        for number, ((group, sample), answer) in enumerate(answers, start=1):
            check.take(group, sample, answer)
            progress.update(number, f"{check.bad:,} bad")
        progress.update(number, f"{check.bad:,} bad", is_last=True)
        check.find_missing_modalities()
        check.rows.close(is_whole=True)
    finally:
        check.rows.close(is_whole=False)
    return check.summaries, check.rows.first, check.deaths


class _Check:
    """What has been found out so far."""

    def __init__(self, plan: DataPlan, output: str | Path | None):
        self.plan, self.bad = plan, 0
        self.summaries = [Summary(group.title) for group in plan.groups]
        self.wanted = [{group.media.names.get(name, name) for name in group.trained} for group in plan.groups]
        self.held: list[set[str]] = [set() for _ in plan.groups]
        self.duplicates, self.rows = Duplicates(), BadRows(output)
        self.deaths: list[str] = []

    def tasks(self, stream: TextIO | None) -> tuple[Iterable[tuple[int, Sample]], int | None]:
        """Samples with the number of their group, and how many there are; that is not known of what is streamed."""
        numbers = range(len(self.plan.groups))
        samples = ((n, sample) for n in numbers for sample in read_group(self.plan, n, partial(self.add, n)))
        if any(group.is_streamed for group in self.plan.groups):
            return samples, None
        progress, found = ProgressLine("read", "row", None, stream), []
        for sample in samples:
            found.append(sample)
            progress.update(len(found), f"{self.bad:,} bad")
        return found, len(found)

    def take(self, number: int, sample: Sample, answer: Any) -> None:
        """Count a sample that was checked."""
        group = self.plan.groups[number]
        if isinstance(answer, WorkerDied):
            message = f"two processes that checked it were {answer.how}"
            answer = Report(sample.where, sample.source, [Problem("crash", "", message)])
        elif isinstance(answer, TaskFailed):
            answer = Report(sample.where, sample.source, [Problem("sample", "", answer.error)])
        self.held[number] |= {part["type"] for part in sample.parts()}
        self.summaries[number].same_media += self.duplicates.check(number, group.stage, group.is_training, answer)
        self.add(number, answer)

    def add(self, number: int, report: Report) -> None:
        """Count a row, and write it down if it is bad."""
        self.summaries[number].add(report)
        if report.problems:
            self.bad += 1
            self.rows.add(self.plan.groups[number].title, report)

    def find_missing_modalities(self) -> None:
        """A bad row where no sample of a stage's training data holds a medium of the rows that it trains."""
        for number, group in enumerate(self.plan.groups):
            rows = self.summaries[number].rows
            if group.is_training and self.wanted[number] and rows and not self.wanted[number] & self.held[number]:
                message = f"none of {rows:,} rows holds a medium that {' or '.join(group.trained)} reads"
                self.add(number, Report(str(group.sources[0].path), "", [Problem("modality", "", message)]))


__all__ = ["Summary", "check_data"]

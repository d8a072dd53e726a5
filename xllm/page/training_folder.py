# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The page of a folder of training: its stages, their curves, samples, receipts and checkpoints, while it runs too.

It reads, and nothing else: a run does not notice that it is looked at.
"""

import threading
import time
from collections.abc import Callable
from html import escape
from typing import Any

import gradio

from xllm.page import run_view, samples_view
from xllm.page.texts import Texts, all_texts
from xllm.training.inspection.html_page import safe_text
from xllm.training.inspection.report import REPORT_NAME
from xllm.training.inspection.run_answers import AnswerFile
from xllm.training.inspection.run_state import RunState, StageState, answers_in, is_run


EVERY = 2.0  # seconds between looks of a browser
NOT_SOONER = 1.0  # seconds between looks at the files, however many browsers there are
# What was chosen may be gone by the next look.
ANY_CHOICE: dict[str, Any] = {"interactive": True, "allow_custom_value": True}
FOLLOWED, OWN = "", "."  # the choice that follows the run, and that of the folder itself


class TrainingPage:
    """Pages of one folder; what was read is shared by all browsers.

    Args:
        folder: of one stage, of a recipe, or of several.
    """

    def __init__(self, folder: Any):
        self.run = RunState(folder)
        self._lock, self._looked = threading.Lock(), float("-inf")
        self._answers: dict[str, AnswerFile] = {}

    def look(self) -> None:
        """Read what is new, if that was not done just now."""
        with self._lock:
            if time.monotonic() - self._looked >= NOT_SOONER:
                self.run.look()
                for found in self._answers.values():
                    found.look()
                self._looked = time.monotonic()

    def stage(self, chosen: str) -> StageState | None:
        """The stage that was chosen, or the one to follow: what runs, else what ended last, else the first."""
        stages = list(self.run.stages.values())
        if chosen and (found := self.run.stages.get("" if chosen == OWN else chosen)):
            return found
        begun = [stage for stage in stages if stage.state != "waiting"]
        running = [stage for stage in begun if stage.state == "running"]
        return next(reversed(running or begun or stages), None)

    def answer_file(self, name: str) -> AnswerFile:
        """The rows of a file of answers."""
        with self._lock:
            found = self._answers.get(name)
            if found is None:
                found = self._answers[name] = AnswerFile(self.run.files, name)
                found.look()
        return found

    def sources(self, stage: StageState | None, texts: Texts) -> list[tuple[str, str]]:
        """(label, name) of what there is to show of samples: those of the stage first."""
        found = []
        if stage is not None:
            names = stage.answer_files()
            report = f"{stage.name}/{REPORT_NAME}".removeprefix("/")
            if self.run.files.size(report) is not None:
                found.append((texts["report"], report))
            found += [(_answers_label(name, texts), name) for name in names]
        for folder in self.run.others:
            found += [(_answers_label(name, texts, folder), name) for name in answers_in(self.run.files, folder)]
        return found

    def is_source(self, name: str) -> bool:
        """Whether a name is one of the `sources` of some stage: a browser may send any."""
        folder, _, file = name.rpartition("/")
        if folder in self.run.others:
            return name in answers_in(self.run.files, folder)
        return folder in self.run.stages and (file == REPORT_NAME or name in self.run.stages[folder].answer_files())

    def samples(self, name: str | None, first: int, only_unlike: bool, texts: Texts) -> str:
        """Samples of one of the `sources`."""
        if name is None or not self.is_source(name):
            return f'<p class="soft">{texts["no samples"]}</p>'
        if _is_report(name):
            return samples_view.report(self.run.files, name, texts)
        return samples_view.answers(self.answer_file(name), first, only_unlike, texts)

    def build(self, language: str) -> gradio.Blocks:
        """The page in a language of `training_texts.yaml`."""
        return _Built(self, language).blocks


class _Built:
    """The components of a page in one language, and what they do."""

    def __init__(self, page: TrainingPage, language: str):
        self.page, self.texts = page, all_texts("training_texts.yaml")[language]
        texts = self.texts
        with gradio.Blocks(title=f"{page.run.files.root.name} - X-LLM", analytics_enabled=False) as self.blocks:
            gradio.HTML(self._head(language), elem_id="head-training")
            self.overview = gradio.HTML(elem_id="overview")
            follow = [(texts["follow"], FOLLOWED)]
            self.chosen = gradio.Dropdown(follow, value=FOLLOWED, label=texts["stage"], elem_id="stage", **ANY_CHOICE)
            with gradio.Tabs():
                with gradio.Tab(texts["tab curves"], elem_id="tab-curves"):
                    self.curves = gradio.HTML(elem_id="curves")
                with gradio.Tab(texts["tab samples"], elem_id="tab-samples"):
                    self._samples()
                with gradio.Tab(texts["tab receipts"], elem_id="tab-receipts"):
                    self.receipts = gradio.HTML(elem_id="receipts")
                with gradio.Tab(texts["tab checks"], elem_id="tab-checks"):
                    self.checks = gradio.HTML(elem_id="checks")
            self._connect()

    def _head(self, language: str) -> str:
        others = "".join(
            f'<a href="/{other}/" hreflang="{other}">{escape(all_texts()[other]["language"])}</a> '
            for other in all_texts()
            if other != language
        )
        root = self.page.run.files.root
        return f'<div id="head"><div><b>{safe_text(root.name)}</b><small>{safe_text(root)}</small></div>{others}</div>'

    def _samples(self) -> None:
        texts = self.texts
        self.source = gradio.Dropdown([], label=texts["file"], elem_id="source", **ANY_CHOICE)
        self.unlike = gradio.Checkbox(label=texts["only unlike"], elem_id="unlike")
        self.samples = gradio.HTML(elem_id="samples")
        with gradio.Row():
            self.back = gradio.Button(texts["back"], elem_id="back", size="sm", min_width=90)
            self.on = gradio.Button(texts["on"], elem_id="on", size="sm", min_width=90)
        self.first = gradio.State(0)

    def _connect(self) -> None:
        sent = gradio.State({})
        followed = [self.overview, self.chosen, self.curves, self.receipts, self.checks, self.source, sent]
        listen: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        for event in (self.blocks.load, gradio.Timer(EVERY).tick, self.chosen.input):
            event(self._follow, [self.chosen, self.source, sent], followed, **listen)
        shown = [self.source, self.first, self.unlike]
        for event, move in (
            (self.source.change, None), (self.unlike.input, None),
            (self.back.click, -samples_view.PER_PAGE), (self.on.click, samples_view.PER_PAGE),
        ):  # fmt: skip
            event(self._turn(move), shown, [self.samples, self.first], **listen)

    def _follow(self, chosen: str | None, source: str | None, sent: dict) -> list[Any]:
        """What has changed since it was sent last."""
        self.page.look()
        texts, run = self.texts, self.page.run
        stage = self.page.stage(chosen or FOLLOWED)
        choices = [(texts["follow"], FOLLOWED)] + [(_label(one), one.name or OWN) for one in run.stages.values()]
        sources = self.page.sources(stage, texts)
        names = [name for _, name in sources]
        kept: dict[str, Any] = {} if source in names else {"value": names[0] if names else None}
        nothing = f'<p class="soft">{texts["no stages"]}</p>'
        now = {
            "overview": run_view.overview(run, texts, None if stage is None else stage.name),
            "chosen": gradio.update(choices=choices),
            **{
                name: nothing if stage is None else getattr(run_view, name)(stage, texts)
                for name in ("curves", "receipts", "checks")
            },
            "source": gradio.update(choices=sources, **kept),
        }
        return [*(gradio.skip() if sent.get(name) == value else value for name, value in now.items()), now]

    def _turn(self, move: int | None) -> Callable[..., tuple[str, int]]:
        """Turn the pages of samples; without a move, to the first one."""

        def turn(source: str | None, first: int, only_unlike: bool) -> tuple[str, int]:
            there = 0
            if move is not None and source and self.page.is_source(source) and not _is_report(source):
                count = self.page.answer_file(source).count(only_unlike)
                there = max(0, min(first + move, (count - 1) // samples_view.PER_PAGE * samples_view.PER_PAGE))
            return self.page.samples(source, there, only_unlike, self.texts), there

        return turn


def _is_report(name: str) -> bool:
    return name.rpartition("/")[2] == REPORT_NAME


def _label(stage: StageState) -> str:
    return stage.title if not stage.name else f"{stage.title} · {stage.name}"


def _answers_label(name: str, texts: Texts, folder: str = "") -> str:
    file = name.rpartition("/")[2].removesuffix(".jsonl")
    if file.startswith(".answers_"):
        label = texts("answers so far", name=file.removeprefix(".answers_").rpartition(".")[0])
    else:
        label = texts("answers", name=file.removeprefix("samples_"))
    return f"{label} · {folder}" if folder else label


def is_training_folder(folder: Any) -> bool:
    """Whether a folder is one of training: one that holds stages, or a stage that is not done. A stage that is done is
    a model to talk with."""
    return is_run(folder)


def build(folder: Any, language: str = "en") -> gradio.Blocks:
    """The page of a folder of training."""
    return TrainingPage(folder).build(language)


__all__ = ["TrainingPage", "build", "is_training_folder"]

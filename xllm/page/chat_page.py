# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The conversation: what is written, said, shown and filmed goes to the server's own service, answers are streamed."""

import json
import re
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

import gradio

from xllm.page.looks import Looks
from xllm.page.talk import Talk, Turn, Upload, literal
from xllm.page.texts import all_texts
from xllm.processing.media_kinds import AUDIO, MEDIA_KINDS, MediaKind
from xllm.serving.limits import RequestError
from xllm.serving.requests import ChatBody
from xllm.serving.service import Service
from xllm.training.data.media_rows import parts_of_rows


SEED = re.compile(r"-?[0-9]{1,18}|")
UPDATE_SECONDS = 0.06  # between two states of an answer that are sent to the browser
Shown = dict[Any, Any]  # component -> what becomes of it


def kinds_of(modalities: Mapping[str, Any]) -> list[MediaKind]:
    """What a model with these rows reads from files."""
    parts = dict.fromkeys(parts_of_rows(modalities).values())
    return [MEDIA_KINDS[part] for part in parts if part in MEDIA_KINDS and MEDIA_KINDS[part].extensions]


def offered(examples: Iterable[str], modalities: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Files that are offered, each with its question, as copies in a folder; a `ValueError` for one that cannot be."""
    endings = {ending for kind in kinds_of(modalities) for ending in kind.extensions}
    found = []
    for number, example in enumerate(examples, 1):
        file, colon, question = (example, "", "") if Path(example).is_file() else example.rpartition(":")
        if not Path(file).is_file():
            raise ValueError(f"--example {example}: no such file{'' if colon else ' (FILE or FILE:QUESTION)'}")
        if Path(file).suffix.lower() not in endings:
            raise ValueError(f"--example {example}: this model reads {', '.join(sorted(endings)) or 'no files'}")
        place = folder / f"example-{number}"
        place.mkdir()
        found.append((str(shutil.copy(file, place)), question))
    return found


class ChatPage:
    """The page in one language.

    Args:
        examples: files that are offered, each with a question ("" for none).
    """

    def __init__(self, service: Service, looks: Looks, language: str, examples: Iterable[tuple[str, str]] = ()):
        self.service, self.looks, self.texts = service, looks, all_texts()[language]
        self.language, self.examples = language, [*examples]
        self.kinds = kinds_of(service.model.config.modalities)
        heard = [kind for kind in self.kinds if "waveform" in kind.augmented_as]
        self.heard = sorted(heard, key=lambda kind: kind is not AUDIO)  # people speak to a microphone
        self.talks: dict[str | None, Talk] = {}  # of tabs for which an answer is being written

    # ---- parts ------------------------------------------------------------------------------------------------------

    def build(self) -> gradio.Blocks:
        """The page, with what its parts do."""
        with gradio.Blocks(title=f"X-LLM: {self.service.name}", analytics_enabled=False) as blocks:
            self.talk = gradio.State(Talk())
            gradio.HTML(self._head(), padding=False)
            with gradio.Row(elem_id="columns"):
                with gradio.Column(scale=3, min_width=320):
                    self._build_chat()
                with gradio.Column(scale=2, min_width=320, elem_id="looks"):
                    gradio.HTML(f"<h2>{self.texts['looks']}</h2>", padding=False)
                    self.panel = gradio.HTML(self._panel_text("looks empty"), padding=False, elem_id="panel")
            if self.examples:
                self._build_examples()
            with gradio.Accordion(self.texts["settings"], open=False, elem_id="settings"):
                self._build_settings()
        self._wire(blocks)
        return blocks

    def _build_chat(self) -> None:
        texts = self.texts
        self.chat = gradio.Chatbot(
            label=texts["chat"], show_label=False, elem_id="chat", height="62dvh", buttons=["copy"], allow_tags=False,
            latex_delimiters=[], feedback_options=[], allow_file_downloads=False,
            placeholder=f"### {texts['welcome']}",
        )  # fmt: skip
        self.notice = gradio.HTML("", elem_id="notice", padding=False)
        endings = sorted({ending for kind in self.kinds for ending in kind.extensions})
        sources: list[Any] = [*(["upload"] if endings else []), *(["microphone"] if self.heard else [])]
        self.box = gradio.MultimodalTextbox(
            show_label=False, label=texts["write"], placeholder=texts["write" if endings else "write only"],
            file_types=endings or ["."], file_count="multiple", autofocus=True, elem_id="box",
            sources=sources, stop_btn=False, max_plain_text_length=100_000,
        )  # fmt: skip
        with gradio.Row(elem_id="buttons"):
            self.undo = gradio.Button(texts["undo"], size="sm", elem_id="undo", min_width=80)
            self.clear = gradio.Button(texts["clear"], size="sm", elem_id="clear", min_width=80)
        self._build_cameras()

    def _build_cameras(self) -> None:
        seen = [kind for kind in self.kinds if "picture" in kind.augmented_as]
        self.cameras: list[Any] = []
        if not seen:
            return
        with gradio.Accordion(self.texts["camera"], open=False, elem_id="camera"):
            for kind in seen:
                label = self.texts["camera film" if kind.series else "camera picture"]
                camera: Any = gradio.Video if kind.series else gradio.Image
                options: dict[str, Any] = {} if kind.series else {"type": "filepath"}
                mirror = gradio.WebcamOptions(mirror=False)
                self.cameras.append(
                    camera(label=label, sources=["webcam"], webcam_options=mirror, height=260, **options)
                )

    def _build_settings(self) -> None:
        texts, defaults = self.texts, self.service.model.generation_config
        temperature = (defaults.temperature or 1.0) if defaults.do_sample else 0.0
        most = self.service.limits.new_tokens
        self.settings = [
            gradio.Slider(0, 2, temperature, step=0.05, label=texts["temperature"], elem_id="temperature"),
            gradio.Slider(0.05, 1, (defaults.top_p or 1.0) if defaults.do_sample else 1.0, step=0.05,
                          label=texts["top_p"], elem_id="top_p"),
            gradio.Slider(1, most, min(256, most), step=1, label=texts["most"], elem_id="most"),
            gradio.Textbox("", label=texts["seed"], elem_id="seed", max_lines=1),  # a number would begin as 0
        ]  # fmt: skip
        names = [(texts.kind(kind.type), kind.type) for kind in self.heard]
        self.heard_as = gradio.Radio(
            names, value=names[0][1] if names else None, label=texts["heard as"], visible=len(names) > 1
        )

    def _build_examples(self) -> None:
        samples = [[{"text": text, "files": [file] if file else []}] for file, text in self.examples]
        gradio.Examples(samples, self.box, label=self.texts["examples"], elem_id="examples", api_visibility="private")

    def _head(self) -> str:
        texts, config = self.texts, self.service.model.config
        kinds = texts["list"].join(texts.kind(kind.type) for kind in self.kinds)
        reads = texts("reads", kinds=kinds) if kinds else texts["reads nothing more"]
        stage = (getattr(config, "stage", None) or {}).get("stage")
        trained = texts["untrained"] if stage is None else texts("stage", stage=stage)
        others = ((name, other["language"]) for name, other in all_texts().items() if name != self.language)
        links = "".join(f'<a href="../{name}/" lang="{name}">{label}</a>' for name, label in others)
        name = Looks.text(Path(self.service.name).name)
        return f'<header id="head"><div><b>X-LLM · {name}</b><small>{reads} · {trained}</small></div>{links}</header>'

    def _panel_text(self, name: str) -> str:
        return f'<p class="soft">{self.texts[name]}</p>'

    # ---- what happens -----------------------------------------------------------------------------------------------

    def _wire(self, blocks: gradio.Blocks) -> None:
        # Gradio's own preparation of what a client sends would decode media before any limit is known.
        many: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private", "show_progress": "hidden"}
        many |= {"preprocess": False}
        asked = [self.box, self.talk, self.heard_as, *self.settings]
        shown = [self.chat, self.box, self.notice, self.panel]
        with blocks:
            answering = self.box.submit(self.answer, asked, shown, **many)
            answering.success(self.look_at_last, [self.talk], [self.panel], **many)
            # Where there is no server, the browser alone can say so.
            lost = json.dumps([self._notice(self.texts["lost"]), gradio.update(submit_btn=True, stop_btn=False)])
            answering.failure(None, None, [self.notice, self.box], js=f"() => {lost}", **many)
            self.box.stop(self.stop, [self.talk], None, queue=False, **many)
            self.undo.click(self.take_back, [self.talk], shown, **many)
            for forgotten in (self.clear.click, self.chat.clear):
                forgotten(self.forget, [self.talk], shown, **many)
            self.chat.select(self.look_at, [self.talk], [self.panel], **many)
            for camera in self.cameras:
                # A film that was recorded is no `input` to Gradio; the way back to nothing is a change, too.
                camera.change(self.attach, [camera, self.box], [camera, self.box], **many)
            blocks.unload(self.leave)

    async def answer(
        self, said: dict, talk: Talk, heard_as: str | None, temperature: float, top_p: float, most: int,
        seed: str, request: gradio.Request,
    ) -> AsyncIterator[Shown]:  # fmt: skip
        """One question of a tab, and its answer as it is written."""
        texts, text, files = self.texts, said["text"], said["files"]
        problem = texts["busy"] if talk.is_busy else None if text.strip() or files else texts["empty"]
        uploads = [] if problem else [self._upload(file, heard_as) for file in files]
        if unknown := [upload.name for upload in uploads if not upload.kind]:
            endings = ", ".join(sorted({ending for kind in self.kinds for ending in kind.extensions})) or "-"
            problem = texts("unknown file", name=unknown[0], endings=endings)
        if not problem and not SEED.fullmatch(seed.strip()):
            problem = texts["no seed"]
        if problem:
            yield {self.notice: self._notice(problem)}
            return
        turn = Turn(text.strip(), uploads)
        talk.turns.append(turn)
        talk.is_busy, talk.is_stopped = True, False
        self.talks[request.session_hash] = talk
        waiting = gradio.update(value=None, submit_btn=False, stop_btn=True, interactive=True)
        panel = "looks at work" if uploads else "looks empty"
        try:
            yield {
                self.chat: talk.shown(), self.box: waiting, self.notice: "",
                self.panel: self._panel_text(panel),
            }  # fmt: skip
            options = {"temperature": temperature, "top_p": top_p, "seed": seed.strip() or None}
            async for shown in self._written(talk, turn, most, options):
                yield shown
        finally:
            self.leave(request)
            talk.is_busy, talk.asking = False, None

    async def _written(self, talk: Talk, turn: Turn, most: int, options: dict[str, Any]) -> AsyncIterator[Shown]:
        texts, ready = self.texts, gradio.update(submit_btn=True, stop_btn=False)
        try:
            body = ChatBody(model=self.service.name, messages=talk.messages(), **options)
            talk.asking = await self.service.ask(body, most=most)
            doubts = [error for _, error in talk.asking.doubts if error.source in {file.path for file in turn.uploads}]
            if talk.is_stopped:
                talk.asking.stop()
            last, reason = time.monotonic(), None
            async for _, delta in talk.asking:
                turn.answer, reason = turn.answer + delta.text, delta.finish_reason
                if time.monotonic() - last > UPDATE_SECONDS and reason is None:
                    last = time.monotonic()
                    yield {self.chat: talk.shown()}
        except (RequestError, ValueError) as error:
            reason = self._reason(str(error), turn)
            if getattr(error, "code", None) == "context_length_exceeded":
                reason = texts["too much"]
            if not turn.answer:
                talk.turns = [other for other in talk.turns if other is not turn]
                files = [upload.path for upload in turn.uploads if upload.path not in str(error)]
                again = gradio.update(value={"text": turn.question, "files": files}, submit_btn=True, stop_btn=False)
                notice = self._notice(texts("failed", reason=reason))
                yield {self.chat: talk.shown(), self.box: again, self.notice: notice}
                return
            turn.remark = texts("broke off", reason=reason)
        else:
            if talk.is_stopped:
                turn.remark = texts["stopped"]
            elif reason == "length":
                turn.remark = texts("too long", most=talk.asking.most_tokens)
            elif not turn.answer.strip():
                turn.remark = texts["nothing said"]
            told = [literal(texts("doubtful", reason=self._reason(str(error), turn))) for error in doubts]
            turn.remark = "\n\n".join([*([turn.remark] if turn.remark else []), *told])
        yield {self.chat: talk.shown(), self.box: ready}

    def _upload(self, file: dict, heard_as: str | None) -> Upload:
        """A file that was uploaded; its kind is empty if the model reads no such file."""
        path = file["path"]
        found = [kind.type for kind in self.kinds if Path(path).suffix.lower() in kind.extensions]
        kind = heard_as if heard_as in found else found[0] if found else ""
        return Upload(kind, path, Path(file.get("orig_name") or path).name)

    def _reason(self, message: str, turn: Turn) -> str:
        """An error without the places of files on this machine."""
        for upload in turn.uploads:
            message = message.replace(upload.path, upload.name)
        return " ".join(message.replace(f"{self.looks.folder}/", "").split())

    def _notice(self, text: str) -> str:
        return f'<p role="alert">{Looks.text(text)}</p>'

    async def stop(self, talk: Talk) -> None:
        """The answer is written no further."""
        talk.stop()

    async def take_back(self, talk: Talk) -> Shown:
        """The last question is written again."""
        if talk.is_busy:
            return {self.notice: self._notice(self.texts["busy"])}
        box = gradio.skip()
        if talk.turns:
            turn = talk.turns.pop()
            box = gradio.update(value={"text": turn.question, "files": [upload.path for upload in turn.uploads]})
        return {
            self.chat: talk.shown(), self.box: box, self.notice: "", self.panel: self._panel_text("looks empty"),
        }  # fmt: skip

    async def forget(self, talk: Talk) -> Shown:
        """The conversation begins anew."""
        talk.stop()
        talk.turns.clear()
        return {self.chat: [], self.notice: "", self.panel: self._panel_text("looks empty")}

    async def attach(self, taken: dict | None, said: dict) -> tuple[Any, Any]:
        """What a camera took goes to the question that is being written."""
        if taken is None:
            return gradio.skip(), gradio.skip()
        file = next((inner for inner in taken.values() if isinstance(inner, dict) and "path" in inner), taken)
        paths = [one["path"] for one in (*said["files"], file)]
        return None, gradio.update(value={"text": said["text"], "files": paths})

    async def look_at_last(self, talk: Talk) -> str:
        """What the model heard and saw in the last question."""
        return await self._look(talk.turns[-1] if talk.turns else None)

    async def look_at(self, talk: Talk, event: gradio.SelectData) -> str:
        """What it heard and saw in the question that was clicked on."""
        place = event.index[0] if isinstance(event.index, (list, tuple)) else event.index
        return await self._look(talk.turn_of(place))

    async def _look(self, turn: Turn | None) -> str:
        uploads = turn.uploads if turn else []
        shown = [await self.looks.html(upload, self.texts) for upload in uploads]
        return "".join(shown) or self._panel_text("looks empty")

    def leave(self, request: gradio.Request) -> None:
        """Nobody waits for a tab's answer any more."""
        talk = self.talks.pop(request.session_hash, None)
        if talk is not None and talk.asking is not None:
            talk.asking.cancel()


__all__ = ["ChatPage", "kinds_of", "offered"]

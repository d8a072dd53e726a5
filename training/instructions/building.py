# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Instruction data of the paper's four kinds (section 3.3), from captions, transcripts and dialogues about pictures.

| kind              | from                      | a sample                                                            |
|-------------------|---------------------------|---------------------------------------------------------------------|
| image-text        | captions of pictures      | a picture, a request to describe it -> its caption                  |
| speech-text       | transcripts               | a recording, a request to write it down -> its transcript           |
| video-text        | captions of videos        | a video, a request to describe it -> its caption                    |
| image-text-speech | dialogues about a picture | a picture, a spoken question -> the question in writing; and,       |
|                   |                           | behind the turns before it as text, the same question -> its answer |

Everything drawn follows from the seed and from what a sample holds, so that more data leave the rest as it is. A
medium is held out by its contents, whatever its name and whichever file names it.
Deviations from the authors' data: the requests are ours, in two languages; nothing is cut, translated or filtered.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TextIO

import numpy as np
import yaml

from xllm.processing.conversations import part_source
from xllm.processing.media_kinds import AUDIO, IMAGE, MEDIA_KINDS, VIDEO
from xllm.processing.media_sources import MediaError, open_media
from xllm.training.data.dataset import read_stored
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import Sample, Stored, file_name
from xllm.training.data.sources import iterate_source
from xllm.training.instructions.speech_synthesis import Utterance, random_speaker, split_voices
from xllm.training.progress import ProgressLine
from xllm.training.recipes.recipe import SourceSpec


TEMPLATES = Path(__file__).with_name("templates.yaml")
LANGUAGES = ("en", "zh")
TRAIN, TEST = "train", "test"
SPOKEN = "image-text-speech"
# Kind -> name of its source, and the type of part that a row of the source holds.
KINDS = {
    "image-text": ("captions", IMAGE.type),
    "speech-text": ("transcripts", AUDIO.type),
    "video-text": ("videos", VIDEO.type),
    SPOKEN: ("dialogues", IMAGE.type),
}
TASKS = [name for name in KINDS if name != SPOKEN] + [f"{SPOKEN}/{task}" for task in ("transcribe", "answer")]
TEST_VOICES = 12  # groups of voices that only the held-out questions have
_NAMES = {name for kind in MEDIA_KINDS.values() for name in (kind.type, kind.row_name, *kind.aliases)}
_TAG = re.compile(f"<({'|'.join(sorted(_NAMES))})>")


@dataclass
class Settings:
    """What is to be built.

    Args:
        kinds (`list[str]`): of `KINDS`.
        sources (`dict[str, list[SourceSpec]]`): "captions", "transcripts", "videos", "dialogues" and "recordings" (of
            spoken questions: a file and the question) -> where they are.
        seed (`int`): of everything drawn.
        held_out (`float`): share of the media that only the test split has.
        limit (`int`, *optional*): samples of each task at most, drawn.
        language (`str`): of the requests: "en", "zh", or "auto", that of the answer.
        templates (`dict`): task -> language -> requests; see `read_templates`.
    """

    kinds: list[str]
    sources: dict[str, list[SourceSpec]]
    seed: int = 0
    held_out: float = 0.05
    limit: int | None = None
    language: str = "auto"
    templates: dict[str, dict[str, list[str]]] = field(default_factory=lambda: read_templates(TEMPLATES))


@dataclass(frozen=True)
class Medium:
    """A medium of a source: its kind, contents by digest, and where it is."""

    kind: str
    digest: str
    source: Any = field(compare=False)

    @property
    def name(self) -> str:
        """Its file in what is built: contents that are the same are one file."""
        ending = PurePath(file_name(self.source)).suffix.lower()
        kind = MEDIA_KINDS[self.kind]
        ending = ending if ending in kind.extensions else kind.extensions[0]
        return f"media/{self.digest[:2]}/{self.digest}{ending}"


@dataclass(frozen=True)
class Spoken:
    """A question that a synthesiser is to say: its language, and in which voice if that is ours to choose."""

    utterance: Utterance
    language: str
    kind: str = AUDIO.type


@dataclass
class Draft:
    """A sample to be written: its task and split, messages whose texts hold tags, and their media in order."""

    where: str
    task: str
    split: str
    messages: list[dict[str, str]]
    media: list[Any]  # of Medium and Spoken

    @property
    def kind(self) -> str:
        return self.task.partition("/")[0]


def read_templates(path: Path) -> dict[str, dict[str, list[str]]]:
    """Requests by task and language.

    Raises:
        DataError: no such file, not of that form, a task or language without a request, or a tag in one.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a file of templates: {error}") from error
    for task in TASKS:
        for language in LANGUAGES:
            requests = found.get(task, {}).get(language) if isinstance(found, dict) else None
            if not isinstance(requests, list) or not requests or not all(isinstance(one, str) for one in requests):
                raise DataError(f"{path}: {task}.{language}: expected a list of requests")
            for request in requests:
                _check_text(f"{path}: {task}.{language}", request)
    if unknown := [name for name in found if name not in TASKS]:
        raise DataError(f"{path}: unknown task {unknown[0]!r}; the tasks are {', '.join(TASKS)}")
    return found


def draft_all(settings: Settings, stream: TextIO | None = None) -> list[Draft]:
    """All samples, in order of kinds and sources; media are hashed, nothing is written. `stream` is for progress.

    Raises:
        DataError: a kind without its source, a row that cannot be used, a question without a voice. MediaError: a file
            that cannot be read.
    """
    drafter = _Drafter(settings, ProgressLine("read", "row", stream=stream))
    drafts: list[Draft] = []
    for kind in settings.kinds:
        name, part = KINDS[kind]
        if not settings.sources.get(name):
            raise DataError(f"{kind} is made of {name}: give --{name} FILE")
        found = [draft for spec in settings.sources[name] for draft in drafter.draft(kind, spec, part)]
        for task in TASKS:
            drafts += drafter.chosen([draft for draft in found if draft.task == task])
    return drafts


class _Drafter:
    def __init__(self, settings: Settings, progress: ProgressLine):
        self.settings, self.progress, self.rows = settings, progress, 0
        self.digests: dict[str, str] = {}  # of files, each of which is read once
        self.voices = split_voices(TEST_VOICES, settings.seed)
        self.recordings: dict[str, list[Medium]] = {}
        for spec in settings.sources.get("recordings", ()):
            for sample in self._samples(spec):
                media, texts = _pair(sample, AUDIO.type)
                for text in texts:
                    self.recordings.setdefault(_norm(text), []).append(self._medium(sample.where, media[0]))

    def draft(self, kind: str, spec: SourceSpec, part: str) -> Iterator[Draft]:
        """The samples of a source."""
        for sample in self._samples(spec):
            if kind == SPOKEN:
                yield from self._questions(sample)
                continue
            media, texts = _pair(sample, part)
            medium: Any = self._medium(sample.where, media[0])
            for text in texts:
                request = self._request(kind, text, medium.digest)
                yield Draft(sample.where, kind, self._split(medium), _turns(f"<{part}>{request}", text), [medium])

    def chosen(self, drafts: list[Draft]) -> list[Draft]:
        """At most `limit` of the drafts of a task, drawn, in their order."""
        if self.settings.limit is None or len(drafts) <= self.settings.limit:
            return drafts
        keys = [self._draw("limit", draft.task, draft.messages, draft.media[0].digest) for draft in drafts]
        return [drafts[index] for index in sorted(np.argsort(keys, kind="stable")[: self.settings.limit].tolist())]

    # ---- sources ----------------------------------------------------------------------------------------------------

    def _samples(self, spec: SourceSpec) -> Iterator[Sample]:
        for sample in iterate_source(spec):
            texts = [p["text"] for p in sample.parts() if p["type"] == "text"] + sample.answers
            for text in texts:
                _check_text(sample.where, text)
            yield sample
            self.rows += 1
            self.progress.update(self.rows)

    def _medium(self, where: str, part: dict) -> Medium:
        if "offset" in part or "duration" in part:
            raise DataError(f"{where}: a span of a file cannot become a file of its own; cut it first")
        source = part_source(part)
        key = source.name if isinstance(source, Stored) else source
        if not isinstance(key, str) or key not in self.digests:
            try:
                found = _digest(source)
            except MediaError as error:
                raise MediaError(f"{where}: {error}") from error
            if not isinstance(key, str):
                return Medium(part["type"], found, source)
            self.digests[key] = found
        return Medium(part["type"], self.digests[key], source)

    # ---- what is drawn ----------------------------------------------------------------------------------------------

    def _draw(self, *what: Any) -> float:
        """A number in [0, 1) that follows from the seed and from `what` alone."""
        digest = hashlib.sha256(json.dumps([self.settings.seed, *map(str, what)]).encode()).digest()
        return int.from_bytes(digest[:7], "big") / (1 << 56)

    def _pick(self, many: list, *what: Any) -> Any:
        return many[int(self._draw(*what) * len(many))]

    def _split(self, medium: Medium) -> str:
        return TEST if self._draw("split", medium.digest) < self.settings.held_out else TRAIN

    def _request(self, task: str, answer: str, *what: Any) -> str:
        language = self.settings.language
        language = language_of(answer) or LANGUAGES[0] if language == "auto" else language
        return self._pick(self.settings.templates[task][language], task, answer, *what)

    # ---- spoken questions -------------------------------------------------------------------------------------------

    def _questions(self, sample: Sample) -> Iterator[Draft]:
        """Two samples per question of a dialogue: what was asked, and its answer behind the turns before it."""
        picture, turns = self._dialogue(sample)
        split = self._split(picture)
        for number, (question, answer) in enumerate(turns):
            about = (picture.digest, number)
            voice = self._voice(sample.where, split, question, about)
            asked = self._request(f"{SPOKEN}/transcribe", question, *about)
            messages = _turns(f"<{IMAGE.type}><{AUDIO.type}>{asked}", question)
            yield Draft(sample.where, f"{SPOKEN}/transcribe", split, messages, [picture, voice])
            asked = self._request(f"{SPOKEN}/answer", answer, *about)
            messages = [turn for pair in turns[:number] for turn in _turns(*pair)]
            messages += _turns(f"<{AUDIO.type}>{asked}", answer)
            messages[0]["content"] = f"<{IMAGE.type}>{messages[0]['content']}"
            yield Draft(sample.where, f"{SPOKEN}/answer", split, messages, [picture, voice])

    def _dialogue(self, sample: Sample) -> tuple[Medium, list[tuple[str, str]]]:
        """The picture and the (question, answer) pairs of a conversation."""
        messages = sample.conversation(lambda n: 0)
        pictures = [part for turn in messages for part in turn["content"] if part["type"] != "text"]
        turns = [(turn["role"], _text(turn)) for turn in messages if turn["role"] != "system"]
        roles = [role for role, _ in turns]
        if [part["type"] for part in pictures] != [IMAGE.type]:
            found = ", ".join(part["type"] for part in pictures) or "none"
            raise DataError(f"{sample.where}: a dialogue is about one {IMAGE.type}, this one holds {found}")
        if roles != ["user", "assistant"] * (len(roles) // 2) or not all(text.strip() for _, text in turns):
            raise DataError(f"{sample.where}: a dialogue is of questions and answers in turn, none of them empty")
        texts = [text for _, text in turns]
        return self._medium(sample.where, pictures[0]), list(zip(texts[::2], texts[1::2]))

    def _voice(self, where: str, split: str, question: str, about: tuple) -> Medium | Spoken:
        if self.recordings:
            if not (found := self.recordings.get(_norm(question))):
                raise DataError(f"{where}: no recording of the question {question!r:.80} is among --recordings")
            own = [medium for medium in found if self._split(medium) == split]  # not heard in the other split
            return self._pick(own or found, "recording", question, *about)
        language = language_of(question)
        if language is None:
            raise DataError(
                f"{where}: the synthesiser speaks English and Mandarin, not {question!r:.80}; give --recordings"
            )
        rng = np.random.default_rng(int(self._draw("voice", question, *about) * (1 << 53)))
        return Spoken(random_speaker(question, language, self.voices[split == TEST], rng), language)


def language_of(text: str) -> str | None:
    """ "zh" of a text with Chinese characters, "en" of one in Latin letters or without any, else None."""
    latin = ("LATIN", "FULLWIDTH LATIN")
    names = [unicodedata.name(char, "") for char in text if char.isalpha()]
    if not all(name.startswith(("CJK", *latin)) for name in names):
        return None
    return "en" if all(name.startswith(latin) for name in names) else "zh"


def _pair(sample: Sample, part: str) -> tuple[list[dict], list[str]]:
    """The one medium of a row and what is said of it."""
    messages = sample.messages
    media = [item for item in sample.parts() if item["type"] != "text"]
    if [item["type"] for item in media] != [part] or (messages is not None and len(messages) != 2):
        found = ", ".join(item["type"] for item in media) or "none"
        raise DataError(f"{sample.where}: expected one {part} and its text, got {found}")
    return media, sample.answers if messages is None else [_text(messages[-1])]


def _turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _text(message: dict) -> str:
    return "".join(part.get("text", "") for part in message["content"])


def _check_text(where: str, text: str) -> None:
    """A tag in a text would be read as a medium."""
    if found := _TAG.search(text):
        raise DataError(f"{where}: the text holds {found[0]}, which stands for a medium in what is built; change it")


def _norm(question: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", question).casefold().split())


def content(source: Any) -> Any:
    """What the loaders take for a medium of a source."""
    return read_stored(source) if isinstance(source, Stored) else source


def _digest(source: Any) -> str:
    file: Any
    with open_media(content(source)) as (file, _):
        return hashlib.file_digest(file, "sha256").hexdigest()[:32]


__all__ = ["KINDS", "Draft", "Medium", "Settings", "Spoken", "content", "draft_all", "language_of", "read_templates"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Everything that can be wrong with data, found before training: each sample is opened, decoded to its end and, with a
model, made the batch that it will be trained on.

| reason      | what is wrong                                                                               |
|-------------|---------------------------------------------------------------------------------------------|
| row         | it cannot be read: no JSON, an unknown form, a wrong key, no answer behind the question     |
| missing     | a file that it names is not there                                                           |
| medium      | a file that cannot be decoded to its end                                                    |
| answer      | nothing to learn: an empty answer, or no token that carries loss                            |
| length      | more tokens than `max_length`, or than the language model has positions                     |
| sample      | it makes no batch: placeholders and media that differ, a medium that the task does not take |
| duplicate   | the same media, by content, and the same text as a sample before it; or one of training     |
|             | among the samples that the stage is evaluated on                                            |
| modality    | no row of the stage's training data holds what it trains                                    |
| crash       | the process that checked it died, twice                                                     |
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image

from xllm.processing.audio_decoding import PYAV_ERRORS, Waveform, open_container
from xllm.processing.conversations import part_source
from xllm.processing.feature_extraction_xllm import FiredTokens, load_cif_features
from xllm.processing.media_kinds import MEDIA_KINDS, OWN_KINDS, MediaKind
from xllm.processing.media_sources import MediaError, media_errors, open_media
from xllm.processing.video_decoding import Frames, video_stream
from xllm.training.batches.collator import IGNORE, XLLMDataCollator
from xllm.training.data.dataset import ChatDataset, describe, read_stored
from xllm.training.data.media_rows import DataError
from xllm.training.data.plan import DataPlan
from xllm.training.data.samples import Sample, Stored
from xllm.training.data.sources import iterate_source


SAMPLING_RATE = 16_000  # Hz, of sounds that are decoded without a model
_FIELD = re.compile(r"(?:column '([^']+)')|([\w.\[\]]+): ")  # with which messages begin
NPY = b"\x93NUMPY"


@dataclass
class Problem:
    """What is wrong with a sample: one of the reasons above, the field, and a sentence."""

    reason: str
    field: str
    message: str


@dataclass
class Report:
    """What was found out about a sample.

    Args:
        where, source (`str`): place and name of the source.
        problems (`list[Problem]`): none if the sample is good.
        media (`list`): (kind, seconds or None) of each.
        tokens (`int`, *optional*): of the longest row that is made of it; `learnt` of them carry loss.
        row_tokens (`dict[str, int]`): placeholders by row of the model.
        unread (`list[str]`): keys that nothing reads.
        cut (`bool`): older turns, or the end of a text of stage 1, are left out for want of room.
        content, media_content (`bytes`): digests of media and text, and of the media alone (empty without media).
    """

    where: str
    source: str
    problems: list[Problem] = field(default_factory=list)
    media: list[tuple[str, float | None]] = field(default_factory=list)
    tokens: int | None = None
    learnt: int = 0
    row_tokens: dict[str, int] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    cut: bool = False
    content: bytes = b""
    media_content: bytes = b""


def read_group(plan: DataPlan, group: int, on_bad: Callable[[Report], None]) -> Iterator[Sample]:
    """The samples of a group, one by one; a report of each row, or whole file, that is none goes to `on_bad`."""
    for spec in plan.groups[group].sources:
        name = spec.name or str(spec.path)
        found = 0

        def note(where: str, error: DataError, name: str = name) -> None:
            nonlocal found
            found += 1
            message = str(error).removeprefix(f"{where}: ")
            place = _FIELD.match(message)
            reason = "missing" if "no such file" in message else "row"
            on_bad(Report(where, name, [Problem(reason, (place[1] or place[2]) if place else "", message)]))

        try:
            for sample in iterate_source(spec, plan.groups[group].media, note):
                found += 1
                yield sample
        except DataError as error:  # of the whole file
            note(name, error)
        if not found:
            note(name, DataError("no row is left"))


class SampleChecker:
    """`checker((group, sample))` gives the `Report` of a sample; made once in each process.

    Args:
        processor (`XLLMProcessor`, *optional*): of the model; without it media are decoded, and nothing else.
        collators (`list[XLLMDataCollator]`): of each group, if there is a processor.
        positions (`int`, *optional*): that the language model has.
    """

    def __init__(self, processor, collators: list[XLLMDataCollator], positions: int | None):
        torch.set_num_threads(1)
        self.processor, self.collators, self.positions = processor, collators, positions
        self.data = ChatDataset([[]], LoadersAlone() if processor is None else processor)
        self.digests: dict[str, str] = {}  # of recordings
        self.rng = np.random.default_rng(0)  # nothing is drawn: there is no augmentation

    def __call__(self, task: tuple[int, Sample]) -> Report:
        group, sample = task
        report = Report(sample.where, sample.source, unread=sorted(sample.unread))
        messages = _longest(sample).conversation(lambda n: 0)
        digests: list[str] = []
        decoded = [
            {**turn, "content": list(self._parts(turn, f"messages[{index}]", report, digests))}
            for index, turn in enumerate(messages)
        ]
        texts = [[part.get("text", part["type"]) for part in turn["content"]] for turn in messages]
        told = [sample.prompts, sample.answers] if sample.messages is None else texts
        if report.problems:  # of media that are not there nothing can be said to be the same
            return report
        report.content = _digest(json.dumps([digests, told, [turn["role"] for turn in messages]]).encode())
        report.media_content = _digest("".join(digests).encode()) if digests else b""
        last = "".join(part.get("text", "") for part in messages[-1]["content"])
        if not all(answer.strip() for answer in (sample.answers if sample.messages is None else [last])):
            report.problems.append(Problem("answer", f"messages[{len(messages) - 1}]", "the answer is empty"))
        elif self.processor is not None:
            self._collate(self.collators[group], {"messages": decoded}, report)
        return report

    # ---- media ------------------------------------------------------------------------------------------------------

    def _parts(self, turn: dict, place: str, report: Report, digests: list[str]) -> Iterator[dict]:
        """The content parts of a turn, decoded as training decodes them; digests of their contents are added."""
        for index, part in enumerate(turn["content"]):
            if part["type"] == "text":
                yield part
                continue
            kind, at = MEDIA_KINDS[part["type"]], f"{place}.content[{index}]"
            try:
                source = _fetched(kind, part_source(part))
                digests.append(f"{self._digest_of(source, part)} {part.get('offset')} {part.get('duration')}")
                decoded = self.data.decode_part({**part, kind.type: source}, self.rng)
                medium, seconds = decoded[kind.type], None
                if isinstance(medium, Waveform):
                    seconds = len(medium.samples) / medium.sampling_rate
                elif isinstance(medium, Frames):
                    _decode_to_the_end(source)
                    seconds = None if medium.metadata is None else medium.metadata.duration
            except MediaError as error:
                is_missing = error.reason == "no such file"
                report.problems.append(Problem("missing" if is_missing else "medium", at, str(error)))
            except ValueError as error:
                report.problems.append(Problem("row", at, str(error)))
            else:
                report.media.append((kind.type, seconds))
                yield decoded

    def _digest_of(self, source: Any, part: dict) -> str:
        """See `_content_of`; that of a file that segments are cut from is made once."""
        if not isinstance(source, str) or not part.keys() & {"offset", "duration"}:
            return _content_of(source)
        if source not in self.digests:
            self.digests[source] = _content_of(source)
        return self.digests[source]

    # ---- what it becomes --------------------------------------------------------------------------------------------

    def _collate(self, collator: XLLMDataCollator, item: dict, report: Report) -> None:
        """Makes the batch of a sample as training does, and counts its tokens."""
        limit, before, batch = collator.max_length, collator.cuts(), None
        try:
            if collator.task == "chat":
                collator.max_length = None
                self._count(batch := collator([item]), limit, report)
                collator.max_length = limit
            if batch is None or limit is not None and (report.tokens or 0) > limit:
                batch = collator([item])
        except (ValueError, TemplateError) as error:
            is_length = limit is not None and (report.tokens or 0) > limit
            report.problems.append(Problem("length" if is_length else "sample", "messages", describe(error)))
            return
        finally:
            collator.max_length = limit
        report.cut = collator.cuts() != before
        labels = batch["input_ids" if collator.task == "contrast" else "labels"]
        report.learnt = int((labels != IGNORE).sum())
        if collator.task != "chat":
            report.tokens = labels.shape[1]
            self._check_clip(collator, batch, labels.shape[1], report)
        if report.learnt == 0:
            report.problems.append(Problem("answer", "messages", "no token of the answer carries loss"))

    def _count(self, batch: dict, limit: int | None, report: Report) -> None:
        real = batch["attention_mask"].bool()
        length, ids = int(real.sum(1).max()), batch["input_ids"][real]
        rows, tokenizer = self.processor.rows, self.processor.tokenizer
        found = {name: int((ids == tokenizer.convert_tokens_to_ids(row.token)).sum()) for name, row in rows.items()}
        report.tokens, report.row_tokens = length, {name: number for name, number in found.items() if number}
        if limit is None and self.positions is not None and length > self.positions:
            message = f"{length} tokens, and the language model has {self.positions} positions; set max_length"
            report.problems.append(Problem("length", "messages", message))

    def _check_clip(self, collator: XLLMDataCollator, batch: dict, length: int, report: Report) -> None:
        """A clip fires at most one token per frame of the encoder: a longer transcript cannot be learnt."""
        row = self.processor.rows[collator.modality]
        if collator.task == "transcribe" and row.mask_name in batch:
            frames = row.num_placeholders(int(batch[row.mask_name].sum()))
            if frames < length:
                message = f"{length} tokens of text for {frames} frames of the speech encoder"
                report.problems.append(Problem("length", "messages", message))


def _longest(sample: Sample) -> Sample:
    """A sample with the longest of the prompts and answers that are drawn from."""
    if sample.messages is not None:
        return sample
    prompt, answer = (max(texts, key=len) for texts in (sample.prompts, sample.answers))
    return replace(sample, prompts=[prompt], answers=[answer])


def make_checker(plan: DataPlan) -> tuple:
    """Arguments of `SampleChecker` for a plan."""
    if plan.processor is None:
        return None, [], None
    positions = getattr(plan.config.get_text_config(), "max_position_embeddings", None)
    return plan.processor, [group.collator(plan.processor) for group in plan.groups], positions


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()


def _fetched(kind: MediaKind, source: Any) -> Any:
    """A medium behind an http(s) URL, or in another file, as its bytes, so that it is read once."""
    if isinstance(source, Stored):
        return read_stored(source)
    if kind in OWN_KINDS and isinstance(source, str) and source.startswith(("http://", "https://")):
        with open_media(source) as (file, _):
            return {"bytes": file.read(), "url": source}
    return source


def _content_of(source: Any) -> str:
    """Digest of a medium: of its encoded bytes, or of its values."""
    digest = blake2b(digest_size=16)
    if isinstance(source, dict) and source.get("array") is not None:
        source = source["array"]
    if isinstance(source, Image.Image):
        source = np.asarray(source)
    if isinstance(source, (list, tuple)):
        return ",".join(map(_content_of, source)) if not source or isinstance(source[0], str) else repr(source)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        values = np.ascontiguousarray(source)
        digest.update(f"{values.dtype}{values.shape}".encode() + values.tobytes())
        return digest.hexdigest()
    with open_media(source) as (file, _):
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


class LoadersAlone:
    """Decodes media without a model, in place of its processor: by each kind's own loader, or by a reader of one's own
    with its defaults.
    """

    feature_extractor = None

    def __init__(self) -> None:
        self.reader = SimpleNamespace(num_frames=1, fps=None, sampling_rate=SAMPLING_RATE)
        self.own: dict[str, Any] = {}

    def load(self, name: str, source: Any) -> Any:
        """A decoded medium."""
        kind = MEDIA_KINDS[name]
        if kind not in OWN_KINDS:
            return kind.load(source, self.own.setdefault(name, kind.reader_class()))
        if isinstance(source, (str, dict)) and (width := _vector_width(source)) is not None:
            return FiredTokens(load_cif_features(source, width))
        return kind.load(source, self.reader)


def _vector_width(source: Any) -> int | None:
    """Of a NumPy file, which is features in place of sound, the size of its vectors; `None` of any other medium."""
    with open_media(source) as (file, name):
        if file.read(len(NPY)) != NPY:
            return None
        file.seek(0)
        with media_errors(name, "not a readable .npy file of numbers", (ValueError, EOFError, IndexError)):
            return np.lib.format.read_array(file, allow_pickle=False).shape[-1]


def _decode_to_the_end(source: Any) -> None:
    """Decodes every frame of a film; a `MediaError` where a decoder fails or says that a frame is damaged."""
    if not isinstance(source, (str, bytes, dict)):
        return  # frames in memory
    with open_media(source) as (file, name):
        if file.read(12)[8:] == b"WEBP":
            return  # read whole by its loader
        file.seek(0)
        with open_container(file, name) as container:
            stream = video_stream(container, name)
            with media_errors(name, "damaged video", PYAV_ERRORS):
                for number, frame in enumerate(container.decode(stream), start=1):
                    if frame.is_corrupt:
                        raise MediaError(name, f"damaged video (frame {number})")

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The training set: samples of several sources, media decoded when asked for, augmented, drawn by weight.

Everything random follows from (seed, epoch, place in the epoch): a resumed run sees what an uninterrupted one would
have seen, with any number of workers and processes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jinja2 import TemplateError
from PIL import Image
from torch.utils.data import Dataset
from transformers.utils import logging

from xllm.processing.audio_decoding import Waveform
from xllm.processing.conversations import part_source
from xllm.processing.feature_extraction_xllm import XLLMCIFFeatureExtractor
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.processing.media_sources import MediaError, describe_source
from xllm.processing.video_decoding import Frames
from xllm.training.data.augmentation import Augmentation
from xllm.training.data.long_media import LongMedia
from xllm.training.data.media_rows import DataError, media_rows
from xllm.training.data.samples import Sample, Stored
from xllm.training.data.sources import load_source
from xllm.training.recipes.recipe import SourceSpec
from xllm.training.saving.lineage import data_fingerprint


logger = logging.get_logger(__name__)
MOST_KEPT = 256 << 20  # bytes


class SampleError(MediaError, DataError):
    """A sample that cannot be used, in one line: its place, and what is wrong with it."""

    def __init__(self, source: str, reason: str | None = None):
        if "\nOriginal Traceback" in source:  # from a worker; its last line is the error itself
            source = source.strip().splitlines()[-1].partition(": ")[2]
        super().__init__(source, reason)


def describe(error: Exception) -> str:
    """An error in one line, with its kind if that says more than that a value is wrong."""
    text = " ".join(str(error).split())
    if isinstance(error, TemplateError):
        return f"the chat template cannot write this conversation: {text}"
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


class Recordings(dict):
    """The recordings that spans were cut from lately, as many as 256 MB hold, the last one in any case: segments that
    follow each other, or are in one batch, do not decode theirs again and again.
    """

    def __setitem__(self, key: str, medium: Any) -> None:
        if isinstance(medium, Waveform):
            super().__setitem__(key, medium)
        while len(self) > 1 and sum(one.samples.nbytes for one in self.values()) > MOST_KEPT:
            del self[next(iter(self))]


class ChatDataset(Dataset):
    """Samples as conversations whose media are decoded: `{"messages", "where"}`, for `XLLMDataCollator`.

    Args:
        sources (`list[list[Sample]]`): samples by source.
        processor (`XLLMProcessor`): opens and decodes media (`load`): at its sampling rate, the frames it chooses.
        weights (`list[float]`, *optional*): how often each source's samples come per epoch, on average; default 1.
        augmentation (`Augmentation`, *optional*): of waveforms and pictures, as their kinds say (`augmented_as`); that
            of features is the collator's, from the "seed" that each sample then has.
        on_error (`str`): "raise" a `SampleError`, or "skip" the sample: the next good one takes its place.
        cache_media (`bool` or `dict`): keep decoded media in memory (once per worker); a dict is shared by the data
            sets that get it, of one processor.
        seed (`int`): of prompts, captions, augmentation and of which samples a fractional weight takes.
        long_media (`LongMedia`, *optional*): what happens to sounds that are too long; default nothing.
    """

    def __init__(
        self,
        sources: Sequence[list[Sample]],
        processor,
        weights: Sequence[float] | None = None,
        augmentation: Augmentation | None = None,
        on_error: str = "raise",
        cache_media: bool | dict = False,
        seed: int = 0,
        long_media: LongMedia | None = None,
    ):
        self.long_media = LongMedia() if long_media is None else long_media
        self.kinds: np.ndarray | None = None  # of `samples`, where a batch holds one kind of them alone
        self._weights = [1.0] * len(sources) if weights is None else list(weights)
        reads_features = isinstance(processor.feature_extractor, XLLMCIFFeatureExtractor)
        if reads_features and augmentation is not None and augmentation.handles("waveform"):
            raise DataError("augmentation changes waveforms, but this model reads pre-extracted features of speech")
        if len(self._weights) != len(sources) or any(weight <= 0 for weight in self._weights):
            raise DataError(f"weights must be {len(sources)} positive numbers, one per source; got {self._weights}")
        self.samples = [sample for source in sources for sample in source]
        self.processor, self.augmentation, self.on_error, self.seed = processor, augmentation, on_error, seed
        self.cache: dict[str, Any] | None = (
            {} if cache_media is True else None if cache_media is False else cache_media
        )
        self._recordings = Recordings()
        self._bounds = np.cumsum([0, *(len(source) for source in sources)])
        self.unread_rows: list[str] = []  # places of rows that gave no sample
        # Shared with the workers: the log counts what any of them leaves out, and those that live on learn the epoch.
        self._skipped = torch.zeros(len(self.samples), dtype=torch.uint8).share_memory_()
        self._epoch = torch.zeros((), dtype=torch.long).share_memory_()
        self._draw(0)

    @classmethod
    def from_specs(cls, specs: Iterable[SourceSpec], processor, modalities: Iterable[str] = (), **kwargs):
        """Read the sources of a recipe for training the rows `modalities`; see `load_source` and the class."""
        specs, media, unread = list(specs), media_rows(processor, modalities), []

        def skip(where: str, error: DataError) -> None:
            logger.warning(f"skipped {error}")
            unread.append(where)

        on_bad = skip if kwargs.get("on_error") == "skip" else None
        sources = [load_source(spec, media, on_bad) for spec in specs]
        data = cls(sources, processor, weights=[spec.weight for spec in specs], **kwargs)
        data.unread_rows = unread
        return data

    def set_epoch(self, epoch: int) -> None:
        """Choose the samples of an epoch, in the workers too; `XLLMTrainer` calls this on every process, accelerate's
        data loader on a single one only.
        """
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch whose samples are given."""
        return int(self._epoch)

    def _draw(self, epoch: int) -> None:
        rng = np.random.default_rng([self.seed, epoch])
        order = []
        for source, weight in enumerate(self._weights):
            indices = np.arange(self._bounds[source], self._bounds[source + 1])
            extra = round(len(indices) * (weight % 1.0))
            drawn = np.sort(rng.permutation(indices)[:extra])
            order.append(np.concatenate([np.tile(indices, int(weight)), drawn]))
        self._order, self._drawn = np.concatenate(order), epoch

    @property
    def order(self) -> np.ndarray:
        """For each place of the epoch, which of `samples` comes there."""
        if self.epoch != self._drawn:
            self._draw(self.epoch)
        return self._order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> dict:
        """One conversation with decoded media. `SampleError`: it is broken, or with "skip" all are."""
        return self._item(int(index), 0)

    def instead_of(self, item: dict, error: Exception) -> dict:
        """The item that takes the place of one that no batch can be made of. `SampleError`: see above."""
        index, attempt, place = item["place"]
        self._leave_out(place, error)
        return self._item(index, attempt + 1)

    def _item(self, index: int, first: int) -> dict:
        order = self.order
        for attempt in range(first, len(order)):
            rng = np.random.default_rng([self.seed, self._drawn, index, 1, *([attempt] if attempt else [])])
            place = int(order[(index + attempt) % len(order)])
            if self.kinds is not None and self.kinds[place] != self.kinds[order[index]]:
                continue  # what takes the place of a broken sample belongs into its batch
            try:
                return {**self.item(self.samples[place], rng), "data": self, "place": (index, attempt, place)}
            except Exception as error:  # noqa: BLE001  # of any kind: decoders are other libraries'
                self._leave_out(place, error)
        raise SampleError("no sample of the data can be used")

    def _leave_out(self, place: int, error: Exception) -> None:
        """Count a broken sample and name it, or raise."""
        line = f"{self.samples[place].where}: {describe(error)}"
        if self.on_error == "raise":
            raise SampleError(line) from error
        if not self._skipped[place]:
            logger.warning(f"skipped {line}")
        self._skipped[place] = 1

    def item(self, sample: Sample, rng: np.random.Generator) -> dict:
        """A sample with its media decoded and augmented, as `XLLMDataCollator` takes it."""
        item: dict[str, Any] = {"messages": self._decode(sample, rng), "where": sample.where, "source": sample.source}
        item["equivalents"] = sample.equivalents
        return item if self.augmentation is None else {**item, "seed": int(rng.integers(2**31))}

    def fingerprint(self) -> dict:
        """See `data_fingerprint`."""
        return data_fingerprint(self.samples)

    def summary(self) -> str:
        """How much there is, in a few words."""
        return f"{len(self)} samples"

    def skipped(self) -> list[str]:
        """Places of the samples left out so far."""
        return self.unread_rows + [self.samples[index].where for index in self._skipped.nonzero().flatten().tolist()]

    def skip_again(self, places: Iterable[str]) -> None:
        """Count samples as left out that an interrupted run has left out."""
        places = set(places)
        for index, sample in enumerate(self.samples):
            self._skipped[index] |= sample.where in places

    def _decode(self, sample: Sample, rng: np.random.Generator) -> list[dict]:
        messages = sample.conversation(lambda n: int(rng.integers(n)))
        return [{**turn, "content": self._decode_parts(turn["content"], rng)} for turn in messages]

    def _decode_parts(self, parts: list[dict], rng: np.random.Generator) -> list[dict]:
        return [one for part in parts for one in self.long_media.apply(self.decode_part(part, rng), rng)]

    def decode_part(self, part: dict, rng: np.random.Generator) -> dict:
        """A content part with its medium decoded, cut to its span and augmented; text as it is.

        Raises:
            MediaError: it cannot be decoded.
        """
        kind = part["type"]
        if kind == "text":
            return part
        is_span = "offset" in part or "duration" in part
        medium = _cut(self._load(kind, part_source(part), self._recordings if is_span else None), part)
        for what in MEDIA_KINDS[kind].augmented_as:
            if self.augmentation is not None and what != "features" and self.augmentation.handles(what):
                medium = changed(medium, partial(self.augmentation.apply, what, rng=rng))
        return {"type": kind, kind: medium}

    def _load(self, kind: str, source: Any, recent: dict | None = None) -> Any:
        """A decoded medium, from the cache, or from what was decoded lately, if it is there."""
        key = f"{kind}:{source.name if isinstance(source, Stored) else source}"
        kept = recent if self.cache is None else self.cache
        if kept is None or not isinstance(source, (str, Stored)):
            key = ""
        elif key in kept:
            return kept[key]
        if isinstance(source, Stored):
            source = read_stored(source)
        medium = self.processor.load(kind, source)
        if key and kept is not None:
            kept[key] = medium
        return medium


def read_stored(source: Stored) -> dict:
    """A medium in another file as its bytes and its name, for the loaders; `MediaError` if it is not there."""
    try:
        return {"bytes": source.read(), "path": source.name}
    except (OSError, ValueError, IndexError) as error:
        raise MediaError(source.name, f"cannot be read from its file ({error})") from error


def _cut(medium: Any, part: dict) -> Any:
    """The span of a sound that its part names by `offset` and `duration`, in seconds."""
    if "offset" not in part and "duration" not in part:
        return medium
    if not isinstance(medium, Waveform):
        raise MediaError(describe_source(part_source(part)), "a span (offset, duration) can be cut from sounds only")
    rate, begin = medium.sampling_rate, part.get("offset", 0.0)
    end = len(medium.samples) / rate if part.get("duration") is None else begin + part["duration"]
    if not begin < end <= len(medium.samples) / rate + 0.05:
        raise MediaError(
            describe_source(part_source(part)),
            f"holds {len(medium.samples) / rate:.2f} s, not the span from {begin:.2f} to {end:.2f} s",
        )
    return replace(medium, samples=medium.samples[round(begin * rate) : round(end * rate)])


def changed(medium: Any, change: Callable[[np.ndarray], np.ndarray]) -> Any:
    """A decoded medium with its values changed; what else is known of it stays."""
    if isinstance(medium, Image.Image):
        return Image.fromarray(change(np.asarray(medium)))
    if isinstance(medium, Frames):
        return replace(medium, frames=change(medium.frames))
    if isinstance(medium, Waveform):
        return replace(medium, samples=change(medium.samples))
    return change(medium)


__all__ = ["ChatDataset", "changed"]

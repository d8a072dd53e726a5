# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Which samples share a batch: those of about one length (`trainer.train_sampling_strategy: group_by_length`), those
with the same kinds of media (`data.one_modality`), or both.

Lengths are told without decoding: of texts by the tokenizer, of pictures and videos by what the processor makes of
any, of sounds by their headers.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy as np
from torch.utils.data import Sampler

from xllm.processing.audio_decoding import PYAV_ERRORS, Waveform, open_container
from xllm.processing.conversations import part_source
from xllm.processing.feature_extraction_xllm import XLLMCIFFeatureExtractor
from xllm.processing.media_kinds import AUDIO, MEDIA_KINDS
from xllm.processing.media_sources import MediaError, open_media
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import Sample, Stored


_THREADS = 8
_MEGABATCH = 50  # batches among which samples are sorted, as in transformers' LengthGroupedSampler
_REMOTE = ("http:", "https:")


def kinds_of_sample(sample: Sample) -> str:
    """The types of a sample's media, joined by "+", or "text"."""
    return "+".join(sorted({part["type"] for part in sample.parts()} - {"text"})) or "text"


def token_lengths(samples: Sequence[Sample], processor: Any) -> list[int]:
    """Tokens of each sample: its text (of several answers or prompts the longest) and its media; templates aside.

    Raises:
        DataError: the length of a medium cannot be told without reading all of it; names sample and way out.
    """
    texts = [_longest_text(sample) for sample in samples]
    lengths = [len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []
    parts = [
        (index, part) for index, sample in enumerate(samples) for part in sample.parts() if part["type"] != "text"
    ]
    with ThreadPoolExecutor(_THREADS) as pool:
        counts = pool.map(lambda found: _media_tokens(samples[found[0]].where, found[1], processor), parts)
        for (index, _), count in zip(parts, counts):
            lengths[index] += count
    return lengths


def _longest_text(sample: Sample) -> str:
    if sample.messages is not None:
        return "".join(part["text"] for part in sample.parts() if part["type"] == "text")
    return max(sample.prompts, key=len) + max(sample.answers, key=len)


def _media_tokens(where: str, part: dict, processor: Any) -> int:
    kind = MEDIA_KINDS[part["type"]]
    rows, reader = processor.rows_of(kind), processor.reader(kind)
    try:
        if kind.series:
            positions = reader.num_frames
        elif all(row.tokens_per_item is not None for row in rows):
            positions = 1
        elif isinstance(reader, XLLMCIFFeatureExtractor):
            positions = _num_vectors(part_source(part), reader)
        elif kind.count is not None and hasattr(reader, "sampling_rate"):
            positions = kind.count(reader, round(seconds_of(part) * reader.sampling_rate))
        else:
            raise MediaError(f"only the reader of {kind.type} parts can tell how long one is")
    except (MediaError, *PYAV_ERRORS) as error:
        raise DataError(
            f"{where}: the length of its {kind.type} part cannot be told without reading it ({error}); leave out "
            "train_sampling_strategy: group_by_length"
        ) from error
    return sum(row.num_placeholders(positions) for row in rows)


def _num_vectors(source: Any, reader: XLLMCIFFeatureExtractor) -> int:
    """Vectors of a clip; of a `.npy` file by its header."""
    if isinstance(source, str):
        return len(np.load(source, mmap_mode="r"))
    return len(reader.load({"bytes": source.read()} if isinstance(source, Stored) else source).vectors)


def seconds_of(part: dict) -> float:
    """How long a sound is, from its part or its header; a `MediaError` where neither says."""
    if part.get("duration") is not None:
        return part["duration"]
    source = part_source(part)
    if isinstance(source, Waveform):
        seconds = len(source.samples) / source.sampling_rate
    elif isinstance(source, dict) and source.get("array") is not None:
        seconds = len(source["array"]) / source["sampling_rate"]
    else:
        seconds = _header_seconds({"bytes": source.read()} if isinstance(source, Stored) else source)
    return max(seconds - part.get("offset", 0.0), 0.0)


def _header_seconds(source: Any) -> float:
    if isinstance(source, str) and source.startswith(_REMOTE):
        raise MediaError(source, "would have to be downloaded; give `duration` in its row")
    container: Any
    with open_media(source) as (file, name), open_container(file, name) as container:
        stream = container.streams.best(AUDIO.type)
        if stream is not None and stream.duration:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return container.duration / av.time_base
    raise MediaError(name, "its header does not say how long it is; give `duration` in its row")


class GroupedSampler(Sampler[int]):
    """Indices of a `ChatDataset` in an order whose consecutive batches hold samples that fit together.

    Within an epoch everything follows from the data set's seed and epoch, on every rank alike. With `one_modality` a
    group of samples that does not fill its last batch is filled up with others of the group: some come twice.

    Args:
        data (`ChatDataset`).
        batch_size (`int`): of one rank.
        by_length, one_modality (`bool`).
    """

    def __init__(self, data: Any, batch_size: int, by_length: bool, one_modality: bool):
        self.data, self.batch_size = data, batch_size
        self.lengths = np.array(token_lengths(data.samples, data.processor)) if by_length else None
        kinds = [kinds_of_sample(sample) if one_modality else "" for sample in data.samples]
        self.kinds, self.fills = np.array(kinds), one_modality
        data.kinds = self.kinds if one_modality else None
        sizes: defaultdict[str, int] = defaultdict(int)
        for kind in self.kinds[data.order]:
            sizes[kind] += 1
        self._length = sum(-(-size // batch_size) * batch_size if one_modality else size for size in sizes.values())

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order, rng = self.data.order, np.random.default_rng([self.data.seed, self.data.epoch, 2])
        full: list[Any] = []
        rest: list[Any] = []
        kinds = self.kinds[order]
        for kind in sorted(set(kinds)):
            indices = rng.permutation(np.flatnonzero(kinds == kind))
            if self.fills:
                indices = np.resize(indices, -(-len(indices) // self.batch_size) * self.batch_size)
            for batch in self._batches(indices, order):
                (full if len(batch) == self.batch_size else rest).append(batch)
        found = [full[index] for index in rng.permutation(len(full))] + rest
        yield from (int(index) for batch in found for index in batch)

    def _batches(self, indices: np.ndarray, order: np.ndarray) -> Iterator[np.ndarray]:
        step = self.batch_size * _MEGABATCH
        for start in range(0, len(indices), step):
            part = indices[start : start + step]
            if self.lengths is not None:
                part = part[np.argsort(-self.lengths[order[part]], kind="stable")]
            yield from (part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size))


__all__ = ["GroupedSampler", "kinds_of_sample", "seconds_of", "token_lengths"]

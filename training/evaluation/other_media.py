# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Does a model use its media? The same questions with others than their own.

| `media` | each row has                                                                                        |
|---------|-----------------------------------------------------------------------------------------------------|
| real     | its own                                                                                            |
| shuffled | those of another row with as many of the same kinds, never its own; which one follows from a seed  |
| blank    | its own, of which nothing is left but their size: grey pictures and frames, silence, zeros         |
| absent   | none                                                                                               |
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from xllm.processing.conversations import part_source
from xllm.training.data.dataset import ChatDataset, changed
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import Sample, Stored


MEDIA_CHOICES = ("real", "shuffled", "blank", "absent")
_GREY = 128


def with_media(sources: list[list[Sample]], choice: str, seed: int = 0) -> list[list[Sample]]:
    """The samples with other media than their own; for "real" and "blank" as they are.

    Raises:
        DataError: there is no other medium to shuffle with.
    """
    if choice == "absent":
        return [[_with_parts(sample, iter(())) for sample in source] for source in sources]
    if choice == "shuffled":
        others = _others([sample for source in sources for sample in source], seed)
        return [[_with_parts(sample, iter(others[_key(sample)])) for sample in source] for source in sources]
    return sources


def _media(sample: Sample) -> list[dict]:
    return [part for part in sample.parts() if part["type"] != "text"]


def _key(sample: Sample) -> tuple:
    """Which media a row has: rows about one picture have the same."""
    return tuple((part["type"], _name(part_source(part)), part.get("offset")) for part in _media(sample))


def _name(source: Any) -> Any:
    return source.name if isinstance(source, Stored) else source if isinstance(source, str) else id(source)


def _others(samples: list[Sample], seed: int) -> dict[tuple, list[dict]]:
    """For the media of each row those of another one."""
    parts = {_key(sample): _media(sample) for sample in samples}
    kinds: dict[tuple, list[tuple]] = {}
    for key in parts:
        kinds.setdefault(tuple(kind for kind, *_ in key), []).append(key)
    rng = np.random.default_rng(seed)
    others: dict[tuple, list[dict]] = {}
    for names, keys in kinds.items():
        if names and len(keys) == 1:
            where = next(sample.where for sample in samples if _key(sample) == keys[0])
            raise DataError(f"{where}: no other row has other media of its kinds ({', '.join(names)}) to shuffle with")
        order = [keys[number] for number in rng.permutation(len(keys))]
        others |= {key: parts[other] for key, other in zip(order, order[1:] + order[:1])}
    return others


def _with_parts(sample: Sample, parts: Iterator[dict]) -> Sample:
    """A sample with these in place of its media, in order; with none once they are used up."""
    if sample.messages is None:
        return replace(sample, media=list(parts))

    def placed(content: list[dict]) -> list[dict]:
        found = (part if part["type"] == "text" else next(parts, None) for part in content)
        return [part for part in found if part is not None] or [{"type": "text", "text": ""}]

    return replace(sample, messages=[{**turn, "content": placed(turn["content"])} for turn in sample.messages])


class BlankMedia(ChatDataset):
    """Media of which nothing is left but their size."""

    def decode_part(self, part: dict, rng: np.random.Generator) -> dict:
        """Grey where values are bytes, zero elsewhere."""
        part = super().decode_part(part, rng)
        kind = part["type"]
        return part if kind == "text" else {**part, kind: changed(part[kind], _blank)}


def _blank(values: Any) -> Any:
    if not isinstance(values, np.ndarray):
        return values * 0
    return np.full_like(values, _GREY if values.dtype == np.uint8 else 0)


__all__ = ["MEDIA_CHOICES", "BlankMedia", "with_media"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Does a model use its media? The same questions with others than their own.

| `media` | each row has                                                                                        |
|---------|-----------------------------------------------------------------------------------------------------|
| real     | its own                                                                                            |
| shuffled | those of another row with as many of the same kinds, never its own; which one follows from a seed  |
| blank    | its own, of which nothing is left but their size: grey pictures and frames, silence, zeros         |
| absent   | none                                                                                               |

With `media_of`, the others stay: is a spoken question understood better with the right picture than with a wrong one?
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from xllm.processing.conversations import part_source
from xllm.training.data.dataset import ChatDataset, changed
from xllm.training.data.media_rows import DataError
from xllm.training.data.samples import Sample, Stored


MEDIA_CHOICES = ("real", "shuffled", "blank", "absent")
_GREY = 128


def with_media(
    sources: list[list[Sample]], choice: str, kinds: frozenset[str] | None = None, seed: int = 0
) -> list[list[Sample]]:
    """The samples with other media than their own; for "real" and "blank" as they are. With `kinds` of media, the
    others stay: the same question is heard about another picture.

    Raises:
        DataError: there is no other medium to shuffle with, or no row has a medium of these kinds.
    """
    if kinds and not any(_media(sample, kinds) for source in sources for sample in source):
        raise DataError(f"no row has media of the kinds {', '.join(sorted(kinds))}, which were to be others")
    if choice == "absent":
        return [[_with_parts(sample, iter(()), kinds) for sample in source] for source in sources]
    if choice == "shuffled":
        others = _others([sample for source in sources for sample in source], seed, kinds)
        return [
            [_with_parts(sample, iter(others[media_key(sample, kinds)]), kinds) for sample in source]
            for source in sources
        ]
    return sources


def _is_of(part: dict, kinds: frozenset[str] | None) -> bool:
    return part["type"] != "text" and (kinds is None or part["type"] in kinds)


def _media(sample: Sample, kinds: frozenset[str] | None = None) -> list[dict]:
    return [part for part in sample.parts() if _is_of(part, kinds)]


def media_key(sample: Sample, kinds: frozenset[str] | None = None) -> tuple:
    """Which media a row has: rows about one picture have the same."""
    return tuple((part["type"], _name(part_source(part)), part.get("offset")) for part in _media(sample, kinds))


def _name(source: Any) -> Any:
    return source.name if isinstance(source, Stored) else source if isinstance(source, str) else id(source)


def media_digest(sample: Sample) -> dict[str, str]:
    """`{"media_sha256": digest}` of the bytes of a row's media that lie in files; `{}` where none does."""
    found = []
    for part in _media(sample, None):
        source = part_source(part)
        try:
            if isinstance(source, Stored):
                found.append(hashlib.sha256(source.read()).hexdigest())
            elif isinstance(source, str) and os.path.isfile(source):
                state = os.stat(source)
                found.append(_file_digest(source, state.st_size, state.st_mtime_ns))
        except (OSError, ValueError, IndexError):  # is said where it is decoded
            found.append("unread")
    return {"media_sha256": hashlib.sha256(" ".join(found).encode()).hexdigest()} if found else {}


@lru_cache(maxsize=1024)
def _file_digest(path: str, size: int, changed: int) -> str:
    """Of a file in this state: rows about spans of one recording follow each other."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _others(samples: list[Sample], seed: int, of: frozenset[str] | None) -> dict[tuple, list[dict]]:
    """For the media of each row those of another one."""
    parts = {media_key(sample, of): _media(sample, of) for sample in samples}
    kinds: dict[tuple, list[tuple]] = {}
    for key in parts:
        kinds.setdefault(tuple(kind for kind, *_ in key), []).append(key)
    rng = np.random.default_rng(seed)
    others: dict[tuple, list[dict]] = {}
    for names, keys in kinds.items():
        if names and len(keys) == 1:
            where = next(sample.where for sample in samples if media_key(sample, of) == keys[0])
            raise DataError(f"{where}: no other row has other media of its kinds ({', '.join(names)}) to shuffle with")
        order = [keys[number] for number in rng.permutation(len(keys))]
        others |= {key: parts[other] for key, other in zip(order, order[1:] + order[:1])}
    return others


def _with_parts(sample: Sample, parts: Iterator[dict], of: frozenset[str] | None) -> Sample:
    """A sample with these in place of its media, in order; with none once they are used up."""

    def placed(content: list[dict]) -> list[dict]:
        found = (next(parts, None) if _is_of(part, of) else part for part in content)
        return [part for part in found if part is not None]

    if sample.messages is None:
        return replace(sample, media=placed(sample.media))
    turns = [
        {**turn, "content": placed(turn["content"]) or [{"type": "text", "text": ""}]} for turn in sample.messages
    ]
    return replace(sample, messages=turns)


class BlankMedia(ChatDataset):
    """Media of which nothing is left but their size; with `blanked`, only of these kinds."""

    blanked: frozenset[str] | None = None

    def decode_part(self, part: dict, rng: np.random.Generator) -> dict:
        """Grey where values are bytes, zero elsewhere."""
        part = super().decode_part(part, rng)
        kind = part["type"]
        return {**part, kind: changed(part[kind], _blank)} if _is_of(part, self.blanked) else part


def _blank(values: Any) -> Any:
    if not isinstance(values, np.ndarray):
        return values * 0
    return np.full_like(values, _GREY if values.dtype == np.uint8 else 0)


__all__ = ["MEDIA_CHOICES", "BlankMedia", "media_digest", "media_key", "with_media"]

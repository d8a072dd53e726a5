# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Transcripts in one spelling, by libraries that are kept: Whisper's normalisers in transformers, WeTextProcessing.

| `normalize_text` | what it does                                                                                    |
|------------------|-------------------------------------------------------------------------------------------------|
| basic            | Whisper's for any language: lower case, no punctuation, no remarks in brackets                   |
| english          | Whisper's: numbers as digits, contractions written out (without its list of British spellings)   |
| mandarin         | WeTextProcessing's: numbers, dates and units read out, simplified characters, half width, no     |
|                  | punctuation; Latin letters in lower case, no space beside Chinese characters                     |
"""

import re
from collections.abc import Callable
from functools import cache

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from xllm.training.data.media_rows import DataError


CHINESE = r"[\u3400-\u9fff\uf900-\ufaff]"
_SPACE = re.compile(rf"(?<={CHINESE})\s+|\s+(?={CHINESE})")


def _mandarin() -> Callable[[str], str]:
    try:
        from wetext import Normalizer
    except ImportError as error:
        raise DataError(
            'normalize_text: mandarin needs the library wetext: pip install "xllm-transformers[mandarin]"'
        ) from error
    read_out = Normalizer(
        lang="zh", operator="tn", traditional_to_simple=True, full_to_half=True, remove_puncts=True
    ).normalize
    return lambda text: _SPACE.sub("", read_out(text)).lower()


# By name: makes the function from text to text.
NORMALIZERS: dict[str, Callable[[], Callable[[str], str]]] = {
    "basic": BasicTextNormalizer,
    "english": lambda: EnglishTextNormalizer({}),
    "mandarin": _mandarin,
}


@cache
def normalizer(name: str) -> Callable[[str], str]:
    """The normaliser of this name; white space at the ends is dropped.

    Raises:
        DataError: there is none, or its library is not installed.
    """
    if name not in NORMALIZERS:
        raise DataError(f"normalize_text is {name!r}; choose one of {', '.join(NORMALIZERS)}")
    normalize = NORMALIZERS[name]()
    return lambda text: normalize(text).strip()


__all__ = ["NORMALIZERS", "normalizer"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The processor's placeholders: tokens and ids of the rows, what stands in a text for a medium, and whether the
numbers agree.
"""

import re

import numpy as np
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import _UNMARKED

from .media_kinds import MEDIA_KINDS, MediaKind, media_kind
from .media_rows import MediaRow, place_tokens, token_names


class PlaceholdersMixin(ProcessorMixin):
    """For a processor with a tokenizer and `rows`, a table of `MediaRow`."""

    def rows_of(self, kind: MediaKind) -> list[MediaRow]:
        """The rows that read a kind of media, in order."""
        return [row for row in self.rows.values() if row.part == kind.type]

    def _place_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Placeholder tokens and ids as attributes, where the base class looks for them."""
        ids = place_tokens(self.rows, tokenizer)
        tokens = {kind.token_name: getattr(tokenizer, kind.token_name, None) for kind in MEDIA_KINDS.values()}
        tokens |= {name: self.rows[row].token for row, name in token_names(self.rows).items()}
        for name, token in tokens.items():
            setattr(self, name, token)
            setattr(self, f"{name}_id", None if token is None else tokenizer.convert_tokens_to_ids(token))
        self._token_names = tuple(name for name, token in tokens.items() if token is not None)
        self._ids_of_kinds = [
            [ids[name] for name, row in self.rows.items() if row.part == kind.type] for kind in MEDIA_KINDS.values()
        ]

    def _part_texts(self) -> dict[str, tuple[str, str]]:
        """Content part type -> its placeholder, and what a template writes for it."""
        texts = {}
        for kind in MEDIA_KINDS.values():
            token = getattr(self, kind.token_name, None)
            if token is not None:  # of several rows, each has its wrapper in what the placeholder is replaced with
                several = len(self.rows_of(kind)) > 1
                texts[kind.type] = (token, token if several else f"<{kind.wrapper}>{token}</{kind.wrapper}>")
        return texts

    def _replacement(self, kind: MediaKind, processed: dict, index: int) -> str:
        """What stands in the text for one medium: a run of placeholders, or a wrapped one for each of several rows."""
        rows = self.rows_of(kind)
        runs = [row.run(processed, index) for row in rows]
        if len(runs) == 1:
            return runs[0]
        return "".join(f"<{row.wrapper}>{run}</{row.wrapper}>" for row, run in zip(rows, runs))

    def create_mm_token_type_ids(self, input_ids: list) -> list[list[int]]:
        """0 for text, otherwise the place of the kind in `MEDIA_KINDS`, from 1: image 1, video 2, audio 3, then your
        own.
        """
        types = []
        for row in input_ids:
            ids = np.array(row.tolist() if hasattr(row, "tolist") else row)
            types.append(sum(n * np.isin(ids, of_kind) for n, of_kind in enumerate(self._ids_of_kinds, 1)).tolist())
        return types

    def _check_counts(self, text: list[str] | None, media: dict[str, list]) -> None:
        """Compares the numbers of placeholders and media, kind by kind."""
        for kind in MEDIA_KINDS.values():
            token = getattr(self, kind.token_name, None)
            if text is None or token is None:
                continue
            named, items = sum(row.count(token) for row in text), media.get(kind.type)
            if items is None and named:
                raise ValueError(f"Found {named} {token} tokens in the text but no {kind.inputs} were passed.")
            if items is not None and named != len(items):
                raise ValueError(
                    f"The total number of {token} tokens in the prompts should be the same as the number of "
                    f"{kind.inputs} "
                    f"passed. Found total {named} {token} tokens and {len(items)} {kind.inputs}."
                )

    def _write_out(self, text: list[str], replacements: dict[str, list[str]]) -> tuple[list[str], list[list[dict]]]:
        """The base class's `get_text_with_replacements`, for any kinds."""
        left = {name: iter(found) for name, found in replacements.items()}
        tokens = {name: re.escape(getattr(self, media_kind(name).token_name)) for name in left}
        pattern = re.compile("|".join(f"(?P<{name}>{_UNMARKED}{token})" for name, token in tokens.items()) or "(?!)")
        written, offsets = [], []
        for row in text:
            spans, pieces, end, grown = [], [], 0, 0
            for match in pattern.finditer(row):
                new = next(left[match.lastgroup])
                begin = match.start() + grown
                span = {"span": match.span(), "new_span": (begin, begin + len(new))}
                spans.append({"type": match.lastgroup, **span, "text": match.group(), "replacement": new})
                pieces += [row[end : match.start()], new]
                end, grown = match.end(), grown + len(new) - len(match.group())
            written.append("".join([*pieces, row[end:]]))
            offsets.append(spans)
        return written, offsets


__all__ = ["PlaceholdersMixin"]

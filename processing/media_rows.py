# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A model's modality rows as its processor sees them: which part each reads, its token, and how many of them an
item takes.

A row that takes `tokens_per_item` has as many placeholders for each item, or for each picture of a series; any other
has one per `subsampling_factor` input positions, rounded up, an upper bound of the tokens that a CIF fires (the model
masks the rest).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.processing_utils import _UNMARKED

from .media_kinds import MEDIA_KINDS, PAPER_KINDS, MediaKind, media_kind, part_of_row


@dataclass
class MediaRow:
    """One row.

    Args:
        part: type of the content part that it reads; by default that of its input, else the row's name.
        token: placeholder of one embedding; by default the tokenizer's, or else the kind's.
        tokens_per_item: placeholders of an item, or of each picture of a series.
        subsampling_factor: without `tokens_per_item`, input positions per placeholder.
        most_positions: input positions that its encoder reads at once, where its config says.
        input_name, mask_name: arguments of the model; by default the kind's.
        wrapper: tags around its placeholders; by default the kind's, or for further rows of a kind the row's name.
    """

    part: str | None = None
    token: str | None = None
    tokens_per_item: int | None = None
    subsampling_factor: int = 1
    input_name: str | None = None
    mask_name: str | None = None
    wrapper: str | None = None
    most_positions: int | None = None

    @property
    def kind(self) -> MediaKind:
        """The kind of the part."""
        return media_kind(self.part or "")

    def num_placeholders(self, positions: int) -> int:
        """Placeholders of an item of so many pictures or input positions."""
        if self.tokens_per_item is None:
            return -(-positions // self.subsampling_factor)
        return self.tokens_per_item * (positions if self.kind.series else 1)

    def run(self, processed: dict[str, Any], index: int) -> str:
        """The placeholders of one item among the tensors of a batch."""
        name = self.input_name or self.kind.input_name
        positions = self.kind.num_positions(processed, index, name, self.mask_name)
        return (self.token or "") * self.num_placeholders(positions)


def check_number(name: str, value: Any) -> None:
    """A `ValueError` that names a setting unless it is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: got {value!r}, expected a whole number of at least 1")


def default_rows(kinds: tuple[MediaKind, ...], num_query_tokens: int, subsampling_factor: int) -> dict[str, dict]:
    """One row per kind; the two numbers are those of the paper's kinds."""
    return {
        kind.row_name: {
            "part": kind.type,
            "tokens_per_item": kind.row.get("num_query_tokens", num_query_tokens if kind.fixed else None),
            "subsampling_factor": kind.row.get("subsampling_factor", subsampling_factor if kind in PAPER_KINDS else 1),
        }
        for kind in kinds
    }


def complete_rows(modalities: Mapping[str, dict | MediaRow]) -> dict[str, MediaRow]:
    """The table with everything filled in that follows from the kinds; tokens are left to the tokenizer.

    A `ValueError` names the row with an unknown field or part, or a number below 1.
    """
    rows: dict[str, MediaRow] = {}
    for name, fields in modalities.items():
        try:
            row = rows[name] = MediaRow(**(vars(fields) if isinstance(fields, MediaRow) else fields))
            row.part = part_of_row(name, row.input_name, row.part)
            kind = row.kind
        except (TypeError, ValueError) as error:
            raise ValueError(f"modalities[{name!r}]: {error}") from error
        check_number(f"modalities[{name!r}].subsampling_factor", row.subsampling_factor)
        if row.tokens_per_item is not None:
            check_number(f"modalities[{name!r}].tokens_per_item", row.tokens_per_item)
        if row.input_name is None:
            row.input_name, row.mask_name = kind.input_name, row.mask_name or kind.mask_name
    for name, row in rows.items():
        row.wrapper = row.wrapper or (row.kind.wrapper if _is_main(name, rows) else name.title().replace("_", ""))
    return rows


def _is_main(name: str, rows: dict[str, MediaRow]) -> bool:
    """Whether a row has its kind's token and wrapper: the one of the kind's row name, or else the first."""
    kind = rows[name].kind
    of_kind = [other for other, row in rows.items() if row.part == kind.type]
    return name == (kind.row_name if kind.row_name in of_kind else of_kind[0])


def token_names(rows: dict[str, MediaRow]) -> dict[str, str]:
    """Row -> attribute of tokenizer and processor that holds its token: `audio_token` for the main row that reads
    audio. A `ValueError` if two rows would have the same.
    """
    names = {name: row.kind.token_name if _is_main(name, rows) else f"{name}_token" for name, row in rows.items()}
    for name, attribute in names.items():
        if list(names.values()).count(attribute) > 1:
            raise ValueError(f"modalities[{name!r}]: {attribute} belongs to another row; give the row another name")
    return names


def add_placeholder_tokens(
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    reserved: dict[str, str] | None = None,
    modalities: dict[str, dict] | None = None,
    behind: bool = False,
) -> dict[str, int]:
    """Gives a tokenizer a placeholder token per row without making the model's embedding larger.

    Args:
        tokenizer: changed in place; it gets `image_token`, `video_token`, ... (one attribute per row) with their ids,
            and saves them.
        vocab_size: rows of the model's embedding; the new ids must lie below it.
        reserved: tokens of the vocabulary to use, e.g. `{"image_token": "<|reserved_special_token_0|>"}`; the other
            placeholders are added under their rows' names (`<ImageHere>`).
        modalities: the rows, as `XLLMProcessor` takes them; by default the paper's three.
        behind: new ids may lie behind the embedding, where no row is spare: X-LLM never embeds placeholders.

    Returns:
        the id of each placeholder, by attribute name.

    Raises:
        ValueError: unknown key or token in `reserved`, one token for two placeholders, or no spare row.
    """
    reserved = reserved or {}
    rows = complete_rows(default_rows(PAPER_KINDS, 1, 1) if modalities is None else modalities)
    names = token_names(rows)
    defaults = {kind.token_name: kind.placeholder for kind in MEDIA_KINDS.values()}
    own = {names[name]: row.token or defaults.get(names[name], f"<{row.wrapper}Here>") for name, row in rows.items()}
    if unknown := sorted(set(reserved) - set(own)):
        raise ValueError(f"reserved: got the keys {unknown}, expected some of {sorted(own)}")
    vocabulary = tokenizer.get_vocab()
    if missing := sorted(token for token in reserved.values() if token not in vocabulary):
        raise ValueError(f"reserved: {missing} are not in the tokenizer's vocabulary")
    tokens = {**own, **reserved}
    if len(set(tokens.values())) < len(tokens):
        raise ValueError(f"reserved: got {reserved}, expected a different token for each placeholder")
    new = [token for token in tokens.values() if token not in vocabulary]
    first_free = max(vocabulary.values(), default=-1) + 1
    if new and not behind and max(first_free, len(tokenizer)) + len(new) > vocab_size:
        raise ValueError(
            f"no spare rows for {new}: the tokenizer uses {first_free} ids and the model's vocab_size is "
            f"{vocab_size}; name tokens of the vocabulary to use instead with "
            f"reserved={{{next(iter(own))!r}: ..., ...}}"
        )
    tokenizer.add_tokens(new, special_tokens=True)
    tokenizer._set_model_specific_special_tokens({**tokens})  # what `extra_special_tokens={...}` does at construction
    return {name: cast(int, tokenizer.convert_tokens_to_ids(token)) for name, token in tokens.items()}


class PlaceholdersMixin(ProcessorMixin):
    """For a processor with a tokenizer and `rows`, a table of `MediaRow`."""

    rows: dict[str, MediaRow]

    def rows_of(self, kind: MediaKind) -> list[MediaRow]:
        """The rows that read a kind of media, in order."""
        return [row for row in self.rows.values() if row.part == kind.type]

    def _place_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the rows' tokens from the tokenizer; tokens and ids become attributes, where the base class looks."""
        tokens = {kind.token_name: getattr(tokenizer, kind.token_name, None) for kind in MEDIA_KINDS.values()}
        vocabulary = tokenizer.get_vocab()
        self._kinds_of_ids: dict[int, str] = {}
        for name, attribute in token_names(self.rows).items():
            row = self.rows[name]
            row.token = tokens[attribute] = row.token or getattr(tokenizer, attribute, None)
            if row.token not in vocabulary:
                lacks = f"tokenizer has no {attribute}" if row.token is None else f"vocabulary has no {row.token}"
                raise ValueError(
                    f"modalities[{name!r}]: the {lacks}, which the {row.kind.reader} needs: call "
                    "add_placeholder_tokens(tokenizer, vocab_size, modalities=...) first"
                )
            if vocabulary[row.token] in self._kinds_of_ids:
                raise ValueError(f"modalities[{name!r}].token: {row.token} is also the token of another row")
            self._kinds_of_ids[vocabulary[row.token]] = row.kind.type
        for name, token in tokens.items():
            setattr(self, name, token)
            setattr(self, f"{name}_id", None if token is None else tokenizer.convert_tokens_to_ids(token))
        self._token_names = tuple(name for name, token in tokens.items() if token is not None)

    def _part_texts(self) -> dict[str, tuple[str, str]]:
        """Content part type -> its placeholder, and what a template writes for it."""
        texts = {}
        for kind in MEDIA_KINDS.values():
            if (token := getattr(self, kind.token_name, None)) is not None:
                several = len(self.rows_of(kind)) > 1  # each has its wrapper in what the placeholder is replaced with
                texts[kind.type] = (token, token if several else f"<{kind.wrapper}>{token}</{kind.wrapper}>")
        return texts

    def _tensors_by_row(self, kind: MediaKind, processed: dict[str, Any]) -> dict[str, Any]:
        """A reader's output under the names of the rows that read it; rows may share a name, and so the tensors."""
        out = dict(processed)
        for ours, theirs in ((kind.input_name, "input_name"), (kind.mask_name, "mask_name")):
            names = {getattr(row, theirs) for row in self.rows_of(kind)} - {None}
            for name in names - set(processed):
                if ours in processed:
                    out[name] = processed[ours]
                elif theirs == "input_name":
                    raise ValueError(f"the {kind.reader} gave {', '.join(processed)}, and a row reads {name}")
            if ours and names and ours not in names:
                out.pop(ours, None)
        return out

    def _replacement(self, kind: MediaKind, processed: dict, index: int) -> str:
        """What stands in the text for one medium: a run of placeholders, or a wrapped one for each of several rows."""
        rows = self.rows_of(kind)
        runs = [row.run(processed, index) for row in rows]
        if len(runs) == 1:
            return runs[0]
        return "".join(f"<{row.wrapper}>{run}</{row.wrapper}>" for row, run in zip(rows, runs))

    def create_mm_token_type_ids(self, input_ids: list) -> list[list[int]]:
        """0 for text, else the number of the kind from 1: image, video, audio, then others that are read here."""
        others = [kind.type for kind in MEDIA_KINDS.values() if kind not in PAPER_KINDS and self.rows_of(kind)]
        numbers = {name: number for number, name in enumerate([kind.type for kind in PAPER_KINDS] + others, 1)}
        types = {token_id: numbers[kind] for token_id, kind in self._kinds_of_ids.items()}
        rows = (row.tolist() if hasattr(row, "tolist") else row for row in input_ids)
        return [[types.get(token_id, 0) for token_id in row] for row in rows]

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
                    f"{kind.inputs} passed. Found total {named} {token} tokens and {len(items)} {kind.inputs}."
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
                new = next(left[str(match.lastgroup)])
                begin = match.start() + grown
                span = {"span": match.span(), "new_span": (begin, begin + len(new))}
                spans.append({"type": match.lastgroup, **span, "text": match.group(), "replacement": new})
                pieces += [row[end : match.start()], new]
                end, grown = match.end(), grown + len(new) - len(match.group())
            written.append("".join([*pieces, row[end:]]))
            offsets.append(spans)
        return written, offsets

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One sample exactly as the model gets it: read off the batch that the real data set and collator make of it.

`explain` computes; `terminal_lines` writes it for a terminal, `xllm.training.inspection.explain_page` as a page.
Legend: B rows of the batch, L tokens.
"""

import itertools
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from xllm.modeling_xllm.language_models import language_model_of
from xllm.processing.audio_decoding import Waveform
from xllm.processing.conversations import media_of, part_source
from xllm.processing.feature_extraction_xllm import FiredTokens
from xllm.processing.media_kinds import MEDIA_KINDS, MediaKind
from xllm.processing.media_sources import describe_source
from xllm.processing.video_decoding import Frames
from xllm.training.batches.collator import IGNORE
from xllm.training.data.dataset import ChatDataset
from xllm.training.data.media_rows import DataError
from xllm.training.data.plan import DataGroup, DataPlan
from xllm.training.data.samples import Sample, Stored
from xllm.training.data.sources import iterate_source


TASKS = {
    "chat": "the language model reads prompt and media and learns to say the answer",
    "transcribe": "stage 1 of a recogniser: it hears the clip alone and learns to write the text; no prompt is read",
    "contrast": "stage 1 of a Q-Former: medium and text are drawn together, told from others, and the text is learnt "
    "from the medium; no prompt is read",
}


@dataclass
class Token:
    """A token: where it stands, what it is, whether it is learnt (carries loss), `row` of the model if it is a
    placeholder, its positions (two with ChatGLM), and whether it is in a prefix that is seen in both directions.
    """

    place: int
    id: int
    piece: str
    learnt: bool
    row: str | None = None
    is_special: bool = False
    positions: tuple[int, ...] = ()
    in_prefix: bool = False


@dataclass
class Medium:
    """A medium: its kind, number among all, file, size in words, and what the model's reader makes of it.

    `pictures` are `(T, H, W, 3)` pixels as the model gets them, made visible again; `sound` is the waveform.
    """

    kind: str
    number: int
    file: str
    size: str
    inputs: str = ""
    pictures: np.ndarray | None = None
    sound: Waveform | None = None


@dataclass
class Span:
    """Placeholders of a medium, in a row of the batch."""

    row: str
    medium: Medium
    start: int
    length: int


@dataclass
class BatchRow:
    """What one row of the batch holds; `prompt` and `answer` are decoded, media in brackets."""

    tokens: list[Token]
    spans: list[Span]
    prompt: str
    answer: str

    def pieces(self) -> Iterator[Token | Span]:
        """Tokens in order, a span in place of its tokens."""
        begins = {span.start: span for span in self.spans}
        place = 0
        while place < len(self.tokens):
            span = begins.get(place)
            yield self.tokens[place] if span is None else span
            place += 1 if span is None else span.length


@dataclass
class Explanation:
    """A sample: where it is from, the task, what is to be said of it, its media, and the rows of its batch."""

    where: str
    group: str
    task: str
    notes: list[str]
    media: list[Medium]
    rows: list[BatchRow] = field(default_factory=list)


def explain(plan: DataPlan, number: int, stage: str | None = None) -> Explanation:
    """Sample `number`, counted from 0, of the first group of a plan, or of the training data of a stage.

    Args:
        stage (`str`, *optional*): of a recipe, its folder ("stage2-speech") or number ("2").

    Raises:
        DataError: no such stage or sample, or no model. MediaError: a medium that cannot be decoded. ValueError: the
            sample makes no batch.
    """
    if plan.processor is None:
        raise DataError("give --model: which tokens a sample becomes, its processor says")
    group = _choose_group(plan, stage)
    sample = _choose_sample(group, number)
    collator = group.collator(plan.processor)
    item = ChatDataset([[sample]], plan.processor)[0]
    batch = collator([item])
    drawn = [f"one of {len(many)} {what} is drawn per epoch" for what, many in _choices(sample) if len(many) > 1]
    result = Explanation(
        sample.where, group.title, collator.task, drawn, media_of_sample(plan.processor, sample, item, batch)
    )
    if collator.task == "chat":
        result.rows = list(_chat_rows(plan, batch, result))
        if len(result.rows) > 1:
            result.notes.append(f"loss on all answers: {len(result.rows)} rows of the batch, one per answer")
        if collator.max_length is not None:
            collator.max_length = None
            lost = int(collator([item])["attention_mask"].sum()) - int(batch["attention_mask"].sum())
            result.notes += [f"older turns are left out to keep max_length: {lost} tokens"] if lost else []
    else:
        names = {"transcribe": "labels", "contrast": "input_ids"}
        tokenizer = collator.text_tokenizer or plan.processor.tokenizer
        result.rows = [_text_row(tokenizer, batch[names[collator.task]][0].tolist())]
    return result


def _choose_group(plan: DataPlan, stage: str | None) -> DataGroup:
    names = {group.stage: group for group in reversed(plan.groups) if group.is_training}
    if stage is None:
        return plan.groups[0]
    found = [group for name, group in names.items() if stage in (name, name.removeprefix("stage").partition("-")[0])]
    if len(found) != 1:
        what = "no stage" if not found else "more than one stage"
        raise DataError(f"--stage: {what} is called {stage!r}; the stages are {', '.join(reversed(names))}")
    return found[0]


def _choose_sample(group: DataGroup, number: int) -> Sample:
    """The samples before it are read, those behind it are not."""
    bad: list[str] = []
    samples = (
        sample
        for spec in group.sources
        for sample in iterate_source(spec, group.media, lambda where, error: bad.append(str(error)))
    )
    last = -1
    for last, sample in enumerate(itertools.islice(samples, number + 1)):
        if last == number:
            return sample
    more = f", and {len(bad)} bad rows, the first: {bad[0]}" if bad else ""
    raise DataError(f"there is no sample {number}: {group.title} holds {last + 1}, counted from 0{more}")


def _choices(sample: Sample) -> list[tuple[str, list[str]]]:
    return [] if sample.messages is not None else [("prompts", sample.prompts), ("answers", sample.answers)]


# ---- media ----------------------------------------------------------------------------------------------------------


def media_of_sample(processor, sample: Sample, item: dict, batch: dict[str, Any]) -> list[Medium]:
    """The media of a sample, in order of their kinds, with what the batch holds of them."""
    sources: dict[str, list[Any]] = {}
    for part in sample.parts():
        if part["type"] != "text":
            sources.setdefault(part["type"], []).append(part_source(part))
    found: list[Medium] = []
    for name, decoded in media_of(item["messages"]).items():
        kind = MEDIA_KINDS[name]
        for index, (medium, source) in enumerate(zip(decoded, sources.get(name, []))):
            file = source.name if isinstance(source, Stored) else describe_source(source)
            entry = Medium(name, len(found) + 1, file, _size(medium))
            row = next((row for row in processor.rows.values() if row.part == name), None)
            if row is None:  # of a model that makes its tensors itself
                entry.inputs, entry.pictures = "what its own program makes of it", _decoded(medium)
            elif row.input_name in batch:
                values = batch[row.input_name][index]
                if row.mask_name in batch and isinstance(values, torch.Tensor):
                    values = values[: int(batch[row.mask_name][index].sum())]
                entry.inputs = f"{row.input_name} {tuple(np.shape(values))}"
                entry.pictures = _pictures(processor.reader(kind), values)
            entry.sound = medium if isinstance(medium, Waveform) else None
            found.append(entry)
    return found


def _decoded(medium: Any) -> np.ndarray | None:
    if isinstance(medium, Image.Image):
        return np.asarray(medium.convert("RGB"))[None]
    return medium.frames if isinstance(medium, Frames) else None


def _size(medium: Any) -> str:
    if isinstance(medium, Image.Image):
        return f"{medium.width} x {medium.height}"
    if isinstance(medium, Frames):
        count, height, width = medium.frames.shape[:3]
        known = medium.metadata
        of = f" of {known.total_num_frames}" if known is not None else ""
        length = f", {known.duration:.2f} s" if known is not None and known.duration else ""
        return f"{count}{of} frames, {width} x {height}{length}"
    if isinstance(medium, Waveform):
        return f"{len(medium.samples) / medium.sampling_rate:.2f} s at {medium.sampling_rate} Hz"
    if isinstance(medium, FiredTokens):
        return f"{len(medium.vectors)} vectors of {medium.vectors.shape[1]}"
    return type(medium).__name__


def _pictures(reader: Any, values: Any) -> np.ndarray | None:
    """Normalised pixels `(3, H, W)` or `(T, 3, H, W)` as visible ones `(T, H, W, 3)`; `None` of anything else."""
    mean, std = getattr(reader, "image_mean", None), getattr(reader, "image_std", None)
    if not isinstance(values, torch.Tensor) or values.dim() not in (3, 4) or values.shape[-3] != 3 or mean is None:
        return None
    pixels = values.float().reshape(-1, *values.shape[-3:])
    if getattr(reader, "do_normalize", True):
        pixels = pixels * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    if getattr(reader, "do_rescale", True):
        pixels = pixels * 255
    return pixels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


# ---- tokens ---------------------------------------------------------------------------------------------------------


def _chat_rows(plan: DataPlan, batch: dict[str, torch.Tensor], result: Explanation) -> Iterator[BatchRow]:
    processor, ids, mask = plan.processor, batch["input_ids"], batch["attention_mask"]
    layout = language_model_of(plan.config).layout(ids, mask)
    rows_by_id = {processor.tokenizer.convert_tokens_to_ids(row.token): name for name, row in processor.rows.items()}
    special = set(processor.tokenizer.all_special_ids)
    taken: Counter = Counter()  # items of the batch, by row of the model
    for index in range(len(ids)):
        tokens = []
        for place in range(int(mask[index].sum())):
            token = int(ids[index, place])
            positions = layout["position_ids"][..., index, place].flatten().tolist() if layout else []
            types = layout.get("token_type_ids")
            tokens.append(
                Token(
                    place,
                    token,
                    piece_of(processor.tokenizer, token),
                    learnt=bool(batch["labels"][index, place] != IGNORE),
                    row=rows_by_id.get(token),
                    is_special=token in special,
                    positions=tuple(positions),
                    in_prefix=types is not None and int(types[index, place]) == 0,
                )
            )
        spans = list(_spans(processor, batch, tokens, taken, result.media))
        yield _with_texts(processor.tokenizer, tokens, spans)


def _spans(processor, batch: dict, tokens: list[Token], taken: Counter, media: list[Medium]) -> Iterator[Span]:
    """The runs of placeholders of a row, one per medium and row of the model, as long as the processor wrote them."""
    own: Counter = Counter()
    place = 0
    while place < len(tokens):
        name = tokens[place].row
        if name is None:
            place += 1
            continue
        row = processor.rows[name]
        kind: MediaKind = row.kind
        positions = kind.num_positions(batch, taken[name], row.input_name, row.mask_name)
        length = row.num_placeholders(positions)
        medium = [medium for medium in media if medium.kind == row.part][own[name]]
        yield Span(name, medium, place, length)
        taken[name] += 1
        own[name] += 1
        place += length


def _with_texts(tokenizer, tokens: list[Token], spans: list[Span]) -> BatchRow:
    row = BatchRow(tokens, spans, "", "")
    texts = {False: "", True: ""}  # by whether it is learnt
    for learnt, run in itertools.groupby(row.pieces(), lambda piece: isinstance(piece, Token) and piece.learnt):
        for is_text, pieces in itertools.groupby(run, lambda piece: isinstance(piece, Token)):
            if is_text:
                ids = [piece.id for piece in pieces if isinstance(piece, Token)]
                texts[learnt] += tokenizer.decode(ids, skip_special_tokens=False)
            else:
                shown = [(piece.medium, piece.length) for piece in pieces if isinstance(piece, Span)]
                texts[learnt] += "".join(f"[{medium.kind} {medium.number}: {length}]" for medium, length in shown)
    row.prompt, row.answer = texts[False], texts[True]
    return row


def _text_row(tokenizer, ids: list[int]) -> BatchRow:
    """The text of a task of stage 1; of special tokens, those of the tokenizer are not learnt."""
    special = set(tokenizer.all_special_ids)
    tokens = [
        Token(place, token, piece_of(tokenizer, token), token not in special, is_special=token in special)
        for place, token in enumerate(ids)
    ]
    return BatchRow(tokens, [], "", tokenizer.decode(ids, skip_special_tokens=True))


def piece_of(tokenizer, token: int) -> str:
    """A token as text; where that is no character yet, as the vocabulary writes it."""
    try:
        piece, text = tokenizer.convert_ids_to_tokens(token), tokenizer.decode([token], skip_special_tokens=False)
    except (IndexError, ValueError, TypeError):  # an id behind the vocabulary
        return f"<{token}>"
    is_written_alike = piece is not None and piece.replace("\u2581", "") == text.strip()
    return piece if piece is not None and (is_written_alike or not text.strip() or "\ufffd" in text) else text


def visible(text: str, keep: str = "\n") -> str:
    """A text whose control characters, direction marks and halves of characters are written out, `keep` aside."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join(
        char if char in keep or unicodedata.category(char) not in hidden else f"\\u{{{ord(char):x}}}" for char in text
    )


# ---- for a terminal -------------------------------------------------------------------------------------------------

_GREEN, _BLUE, _DIM, _PLAIN = "\033[1;32m", "\033[36m", "\033[2m", "\033[0m"


def terminal_lines(found: Explanation, colours: bool) -> Iterator[str]:
    """The sample as lines of text; what carries loss is green, or in brackets where there are no colours."""

    def paint(colour: str, text: str) -> str:
        return f"{colour}{text}{_PLAIN}" if colours else text

    yield f"{visible(found.where)} ({visible(found.group)})"
    yield f"task {found.task}: {TASKS[found.task]}"
    yield from (f"note: {note}" for note in found.notes)
    for medium in found.media:
        yield f"{medium.kind} {medium.number}: {visible(medium.file)}, {medium.size} -> {medium.inputs}"
    for number, row in enumerate(found.rows, start=1):
        yield ""
        learnt = sum(token.learnt for token in row.tokens)
        yield f"row {number} of {len(found.rows)}: {len(row.tokens)} tokens, {learnt} of them carry loss"
        if prefix := sum(token.in_prefix for token in row.tokens):
            yield f"the first {prefix} see each other in both directions; behind them each sees what stands before it"
        yield paint(_DIM, f"{'place':>11} {'id':>8} {'position':>11}  token")
        for piece in row.pieces():
            if isinstance(piece, Span):
                end, first, last = piece.start + piece.length - 1, *_ends(row, piece)
                place = f"{piece.start}-{end}"
                text = f"{piece.length} x {first.piece} = {piece.medium.kind} {piece.medium.number}, row {piece.row}"
                yield paint(_BLUE, f"{place:>11} {first.id:>8} {_positions(first, last):>11}  {text}")
            else:
                text = visible(piece.piece, keep="")
                line = f"{piece.place:>11} {piece.id:>8} {_positions(piece):>11}  "
                mark = paint(_GREEN, text) if colours else f"[{text}]"
                yield line + (mark if piece.learnt else text)
        for title, text in (("prompt", row.prompt), ("answer", row.answer)):
            if text or title == "answer":
                yield f"{title}: " + visible(text).replace("\n", "\n        ")


def _ends(row: BatchRow, span: Span) -> tuple[Token, Token]:
    return row.tokens[span.start], row.tokens[span.start + span.length - 1]


def _positions(first: Token, last: Token | None = None) -> str:
    """E.g. "7", "7,0", or of a run "7-10,0"."""
    pairs = zip(first.positions, first.positions if last is None else last.positions)
    return ",".join(f"{one}" if one == other else f"{one}-{other}" for one, other in pairs)


__all__ = ["BatchRow", "Explanation", "Medium", "Span", "Token", "explain", "piece_of", "terminal_lines", "visible"]

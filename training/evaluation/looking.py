# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a medium becomes: does each quasi-linguistic embedding mean a word (the paper's "foreign language")?

For each embedding, the tokens of the language model's vocabulary that point in its direction, beside what a random
direction finds there; where a Q-Former looks, as attention over the picture; what a CIF gave each frame, and when it
fired. What a model does not tell is left out, and said.

Legend: V tokens of the vocabulary, K embeddings of the medium, D width, R pictures, Q queries, T encoder frames.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import PreTrainedModel

from xllm.modeling_xllm.vision_encoders import PATCH_READERS
from xllm.processing.audio_decoding import Waveform
from xllm.processing.conversations import media_of
from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.training.data.samples import Sample
from xllm.training.inspection.explain import Medium, media_of_sample, piece_of


DRAWS = 256  # random directions, and words, that set the scale
_CHUNK = 16_384  # rows of the vocabulary at a time: a large one is not copied whole
_MOST_PREFIX = 16  # class and register tokens before those of patches


NOTES = {
    "no map": "a {converter} converter tells neither attention over a picture nor weights in time",
    "no fire": "no token was fired: the language model reads nothing of it",
    "no grid": "its encoder's vectors are no grid of patches: attention is not shown over the medium",
    "no place": "{share:.0%} of the attention lies on class or register tokens ({count}), which have no place",
    "no time": "its features carry no time: places are numbers of frames",
}


class Note(str):
    """What a look lacks, in English; other languages have texts of their own for its `name` and `values`."""

    name: str
    values: dict[str, Any]

    def __new__(cls, name: str, **values: Any) -> "Note":
        note = super().__new__(cls, NOTES[name].format(**values))
        note.name, note.values = name, values
        return note


@dataclass(frozen=True)
class Scale:
    """What a cosine is worth in this vocabulary: `random`, median and 95th percentile of the best cosine of random
    directions; `words`, median of the best cosine of a word with another word."""

    random: tuple[float, float]
    words: float


@dataclass
class Piece:
    """One embedding: its nearest tokens with their cosines; by how many deviations of its cosines with all tokens the
    best lies above their mean; the picture and query that it is of; the seconds that it was fired in; where it looked;
    what its medium calls it (a field of a status).
    """

    words: list[tuple[str, float]]
    deviations: float
    picture: int | None = None
    query: int | None = None
    span: tuple[float, float] | None = None
    heat: np.ndarray | None = None  # (rows, columns), sums to its share of the attention
    name: str = ""


@dataclass
class RowLook:
    """What one row of the model makes of the medium; `weights` of the CIF are one per encoder frame of `step` s."""

    row: str
    pieces: list[Piece]
    notes: list[Note] = field(default_factory=list)
    weights: np.ndarray | None = None
    step: float = 0.0

    @property
    def is_heard(self) -> bool:
        """Whether it has a place in time: weights of frames, or embeddings that are of so many seconds."""
        return self.weights is not None or any(piece.span is not None for piece in self.pieces)


@dataclass
class Look:
    """A medium, the scale of the vocabulary, and what each row that reads it makes of it."""

    medium: Medium
    scale: Scale
    rows: list[RowLook]


@torch.no_grad()
def look(
    model: Any, processor: Any, part: dict, top: int = 5, rows: list[str] | None = None,
    vocabulary: "Vocabulary | None" = None,
) -> Look:  # fmt: skip
    """Look at one medium.

    Args:
        part: a content part, `{"type": "image", "path": ...}`. top: how many tokens for each embedding. rows: those
            that are looked at; default all that read it. vocabulary: of this model, for further looks.

    Raises:
        MediaError: it cannot be read. ValueError: no row of the model reads it.
    """
    kind = part["type"]
    decoded = {"type": kind, kind: processor.load(kind, part["path"])}
    messages = [{"role": "user", "content": [decoded, {"type": "text", "text": ""}]}]
    batch = processor.encode_conversations([messages]).to(model.device)
    sample = Sample(where=part["path"], messages=[{"role": "user", "content": [part]}])
    item = {"messages": messages, "where": part["path"]}
    cpu = {name: value.cpu() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    [medium] = media_of_sample(processor, sample, item, cpu)
    known = [name for name, row in processor.rows.items() if row.part == kind]
    vocabulary = vocabulary or Vocabulary(model, processor)
    seconds = None
    loaded = media_of(messages)[kind][0]
    if isinstance(loaded, Waveform):
        seconds = len(loaded.samples) / loaded.sampling_rate
    looks = [_look_of_row(model, processor, name, batch, vocabulary, top, seconds) for name in rows or known]
    for found in looks:
        for piece, name in zip(found.pieces, getattr(loaded, "names", ())):
            piece.name = name
    return Look(medium, vocabulary.scale(), looks)


# ---- words ----------------------------------------------------------------------------------------------------------


class Vocabulary:
    """The input embeddings of the language model's tokens, without the placeholders of media, as directions."""

    def __init__(self, model: Any, processor: Any):
        self.weight, self.tokenizer = model.get_input_embeddings().weight, processor.tokenizer
        count = min(len(self.tokenizer), len(self.weight))
        placeholders = set(self.tokenizer.convert_tokens_to_ids([row.token for row in processor.rows.values()]))
        self.known = torch.tensor([id not in placeholders for id in range(count)], device=self.weight.device)
        lengths = torch.cat([chunk.float().norm(dim=1) for chunk in self.weight[:count].split(_CHUNK)])
        self.known &= lengths > 0

    def cosines(self, directions: torch.Tensor) -> torch.Tensor:
        """`(K, D)` -> `(K, V)`; -1 for what is no word."""
        directions = normalize(directions.float().to(self.weight.device), dim=1)
        chunks = self.weight[: len(self.known)].split(_CHUNK)
        found = torch.cat([directions @ normalize(chunk.float(), dim=1).T for chunk in chunks], 1)
        return found.masked_fill(~self.known, -1)

    def scale(self) -> Scale:
        """See `Scale`; the same at every call."""
        return self._scale

    @cached_property
    @torch.no_grad()
    def _scale(self) -> Scale:
        rng = torch.Generator().manual_seed(0)
        random = self.cosines(torch.randn(DRAWS, self.weight.shape[1], generator=rng)).amax(1)
        ids = self.known.nonzero().flatten()
        ids = ids[torch.randperm(len(ids), generator=rng)[:DRAWS].to(ids.device)]
        others = self.cosines(self.weight[ids]).scatter(1, ids[:, None], -1.0).amax(1)
        return Scale((float(random.quantile(0.5)), float(random.quantile(0.95))), float(others.quantile(0.5)))

    @torch.no_grad()
    def pieces(self, embeddings: torch.Tensor, top: int) -> list[Piece]:
        """What embeddings `(K, D)` are nearest to."""
        if not len(embeddings):
            return []
        cosines = self.cosines(embeddings)
        best = cosines.topk(min(top, int(self.known.sum())), 1)
        real = cosines[:, self.known]
        deviations = (best.values[:, 0] - real.mean(1)) / real.std(1)
        words = (
            [(piece_of(self.tokenizer, int(id)), float(value)) for id, value in zip(ids, values)]
            for ids, values in zip(best.indices, best.values)
        )
        return [Piece(found, float(above)) for found, above in zip(words, deviations)]


# ---- rows -----------------------------------------------------------------------------------------------------------


def _look_of_row(
    model: Any, processor: Any, name: str, batch: Any, vocabulary: Vocabulary, top: int, seconds: float | None
) -> RowLook:
    row = model.config.modalities[name]
    inputs, mask = batch[row.input_name], batch.get(row.mask_name) if row.mask_name else None
    interface = model.model.interfaces[name]
    with _cross_attentions([interface, *interface._shared_interface]) as layers:
        features = model.get_features(name, inputs, mask)
    found = RowLook(name, vocabulary.pieces(features.pooler_output[0], top))
    if features.alphas is not None:
        _add_firing(found, row, features, mask, _seconds_per_frame(processor, row, features, mask, seconds))
    elif layers and layers[0]:
        _add_attention(found, model, row, inputs, torch.stack([one for one in layers[0] if one is not None]))
    if row.frames_per_token and mask is not None and seconds is not None:
        _add_windows(found, row, int(mask.sum()), seconds)
    if found.weights is None and not any(piece.heat is not None for piece in found.pieces) and not found.notes:
        found.notes.append(Note("no map", converter=row.converter))
    if not found.pieces:
        found.notes.append(Note("no fire"))
    return found


@contextmanager
def _cross_attentions(modules: list[Any]) -> Iterator[list]:
    """What parts that can tell attend to while this is open, by the plain formula: of each call a tensor per layer."""
    found: list = []
    parts = [
        part
        for module in modules
        for part in module.modules()
        if isinstance(part, PreTrainedModel) and "cross_attentions" in (part._can_record_outputs or {})
    ]
    before = [part.config._attn_implementation for part in parts]
    hooks, asked = [], {"output_attentions": True}
    for part in parts:
        part.set_attn_implementation("eager")
        hooks += [
            part.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, **asked}), with_kwargs=True),
            part.register_forward_hook(lambda _, args, output: found.append(output.cross_attentions)),
        ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        for part, implementation in zip(parts, before):
            part.set_attn_implementation(implementation)


def _add_attention(found: RowLook, model: Any, row: Any, inputs: torch.Tensor, layers: torch.Tensor) -> None:
    """Mean attention over layers and heads, `layers (layers, R, heads, Q, T)`, laid over the pictures."""
    attention = layers.float().mean((0, 2)).cpu()  # (R, Q, T)
    pictures, queries, length = attention.shape
    for number, piece in enumerate(found.pieces):
        piece.query = number % queries
        piece.picture = number // queries if row.num_frames is not None else None
    tower = None if row.encoder is None else model.model.tower(row.encoder)
    grid = None if tower is None else _grid(tower.config, inputs, length)
    if grid is None or pictures * queries != len(found.pieces):
        found.notes.append(Note("no grid"))
        return
    before, rows, columns = grid
    shown = attention[..., before : before + rows * columns].reshape(-1, rows, columns).numpy()
    for piece, heat in zip(found.pieces, shown):
        piece.heat = heat
    if before:
        share = float(attention[..., :before].sum(-1).mean())
        found.notes.append(Note("no place", share=share, count=before))


def _grid(config: Any, inputs: torch.Tensor, length: int) -> tuple[int, int, int] | None:
    """Tokens before those of the patches, rows and columns of these, of an encoder that gives `length` vectors."""
    if config.model_type in PATCH_READERS:
        rows, columns = (int(size) for size in inputs[..., -2:].flatten(0, -2).amax(0))
        return (0, rows, columns) if rows * columns <= length else None
    if inputs.dim() < 4 or inputs.shape[-3] != 3:
        return None
    height, width = inputs.shape[-2:]
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and 0 <= (before := length - (height // patch) * (width // patch)) <= _MOST_PREFIX:
        return before, height // patch, width // patch
    for before in range(_MOST_PREFIX + 1):  # of a convolutional encoder
        rows = round(((length - before) * height / width) ** 0.5) if length > before else 0
        if rows and (length - before) == rows * round(rows * width / height):
            return before, rows, (length - before) // rows
    return None


def _num_frames(row: Any, features: Any, mask: torch.Tensor | None) -> int:
    return features.alphas.shape[1] if mask is None else -(-int(mask.sum()) // row.subsampling_factor)


def _seconds_per_frame(processor: Any, row: Any, features: Any, mask: Any, seconds: float | None) -> float | None:
    """Of the encoder; `None` where the medium has no time."""
    if seconds is None:
        return None
    own = [kind for kind in MEDIA_KINDS.values() if kind.reader == "feature_extractor"]
    if any(row.input_name == kind.input_name for kind in own):
        return processor.seconds_per_frame
    return seconds / max(1, _num_frames(row, features, mask))


def _add_firing(found: RowLook, row: Any, features: Any, mask: torch.Tensor | None, step: float | None) -> None:
    """Weights of the CIF and the times of its tokens."""
    found.weights = features.alphas[0, : _num_frames(row, features, mask)].float().cpu().numpy()
    if step is None:
        found.notes.append(Note("no time"))
    found.step = step or 1.0
    ends = [found.step * float(end) for end in features.fire_frames[0, : len(found.pieces)]]
    for piece, start, end in zip(found.pieces, [0.0, *ends], ends):
        piece.span = start, end


def _add_windows(found: RowLook, row: Any, positions: int, seconds: float) -> None:
    """The seconds of each token of as many frames as the row joins; the last may be of fewer."""
    if len(found.pieces) == -(-positions // row.subsampling_factor):
        step = seconds * row.subsampling_factor / positions
        for number, piece in enumerate(found.pieces):
            piece.span = number * step, min((number + 1) * step, seconds)


__all__ = ["NOTES", "Look", "Note", "Piece", "RowLook", "Scale", "Vocabulary", "look"]

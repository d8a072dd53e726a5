# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the model heard and saw, beside its answer: `xllm look` in one thread of its own, as HTML."""

import asyncio
import copy
import hashlib
import io
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xllm.page.talk import Upload
from xllm.page.texts import Texts
from xllm.processing.media_sources import memory_limit
from xllm.serving.limits import Limits
from xllm.training.evaluation.look_page import far, mean_heats, overlay
from xllm.training.evaluation.looking import Look, Piece, RowLook, Vocabulary, look
from xllm.training.inspection.html_page import data_uri, safe_text


MOST_PIECES = 96  # embeddings that are shown of a row
MOST_PICTURES = 16  # of a film
BARS = 240  # of a waveform
_SPACE = "\u2581"  # of SentencePiece
KEPT = 64  # media whose looks are kept


class Looks:
    """Looks at media without standing in the way of answers.

    Args:
        folder: of the files, whose place is nobody's business.
    """

    text = staticmethod(safe_text)

    def __init__(self, model: Any, processor: Any, folder: Path, limits: Limits | None = None):
        # Looking hooks into modules while it lasts: those of a twin, which has the same weights.
        weights = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
        self.model, self.processor = copy.deepcopy(model, weights), copy.deepcopy(processor)
        self.folder, self.limits = folder, limits or Limits()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="xllm-look")
        self._kept: OrderedDict[tuple, str] = OrderedDict()

    def close(self) -> None:
        """Look no further."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    async def html(self, upload: Upload, texts: Texts) -> str:
        """A section of the page."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, self._html, upload, texts)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.model, self.processor)

    def _html(self, upload: Upload, texts: Texts) -> str:
        head = f"<h3>{texts.kind(upload.kind)} · {safe_text(upload.name)}</h3>"
        try:
            digest = hashlib.blake2b(Path(upload.path).read_bytes(), digest_size=16).digest()
            key = (upload.kind, digest, texts["language"])
            if key not in self._kept:
                with memory_limit(self.limits.medium_memory):
                    found = look(self.model, self.processor, upload.part, 5, vocabulary=self._vocabulary)
                self._kept[key] = "".join(_row(found, row, texts) for row in found.rows)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            shown = self._kept[key]
        except (ValueError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split()).replace(upload.path, upload.name)
            shown = f'<p class="soft">{safe_text(texts("looks failed", reason=reason))}</p>'
        return f'<section class="look">{head}{shown}</section>'


def _row(found: Look, row: RowLook, texts: Texts) -> str:
    parts = [_wave(found, row, texts) if row.is_heard else _pictures(found, row, texts)]
    near = sum(not far(piece, found.scale) for piece in row.pieces)
    if row.pieces:
        parts.append(f"<p><b>{texts['words']}</b><br>{texts('near', near=near, count=len(row.pieces))}</p>")
        chips = "".join(_chip(piece, number, found, texts) for number, piece in enumerate(row.pieces[:MOST_PIECES], 1))
        more = len(row.pieces) - MOST_PIECES
        parts.append(f'<div class="chips">{chips}{texts("more", count=more) if more > 0 else ""}</div>')
    if any(piece.heat is not None for piece in row.pieces):
        parts.append(_each_query(found, row, texts))
    notes = [texts(f"note {note.name}", **note.values) for note in row.notes]
    parts += [f'<p class="soft">{safe_text(note)}</p>' for note in notes]
    return "".join(parts)


def _chip(piece: Piece, number: int, found: Look, texts: Texts) -> str:
    words = [
        f"{safe_text(word.replace(_SPACE, ' ').strip() or word)} <small>{cosine:.2f}</small>"
        for word, cosine in piece.words[:3]
    ]
    first, others = (words[0], words[1:]) if words else ("", [])
    kind = "chip" if far(piece, found.scale) else "chip near"
    rest = "".join(f"<span>{word}</span>" for word in others)
    return f'<div class="{kind}"><small>{_place(piece, texts) or number}</small><span>{first}</span>{rest}</div>'


def _place(piece: Piece, texts: Texts) -> str:
    if piece.span is not None:
        return texts("seconds", start=piece.span[0], end=piece.span[1])
    places = [safe_text(piece.name)] if piece.name else []
    places += [] if piece.picture is None else [texts("frame", number=piece.picture + 1)]
    places += [] if piece.query is None else [texts("query", number=piece.query + 1)]
    return texts["list"].join(places)


# ---- sounds ---------------------------------------------------------------------------------------------------------


def _wave(found: Look, row: RowLook, texts: Texts) -> str:
    """The waveform, the weights of the encoder's frames under it, and a line where each token was fired."""
    sound, of_frames = found.medium.sound, np.zeros(0) if row.weights is None else row.weights
    samples = np.zeros(1) if sound is None else np.abs(np.asarray(sound.samples, np.float32)).reshape(-1)
    seconds = len(of_frames) * row.step if sound is None else len(samples) / sound.sampling_rate
    loud = [float(piece.max()) for piece in np.array_split(samples, BARS) if len(piece)]
    loudest = max(loud, default=0.0) or 1.0
    width = 1000 / max(1, len(loud))
    bars = "".join(
        f'<rect x="{place * width:.1f}" y="{60 - 56 * value / loudest:.1f}" width="{0.7 * width:.1f}" '
        f'height="{max(1.0, 112 * value / loudest):.1f}"/>'
        for place, value in enumerate(loud)
    )
    step, most = 1000 * row.step / max(seconds, 1e-9), max(float(of_frames.max(initial=0)), 1e-9)
    weights = "".join(
        f'<rect x="{place * step:.1f}" y="{180 - 50 * value / most:.1f}" width="{0.9 * step:.2f}" '
        f'height="{50 * value / most:.1f}"/>'
        for place, value in enumerate(of_frames.tolist())
    )
    ends = [1000 * piece.span[1] / max(seconds, 1e-9) for piece in row.pieces if piece.span is not None]
    ends = [min(end, 998.0) for end in ends]  # the last frame may end behind the sound
    lines = "".join(f'<line x1="{end:.1f}" x2="{end:.1f}" y1="0" y2="180"/>' for end in ends)
    told = texts("windows" if row.weights is None else "wave", seconds=seconds, count=len(row.pieces))
    return (
        f'<p>{told}</p><svg viewBox="0 0 1000 180" preserveAspectRatio="none" role="img" aria-label="{told}">'
        f'<g class="wave">{bars}</g><g class="weight">{weights}</g><g class="fired">{lines}</g></svg>'
    )


# ---- pictures -------------------------------------------------------------------------------------------------------


def _pictures(found: Look, row: RowLook, texts: Texts) -> str:
    pictures, heats = found.medium.pictures, mean_heats(row)
    if pictures is None:
        return ""
    is_series, (height, width) = len(pictures) > 1, pictures.shape[1:3]
    name = ("frames" if is_series else "picture") + (" seen" if heats else " only")
    stills = [
        overlay(found, place, heats[place]) if place < len(heats) else picture
        for place, picture in enumerate(pictures[:MOST_PICTURES])
    ]
    told = texts(name, count=len(pictures), width=width, height=height)
    both = [pictures[0], stills[0]] if heats and not is_series else stills
    return f'<p>{told}</p><div class="stills">{"".join(map(_still, both))}</div>'


def _each_query(found: Look, row: RowLook, texts: Texts) -> str:
    shown = [
        f"<figure>{_still(overlay(found, piece.picture or 0, piece.heat))}<figcaption>{number}</figcaption></figure>"
        for number, piece in enumerate(row.pieces[:MOST_PIECES], 1)
        if piece.heat is not None
    ]
    return f'<details><summary>{texts["each query"]}</summary><div class="stills">{"".join(shown)}</div></details>'


def _still(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).convert("RGB").save(file, "JPEG", quality=85)
    return f'<img alt="" src="{data_uri("image/jpeg", file.getvalue())}">'


__all__ = ["Looks"]

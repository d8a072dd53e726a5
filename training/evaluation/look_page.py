# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`looking.Look` for a terminal, as a page in one file, or as a PNG."""

import io
import json
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from xllm.modeling_xllm.weight_files import replacing
from xllm.training.evaluation.looking import Look, Piece, RowLook, Scale
from xllm.training.inspection.explain import visible
from xllm.training.inspection.html_page import data_uri, document, figure, safe_text, write_page


SIDE = 160  # pixels of a heat map on the page, at least
MOST_PANELS = 60  # of a PNG
_CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Droid Sans Fallback", "SimHei", "PingFang SC")


def scale_text(scale: Scale) -> str:
    """What a cosine is worth here."""
    return (
        f"The nearest token of a random direction has cosine {scale.random[0]:.2f} (of 95 in 100, below "
        f"{scale.random[1]:.2f}), the nearest other token of a token {scale.words:.2f}."
    )


def far(piece: Piece, scale: Scale) -> bool:
    """Whether the nearest token is no nearer than that of a random direction."""
    return not piece.words or piece.words[0][1] <= scale.random[1]


def _place(piece: Piece) -> str:
    found = [visible(piece.name, keep="")] if piece.name else []
    found += [] if piece.picture is None else [f"picture {piece.picture + 1}"]
    found += [] if piece.query is None else [f"query {piece.query + 1}"]
    found += [] if piece.span is None else [f"{piece.span[0]:.2f}-{piece.span[1]:.2f} s"]
    return ", ".join(found)


def _summary(row: RowLook, scale: Scale) -> str:
    near = sum(not far(piece, scale) for piece in row.pieces)
    return f"embeddings: {len(row.pieces)}, of which {near} are nearer to a token than 95 in 100 random directions"


def terminal_lines(found: Look) -> Iterator[str]:
    """The look as lines of text; what is no nearer than chance is in brackets."""
    yield f"{visible(found.medium.file)}: {found.medium.size}"
    yield scale_text(found.scale)
    for row in found.rows:
        yield f"\nrow {row.row}: {_summary(row, found.scale)}"
        yield from (f"note: {note}" for note in row.notes)
        for number, piece in enumerate(row.pieces, 1):
            words = "  ".join(f"{visible(word, keep='')} {cosine:.2f}" for word, cosine in piece.words)
            line = f"({words})" if far(piece, found.scale) else words
            yield f"{number:>4}  {_place(piece):<22} {piece.deviations:4.1f} sd  {line}"


# ---- page -----------------------------------------------------------------------------------------------------------


def as_json(found: Look) -> str:
    """The look for programs, without the heat maps."""
    rows = [
        {
            "row": row.row,
            "notes": row.notes,
            "weights": None if row.weights is None else row.weights.tolist(),
            "seconds_per_weight": row.step if row.weights is not None else None,
            "embeddings": [
                {name: value for name, value in vars(piece).items() if name != "heat"} for piece in row.pieces
            ],
        }
        for row in found.rows
    ]
    return json.dumps({"scale": vars(found.scale), "rows": rows}, indent=2, ensure_ascii=False) + "\n"


def check_output(path: Path) -> Path:
    """A `ValueError` for a file that is neither a page nor a picture."""
    if path.suffix.lower() not in (".html", ".png"):
        raise ValueError(f"--output {path}: expected .html or .png")
    return path


def write_look(found: Look, path: Path) -> None:
    """Write a page, or a picture if `path` ends with .png."""
    if check_output(path).suffix.lower() == ".html":
        write_page(path, document(f"look: {found.medium.file}", "".join(_body(found))))
        return
    with replacing(path) as partial:
        partial.write_bytes(_png(found))


def _body(found: Look) -> Iterator[str]:
    yield f"<h1>{safe_text(found.medium.file)}</h1>"
    yield '<p class="soft">what it becomes: quasi-linguistic embeddings, beside the words of the language model</p>'
    yield f'<div class="media">{figure(found.medium)}</div><p>{scale_text(found.scale)}</p>'
    for row in found.rows:
        yield f"<h2>Row {safe_text(row.row)}</h2><p>{_summary(row, found.scale)}.</p>"
        yield from (f'<p class="soft">{safe_text(note)}</p>' for note in row.notes)
        if row.is_heard:
            yield f'<img class="plot" alt="" src="{data_uri("image/png", _drawn(_sound_figure(found, row)))}">'
        if heats := mean_heats(row):
            maps = "".join(_still(found, number, heat) for number, heat in enumerate(heats))
            how = "mean of all queries; a map is as bright as its own brightest patch"
            yield f'<p>Attention over the medium ({how}):</p><div class="stills">{maps}</div>'
        yield from _table(found, row)


def mean_heats(row: RowLook) -> list[np.ndarray]:
    """For each picture, where all queries look on average."""
    by_picture: dict[int, list[np.ndarray]] = {}
    for piece in row.pieces:
        if piece.heat is not None:
            by_picture.setdefault(piece.picture or 0, []).append(piece.heat)
    return [np.mean(heats, axis=0) for heats in by_picture.values()]


def _table(found: Look, row: RowLook) -> Iterator[str]:
    has_heat = any(piece.heat is not None for piece in row.pieces)
    head = ["", "of", *(["looks at"] if has_heat else []), "sd", "nearest tokens, cosine"]
    yield "<table><tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"
    for number, piece in enumerate(row.pieces, 1):
        cells = [str(number), escape(_place(piece))]
        if has_heat:
            cells.append("" if piece.heat is None else _still(found, piece.picture or 0, piece.heat))
        words = "".join(
            f'<span class="token{" learnt" if cosine > found.scale.random[1] else ""}"><span>{safe_text(word)}</span>'
            f"<small>{cosine:.2f}</small></span>"
            for word, cosine in piece.words
        )
        cells += [f"{piece.deviations:.1f}", f'<div class="tokens">{words}</div>']
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table>"


def _still(found: Look, picture: int, heat: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(overlay(found, picture, heat)).save(file, "PNG")
    return f'<img alt="" src="{data_uri("image/png", file.getvalue())}">'


def overlay(found: Look, picture: int, heat: np.ndarray) -> np.ndarray:
    """The picture in dim grey, lit up where the attention is: `(H, W, 3)`; black without a picture."""
    times = max(1, -(-SIDE // max(heat.shape)))
    size = (heat.shape[1] * times, heat.shape[0] * times)
    if found.medium.pictures is None:
        grey = np.zeros(size[::-1], np.float32)
    else:
        shown = Image.fromarray(found.medium.pictures[min(picture, len(found.medium.pictures) - 1)])
        grey = np.asarray(shown.convert("L").resize(size), np.float32) / 255
    strength = (heat / max(float(heat.max()), 1e-12)).astype(np.float32)
    smooth = np.clip(np.asarray(Image.fromarray(strength).resize(size, Image.Resampling.BILINEAR)), 0, 1)[..., None]
    colours = np.asarray(colormaps["inferno"](0.3 + 0.65 * smooth[..., 0]))[..., :3]
    mixed = (1 - 0.8 * smooth) * 0.5 * grey[..., None] + 0.8 * smooth * colours * (0.55 + 0.45 * grey[..., None])
    return (255 * mixed).astype(np.uint8)


# ---- drawings -------------------------------------------------------------------------------------------------------


def _new_figure(width: float, height: float) -> Figure:
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def _drawn(made: Figure) -> bytes:
    file = io.BytesIO()
    made.savefig(file, dpi=110, format="png")
    return file.getvalue()


def _sound_figure(found: Look, row: RowLook) -> Figure:
    made = _new_figure(10, 3.6)
    _draw_sound(made.subplots(2, 1, sharex=True), found, row)
    return made


def _draw_sound(axes: Any, found: Look, row: RowLook, words: bool = False) -> None:
    """The waveform with the tokens that were fired; below it what the CIF gave each frame."""
    upper, lower = axes
    if found.medium.sound is not None:
        samples, rate = found.medium.sound.samples, found.medium.sound.sampling_rate
        upper.plot(np.arange(len(samples)) / rate, samples, linewidth=0.5, color="0.45")
    upper.set_ylabel("wave")
    weights = np.zeros(0) if row.weights is None else row.weights
    lower.bar((np.arange(len(weights)) + 0.5) * row.step, weights, width=0.9 * row.step, color="tab:blue")
    lower.set_ylabel("weight of a frame")
    lower.set_xlabel("seconds" if found.medium.sound is not None else "frames")
    for number, piece in enumerate(row.pieces, 1):
        if piece.span is None:
            continue
        for one in axes:
            one.axvline(piece.span[1], color="tab:red", linewidth=1)
        label = f"{number} {piece.words[0][0]}" if words and piece.words else str(number)
        upper.annotate(
            _plain(label), (sum(piece.span) / 2, 0.98), xycoords=("data", "axes fraction"), ha="center", va="top",
            color="tab:red", **_font(),
        )  # fmt: skip


def _png(found: Look) -> bytes:
    """The rows of the model below each other: the wave, or each query's attention with its nearest token."""
    made = _new_figure(11, 3.8 * len(found.rows))
    parts = made.subfigures(len(found.rows), 1, squeeze=False)[:, 0]
    for row, part in zip(found.rows, parts):
        title = f"{row.row}: {_summary(row, found.scale)}"
        more = len(row.pieces) - MOST_PANELS
        part.suptitle(_plain(f"{title}; the first {MOST_PANELS}" if more > 0 else title), fontsize=9)
        if row.is_heard:
            _draw_sound(part.subplots(2, 1, sharex=True), found, row, words=True)
            continue
        pieces = row.pieces[:MOST_PANELS]
        columns = min(10, max(1, len(pieces)))
        panels = part.subplots(-(-max(1, len(pieces)) // columns), columns, squeeze=False).flatten()
        for panel in panels:
            panel.set_axis_off()
        for panel, piece in zip(panels, pieces):
            if piece.heat is not None:
                panel.imshow(overlay(found, piece.picture or 0, piece.heat))
            word, cosine = piece.words[0]
            panel.set_title(_plain(f"{word} {cosine:.2f}"), fontsize=8, **_font())
    return _drawn(made)


def _plain(text: str) -> str:
    """A text that matplotlib does not take for a formula."""
    return visible(text, keep="").replace("$", r"\$")


def _font() -> dict[str, Any]:
    """A font with Chinese characters behind the default one, if this machine has any."""
    known = {font.name for font in font_manager.fontManager.ttflist}
    return {"fontfamily": ["DejaVu Sans", *(name for name in _CJK if name in known)]}


__all__ = ["as_json", "check_output", "far", "mean_heats", "overlay", "scale_text", "terminal_lines", "write_look"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A sample as one page: tokens, pictures and players, everything inside the file.

Texts come from strangers: all of them are escaped, control characters and direction marks are written out, and the
page's policy lets a browser load nothing and run nothing.
"""

import base64
import io
import os
from html import escape
from pathlib import Path

import av
import numpy as np
from PIL import Image

from xllm.training.explain import TASKS, BatchRow, Explanation, Medium, Span, Token, visible
from xllm.training.speech_synthesis import wav_bytes


FRAMES_PER_SECOND = 2  # of the frames that are sampled, which stand far apart
LEAST_SIDE = 160  # pixels on the screen: what a model gets is often smaller

STYLE = """
:root { color-scheme: light dark; --text: #1d1f23; --back: #fbfbfa; --soft: #6a6f78; --line: #d9dadd; --box: #ffffff;
  --learnt: #cdeed3; --learnt-text: #0b5421; --medium: #d9e8fb; --medium-text: #134a86; --special: #f3e8d2; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e5e7; --back: #17181b; --soft: #9a9fa8; --line: #36383d;
  --box: #1f2125; --learnt: #173c22; --learnt-text: #9fe3b1; --medium: #16304f; --medium-text: #a9cdf5;
  --special: #3b3120; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back); max-width: 64rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; overflow-wrap: anywhere; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); } bdi { unicode-bidi: isolate; }
.media { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px; background: var(--box);
  max-width: 100%; box-sizing: border-box; }
figcaption { font-size: .85rem; margin-top: .4rem; overflow-wrap: anywhere; max-width: 30rem; }
figure img, figure video { image-rendering: pixelated; border-radius: 4px; max-width: 100%; vertical-align: top; }
figure video { display: block; margin-bottom: .5rem; } .stills { display: flex; flex-wrap: wrap; gap: .3rem; }
audio { width: 18rem; max-width: 100%; display: block; }
.tokens { display: flex; flex-wrap: wrap; gap: .25rem; }
.token { display: inline-flex; flex-direction: column; padding: .1rem .35rem; border: 1px solid var(--line);
  border-radius: 5px; background: var(--box); color: inherit; text-decoration: none; max-width: 100%; }
.token > :first-child { white-space: pre-wrap; overflow-wrap: anywhere; }
.token small { color: var(--soft); font-size: .68rem; line-height: 1.1; }
.learnt { background: var(--learnt); color: var(--learnt-text); border-color: currentColor; font-weight: 600; }
.medium { background: var(--medium); color: var(--medium-text); } .special { background: var(--special); }
.learnt.special { background: var(--learnt); }
.key { display: flex; gap: .5rem; flex-wrap: wrap; font-size: .85rem; margin-bottom: .6rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 8px;
  background: var(--box); padding: .6rem .8rem; margin: .3rem 0; font: inherit; }
details { margin-top: .8rem; } table { border-collapse: collapse; font-size: .85rem; margin-top: .5rem; }
td, th { text-align: left; padding: .1rem .8rem .1rem 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; }
td { font-variant-numeric: tabular-nums; }
"""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def write_page(found: Explanation, path: Path) -> None:
    """Write the page; the file is there when all of it is."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(page(found), encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def page(found: Explanation) -> str:
    """The sample as HTML."""
    title = _text(found.where)
    notes = "".join(f"<p>{_text(note)}</p>" for note in found.notes)
    figures = "".join(map(_figure, found.media))
    media = f'<h2>Media, as the model gets them</h2><div class="media">{figures}</div>' if figures else ""
    rows = "".join(_row(row, number, len(found.rows)) for number, row in enumerate(found.rows, start=1))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(visible(found.where))}</title><style>{STYLE}</style></head><body>"
        f'<h1>{title}</h1><p class="soft">{_text(found.group)}</p>'
        f"<p>Task <b>{escape(found.task)}</b>: {escape(TASKS[found.task])}.</p>{notes}{media}{rows}</body></html>\n"
    )


def _text(text: str) -> str:
    """A text from outside: escaped, its direction shut in, nothing invisible in it."""
    return f'<bdi dir="auto">{escape(visible(text))}</bdi>'


# ---- media ----------------------------------------------------------------------------------------------------------


def _figure(medium: Medium) -> str:
    shown = ""
    if medium.sound is not None:
        sound = _data_uri("audio/wav", wav_bytes(medium.sound.samples, medium.sound.sampling_rate))
        shown = f'<audio controls preload="metadata" src="{sound}"></audio>'
    elif medium.pictures is not None:
        film = _webm(medium.pictures) if len(medium.pictures) > 1 else None
        if film is not None:
            size = _screen_size(medium.pictures)
            shown = f'<video controls loop muted playsinline {size} src="{_data_uri("video/webm", film)}"></video>'
        shown += f'<div class="stills">{"".join(map(_still, medium.pictures))}</div>'
    name = f"<b>{escape(medium.kind)} {medium.number}</b>"
    facts = f"{escape(medium.size)}; the model gets {escape(medium.inputs or 'nothing of it')}"
    caption = f"<figcaption>{name} {_text(medium.file)}<br>{facts}</figcaption>"
    return f'<figure id="m{medium.number}">{shown}{caption}</figure>'


def _screen_size(pictures: np.ndarray) -> str:
    height, width = pictures.shape[-3:-1]
    times = max(1, -(-LEAST_SIDE // max(height, width)))
    return f'width="{width * times}" height="{height * times}"'


def _still(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return f'<img alt="" {_screen_size(picture[None])} src="{_data_uri("image/png", file.getvalue())}">'


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _webm(pictures: np.ndarray) -> bytes | None:
    """Pictures `(T, H, W, 3)` as a film that every browser plays; `None` where this FFmpeg cannot make one."""
    if "libvpx" not in av.codecs_available:
        return None
    height, width = (size + size % 2 for size in pictures.shape[1:3])
    file = io.BytesIO()
    with av.open(file, "w", format="webm") as container:
        stream = container.add_stream("libvpx", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = width, height, "yuv420p", 2_000_000
        for picture in pictures:
            padded = np.pad(picture, ((0, height - picture.shape[0]), (0, width - picture.shape[1]), (0, 0)), "edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


# ---- tokens ---------------------------------------------------------------------------------------------------------


def _row(row: BatchRow, number: int, of: int) -> str:
    learnt = sum(token.learnt for token in row.tokens)
    prefix = sum(token.in_prefix for token in row.tokens)
    title = "Tokens" if of == 1 else f"Tokens of row {number} of {of}"
    seen = "Each token sees what stands before it."
    if prefix:
        seen = f"The first {prefix} tokens see each other in both directions, the others what stands before them."
    key = (
        '<div class="key"><span class="token learnt"><span>carries loss</span></span>'
        '<span class="token medium"><span>embeddings of a medium</span></span>'
        '<span class="token special"><span>special token</span></span></div>'
    )
    boxes = "".join(_span(row, piece) if isinstance(piece, Span) else _token(piece) for piece in row.pieces())
    prompt = f"<h2>Prompt</h2><pre>{_text(row.prompt)}</pre>" if row.prompt else ""
    return (
        f"<h2>{title}</h2><p>{len(row.tokens)} tokens, {learnt} of them carry loss. {seen}</p>{key}"
        f'<div class="tokens">{boxes}</div>{prompt}<h2>Answer</h2><pre>{_text(row.answer)}</pre>{_table(row)}'
    )


def _token(token: Token) -> str:
    names = " ".join(["token", *(["learnt"] if token.learnt else []), *(["special"] if token.is_special else [])])
    return f'<span class="{names}"><span>{_text(token.piece)}</span><small>{token.id}</small></span>'


def _span(row: BatchRow, span: Span) -> str:
    medium, first = span.medium, row.tokens[span.start]
    text = f"{escape(medium.kind)} {medium.number}: {span.length} x {_text(first.piece)}"
    return f'<a class="token medium" href="#m{medium.number}"><span>{text}</span><small>{first.id}</small></a>'


def _table(row: BatchRow) -> str:
    """Every token, with its positions and its part in the attention mask."""
    head = "".join(f"<th>{name}</th>" for name in ("place", "id", "token", "positions", "attention", "loss"))
    lines = "".join(
        f"<tr><td>{token.place}</td><td>{token.id}</td><td>{_text(token.piece)}</td>"
        f"<td>{', '.join(map(str, token.positions))}</td><td>{'prefix' if token.in_prefix else 'causal'}</td>"
        f"<td>{'yes' if token.learnt else ''}</td></tr>"
        for token in row.tokens
    )
    return f"<details><summary>All tokens with positions</summary><table><tr>{head}</tr>{lines}</table></details>"


__all__ = ["page", "write_page"]

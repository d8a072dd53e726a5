# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Pages in one file, with pictures and players inside.

Texts come from strangers: all of them are escaped, control characters and direction marks are written out, and the
page's policy lets a browser load nothing and run nothing.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import av
import numpy as np
from PIL import Image

from xllm.modeling_xllm.weight_files import replacing
from xllm.training.inspection.explain import Medium, visible
from xllm.training.instructions.speech_synthesis import wav_bytes


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
h3 { font-size: 1rem; margin-bottom: .3rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); overflow-wrap: anywhere; } bdi { unicode-bidi: isolate; }
.media { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; padding: .8rem; border: 1px solid var(--line); border-radius: 8px; background: var(--box);
  max-width: 100%; box-sizing: border-box; }
figcaption { font-size: .85rem; margin-top: .4rem; overflow-wrap: anywhere; max-width: 30rem; }
figure img, figure video { image-rendering: pixelated; border-radius: 4px; max-width: 100%; vertical-align: top; }
figure video { display: block; margin-bottom: .5rem; } .stills { display: flex; flex-wrap: wrap; gap: .3rem; }
img.plot { max-width: 100%; background: #ffffff; border-radius: 8px; }
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
details { margin-top: .8rem; } table { border-collapse: collapse; font-size: .85rem; margin-top: .5rem;
  display: block; max-width: 100%; overflow-x: auto; }
td, th { text-align: left; padding: .1rem .8rem .1rem 0; border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; }
"""
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def document(title: str, body: str) -> str:
    """A whole page; `title` may hold anything, `body` is HTML."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(visible(title))}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )


def write_page(path: Path, text: str) -> None:
    """Write a page; the file is there when all of it is."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def safe_text(text: object) -> str:
    """A text from outside: escaped, its direction shut in, nothing invisible in it."""
    return f'<bdi dir="auto">{escape(visible(str(text)))}</bdi>'


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of texts from outside; a head of empty texts is none."""
    cells = "".join(f"<th>{safe_text(name)}</th>" for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{safe_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{cells}</tr>' if any(head) else ''}{lines}</table>"


def figure(medium: Medium) -> str:
    """A medium as the model gets it: pictures, a film, a player."""
    shown = ""
    if medium.sound is not None:
        sound = data_uri("audio/wav", wav_bytes(medium.sound.samples, medium.sound.sampling_rate))
        shown = f'<audio controls preload="metadata" src="{sound}"></audio>'
    elif medium.pictures is not None:
        film = _webm(medium.pictures) if len(medium.pictures) > 1 else None
        if film is not None:
            size = _screen_size(medium.pictures)
            shown = f'<video controls loop muted playsinline {size} src="{data_uri("video/webm", film)}"></video>'
        shown += f'<div class="stills">{"".join(map(_still, medium.pictures))}</div>'
    name = f"<b>{escape(medium.kind)} {medium.number}</b>"
    facts = f"{escape(medium.size)}; the model gets {escape(medium.inputs or 'nothing of it')}"
    caption = f"<figcaption>{name} {safe_text(medium.file)}<br>{facts}</figcaption>"
    return f'<figure id="m{medium.number}">{shown}{caption}</figure>'


def _screen_size(pictures: np.ndarray) -> str:
    height, width = pictures.shape[-3:-1]
    times = max(1, -(-LEAST_SIDE // max(height, width)))
    return f'width="{width * times}" height="{height * times}"'


def _still(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return f'<img alt="" {_screen_size(picture[None])} src="{data_uri("image/png", file.getvalue())}">'


def data_uri(kind: str, content: bytes) -> str:
    """A file inside the page."""
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


__all__ = ["data_uri", "document", "figure", "safe_text", "table", "write_page"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Samples that a run has written, as HTML: question, media, answer, reference, how it was judged.

A medium is shown if it lies in the folder of training; of one that lies elsewhere nothing but its name is.
"""

import json
import mimetypes
from collections.abc import Iterator
from html import escape
from pathlib import PurePath
from typing import Any

from xllm.page.texts import Texts
from xllm.processing.media_kinds import AUDIO, IMAGE, VIDEO
from xllm.training.inspection.html_page import data_uri, safe_text
from xllm.training.inspection.run_answers import AnswerFile, is_unlike
from xllm.training.inspection.run_files import RunFiles


PER_PAGE = 6
MOST_MEDIUM, MOST_MEDIA = 4 << 20, 16 << 20  # bytes of a file, and of all files on a page
MOST_REPORT = 24 << 20
MOST_TEXT = 4_000  # characters
KNOWN = ("n", "where", "question", "media", "reference", "answer", "tokens", "skipped")
PLAYERS = {
    IMAGE.type: '<img alt="" src="{}">',
    AUDIO.type: '<audio controls preload="metadata" src="{}"></audio>',
    VIDEO.type: '<video controls preload="metadata" src="{}"></video>',
}


def answers(found: AnswerFile, first: int, only_unlike: bool, texts: Texts) -> str:
    """Some rows of a file of answers, from the one numbered `first`."""
    count = found.count(only_unlike)
    rows = found.rows(first, PER_PAGE, only_unlike)
    if not rows:
        return f'<p class="soft">{texts["no answers"]}</p>'
    budget = [MOST_MEDIA]
    told = texts("answers shown", first=first + 1, last=first + len(rows), count=f"{count:,}")
    return f'<p class="soft">{told}</p>' + "".join(_row(found.files, row, texts, budget) for row in rows)


def _row(files: RunFiles, row: dict[str, Any], texts: Texts, budget: list[int]) -> str:
    media = row.get("media")
    shown = "".join(_medium(files, path, texts, budget) for path in media) if isinstance(media, list) else ""
    told = [("question", row.get("question")), ("reference", row.get("reference")), ("answer", row.get("answer"))]
    told.append(("skipped", row.get("skipped")))
    lines = "".join(f"<dt>{texts[name]}</dt><dd>{_text(value)}</dd>" for name, value in told if value is not None)
    judged = "".join(f'<span class="chip">{one}</span>' for one in _judged(row))
    kind = "" if "reference" not in row else " unlike" if is_unlike(row) else " like"
    return (
        f'<article class="sample{kind}"><div class="media">{shown}</div><div><dl>{lines}</dl>'
        f'<div class="chips">{judged}</div>'
        f'<small class="soft">{safe_text(row.get("where", row.get("n", "")))}</small></div></article>'
    )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return safe_text(text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]} ...")


def _judged(row: dict[str, Any]) -> Iterator[str]:
    for name, value in row.items():
        if name in KNOWN or value is None:
            continue
        is_pair = isinstance(value, list) and len(value) == 2 and not isinstance(value[1], (list, dict))
        if is_pair and isinstance(value[0], bool):
            value = "✓" if value[0] else "✗"
        elif is_pair:
            value = f"{value[0]} / {value[1]}"
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"{safe_text(name)} {safe_text(text[:200])}"


def _medium(files: RunFiles, path: Any, texts: Texts, budget: list[int]) -> str:
    name = PurePath(str(path)).name
    own = files.relative(str(path)) if isinstance(path, str) else None
    player = PLAYERS.get((mime := mimetypes.guess_type(name)[0] or "").partition("/")[0])
    why, shown = "", ""
    if own is None:
        why = texts["medium elsewhere"]
    elif (size := files.size(own)) is None:
        why = texts["medium gone"]
    elif size > min(MOST_MEDIUM, budget[0]):
        why = texts("medium large", size=f"{size / 1e6:.1f}")
    elif player is not None and (content := files.read(own, MOST_MEDIUM)) is not None:
        budget[0] -= len(content)
        shown = player.format(escape(data_uri(mime, content)))
    return f"<figure>{shown}<figcaption>{safe_text(name)}{f' ({why})' if why else ''}</figcaption></figure>"


def report(files: RunFiles, name: str, texts: Texts) -> str:
    """The report of a stage, in a frame where nothing can run."""
    content = files.read(name, MOST_REPORT)
    if content is None:
        return f'<p class="soft">{texts["no report"]}</p>'
    page = escape(content.decode("utf-8", errors="replace"))
    return f'<iframe class="report" sandbox="" title="{texts["report"]}" srcdoc="{page}"></iframe>'


__all__ = ["PER_PAGE", "answers", "report"]

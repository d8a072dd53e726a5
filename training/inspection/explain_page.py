# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A sample as a page: its media, and the tokens that the model reads and learns."""

from html import escape

from xllm.training.inspection.explain import TASKS, BatchRow, Explanation, Span, Token
from xllm.training.inspection.html_page import document, figure, safe_text


def page(found: Explanation) -> str:
    """The sample as HTML."""
    title = safe_text(found.where)
    notes = "".join(f"<p>{safe_text(note)}</p>" for note in found.notes)
    figures = "".join(map(figure, found.media))
    media = f'<h2>Media, as the model gets them</h2><div class="media">{figures}</div>' if figures else ""
    rows = "".join(_row(row, number, len(found.rows)) for number, row in enumerate(found.rows, start=1))
    body = (
        f'<h1>{title}</h1><p class="soft">{safe_text(found.group)}</p>'
        f"<p>Task <b>{escape(found.task)}</b>: {escape(TASKS[found.task])}.</p>{notes}{media}{rows}"
    )
    return document(found.where, body)


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
    prompt = f"<h2>Prompt</h2><pre>{safe_text(row.prompt)}</pre>" if row.prompt else ""
    return (
        f"<h2>{title}</h2><p>{len(row.tokens)} tokens, {learnt} of them carry loss. {seen}</p>{key}"
        f'<div class="tokens">{boxes}</div>{prompt}<h2>Answer</h2><pre>{safe_text(row.answer)}</pre>{_table(row)}'
    )


def _token(token: Token) -> str:
    names = " ".join(["token", *(["learnt"] if token.learnt else []), *(["special"] if token.is_special else [])])
    return f'<span class="{names}"><span>{safe_text(token.piece)}</span><small>{token.id}</small></span>'


def _span(row: BatchRow, span: Span) -> str:
    medium, first = span.medium, row.tokens[span.start]
    text = f"{escape(medium.kind)} {medium.number}: {span.length} x {safe_text(first.piece)}"
    return f'<a class="token medium" href="#m{medium.number}"><span>{text}</span><small>{first.id}</small></a>'


def _table(row: BatchRow) -> str:
    """Every token, with its positions and its part in the attention mask."""
    head = "".join(f"<th>{name}</th>" for name in ("place", "id", "token", "positions", "attention", "loss"))
    lines = "".join(
        f"<tr><td>{token.place}</td><td>{token.id}</td><td>{safe_text(token.piece)}</td>"
        f"<td>{', '.join(map(str, token.positions))}</td><td>{'prefix' if token.in_prefix else 'causal'}</td>"
        f"<td>{'yes' if token.learnt else ''}</td></tr>"
        for token in row.tokens
    )
    return f"<details><summary>All tokens with positions</summary><table><tr>{head}</tr>{lines}</table></details>"


__all__ = ["page"]

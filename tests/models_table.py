# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The tables of docs/models.md, as the tests run them: `PYTHONPATH=tests python tests/models_table.py` writes them."""

from pathlib import Path

from published_encoders import ENCODERS
from published_encoders import REFUSED as REFUSED_ENCODERS
from published_language_models import LANGUAGE_MODELS, REFUSED


PATH = Path(__file__).resolve().parents[1] / "docs" / "models.md"
ROWS = {"image": "images and videos", "speech": "speech", "sound": "sounds"}
BEGIN, END = "<!-- table: {} -->\n", "<!-- end -->"


def _tables() -> dict[str, list[str]]:
    language_models = (
        (name, "its own" if one.template else "none: plain", f"`{one.stop}`",
         "behind the vocabulary" if one.full else "spare rows", f"`{one.repository}`")
        for name, one in LANGUAGE_MODELS.items()
    )  # fmt: skip
    rows = {
        "encoders": ((name, ROWS[one.row], one.reads, f"`{one.repository}`") for name, one in ENCODERS.items()),
        "refused_encoders": ((name, reason) for name, (_, _, reason) in REFUSED_ENCODERS.items()),
        "language_models": language_models,
        "refused": ((f"{name} (`{where}`)", reason) for name, (where, _, _, reason) in REFUSED.items()),
    }
    return {table: [f"| {' | '.join(cells)} |" for cells in lines] for table, lines in rows.items()}


def render(page: str) -> str:
    """The page with its tables as they are now."""
    for name, lines in _tables().items():
        before, _, rest = page.partition(BEGIN.format(name))
        old, _, after = rest.partition(END)
        body = "\n".join([*old.splitlines()[:2], *lines])
        page = f"{before}{BEGIN.format(name)}{body}\n{END}{after}"
    return page


if __name__ == "__main__":
    PATH.write_text(render(PATH.read_text(encoding="utf-8")), encoding="utf-8")

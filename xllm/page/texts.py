# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the page says, in each of its languages (texts.yaml)."""

from functools import cache
from pathlib import Path

import yaml


class Texts(dict):
    """Name -> text; `texts("name", n=1)` fills it in."""

    def __call__(self, name: str, /, **values: object) -> str:
        return self[name].format(**values)

    def kind(self, name: str) -> str:
        """A kind of media, or its own name where no language has a word for it."""
        return self.get(f"kind {name}", name)


@cache
def all_texts(name: str = "texts.yaml") -> dict[str, Texts]:
    """Language -> its texts; the first one is the default."""
    tables = yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8"))
    return {language: Texts(table) for language, table in tables.items()}


def language_of(accepted: str) -> str:
    """The language of the page for a browser that says `Accept-Language: accepted`."""
    wanted = []
    for entry in accepted.split(","):
        tag, _, weight = entry.strip().partition(";q=")
        try:
            wanted.append((-float(weight or 1), tag.split("-")[0].lower()))
        except ValueError:
            continue
    known = all_texts()
    return next((tag for _, tag in sorted(wanted, key=lambda one: one[0]) if tag in known), next(iter(known)))

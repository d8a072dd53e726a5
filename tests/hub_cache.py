# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A cache of the Hub, made by hand, whose only repository "a/b" has no main revision."""

from pathlib import Path


def snapshot(cache: Path, revision: str, commit: str = "odd") -> Path:
    """Where the files of a revision of "a/b" go."""
    repository = cache / "models--a--b"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / revision).write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    return repository / "snapshots" / commit

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A page in a thread of the test's process, and a browser that is told what its microphone hears."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from serving_fixtures import in_thread


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
)  # fmt: skip


@dataclass
class Serving:
    """A page that is served; `service` answers it."""

    url: str
    folder: Path
    service: Any


@contextlib.contextmanager
def serving_page(build, folder: Path, service: Any = None, **options: Any):
    """Serves pages until the block ends; `build` makes them of a language."""
    from xllm.page.page_app import create_page_app

    with pytest.MonkeyPatch.context() as patch:  # Gradio asks these again at each upload
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        app = create_page_app(build, folder, **options)
        with in_thread(app, log_level="critical", timeout_graceful_shutdown=1) as (url, _):
            yield Serving(url, folder, service)


@contextlib.contextmanager
def browser(hears: Path | None = None):
    """Headless Chromium, whose microphone hears a wav; skips, and says why, where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER TESTS: pip install playwright")
    if CHROMIUM is None:
        pytest.skip("NO BROWSER TESTS: install Debian's chromium")
    options = [*OPTIONS, *([f"--use-file-for-fake-audio-capture={hears}"] if hears else [])]
    with playwright.sync_playwright() as found:
        chromium = found.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield chromium
        finally:
            chromium.close()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm page` as a program: what is wrong in one line, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from xllm.cli import main


@pytest.fixture(autouse=True)
def _process_as_before(monkeypatch):
    """What the command sets is its process's, here that of other tests' page."""
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def failure(capsys, *words: str) -> str:
    """The line that a command says before it fails."""
    assert main(["page", *words]) == 1
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_what_is_wrong_is_said_before_the_model_is_loaded(capsys, checkpoint, media, tmp_path):
    assert "no/such" in failure(capsys, "no/such", "--port", "1")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}" in failure(capsys, checkpoint, "--port", port)
    free = ("--port", "65021")
    assert "no such file" in failure(capsys, checkpoint, *free, "--example", str(tmp_path / "no.png"))
    text = tmp_path / "text.doc"
    text.write_text("text")
    assert "this model reads .aac" in failure(capsys, checkpoint, *free, "--example", f"{text}:What?")
    assert "--max-upload" in failure(capsys, checkpoint, *free, "--max-upload", "0")


def test_without_gradio_the_extra_is_named(capsys, checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'xllm-transformers[page]'" in failure(capsys, checkpoint)


@pytest.mark.slow
def test_ctrl_c_ends_it_at_once_while_a_browser_listens(checkpoint, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "xllm", "page", checkpoint, "--port", str(port), "--host", "127.0.0.1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    page = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        assert page.stderr is not None
        assert any("in a browser" in line for line in page.stderr)
        url = f"http://127.0.0.1:{port}/en/gradio_api/heartbeat/session"
        end = time.monotonic() + 20
        while True:
            try:
                listening = urllib.request.urlopen(url, timeout=20)
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.1)
        with listening:
            assert listening.readline()
            assert [*tmp_path.glob("xllm-page-*")]
            page.send_signal(signal.SIGINT)
            assert page.wait(10) in (0, 130)
        assert page.stderr.read() == ""
        assert not [*tmp_path.glob("xllm-page-*")]
    finally:
        page.kill()
        page.wait()

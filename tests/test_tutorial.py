# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The tutorial of docs/modality.md, executed block by block in an empty folder."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from xllm import interface_checks
from xllm.cli import main
from xllm.interface_checks import CHECKS, check_interface
from xllm.modeling_xllm.converters import CONVERTERS
from xllm.processing.media_kinds import MEDIA_KINDS


PAGE = Path(__file__).resolve().parents[1] / "docs" / "modality.md"
FILES = {"python": "melody.py", "yaml": "recipe.yaml"}


@pytest.fixture
def _forgotten():
    """What the tutorial registers is unknown again afterwards."""
    path = list(sys.path)
    yield
    MEDIA_KINDS.pop("melody", None)
    for name in ("melody", "careless"):
        CONVERTERS.pop(name, None)
        sys.modules.pop(name, None)
    sys.path[:] = path


@pytest.mark.slow
@pytest.mark.usefixtures("_forgotten")
def test_every_block_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = {}
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S):
        if language in FILES:
            Path(FILES[language]).write_text(text, encoding="utf-8")
            continue
        assert language == "bash"
        for line in text.splitlines():
            program, *arguments = shlex.split(line)
            if program != "xllm":
                subprocess.run(["bash", "-c", line], check=True)
                continue
            capsys.readouterr()
            assert main(arguments) == 0, line
            said[arguments[0]] = capsys.readouterr().out
    assert list(said) == ["test-interface", "init", "check", "train", "evaluate", "chat"]
    assert said["test-interface"].count(" ok\n") == 10
    assert said["chat"].strip() == "up"
    assert "100" in said["evaluate"]

    Path("bad.notes").write_text("do re mi", encoding="utf-8")
    assert main(["chat", "base", "Up or down?", "--melody", "bad.notes", "--module", "melody.py"]) == 1
    assert "bad.notes: a melody is a list of pitches" in capsys.readouterr().err

    text = (
        Path("melody.py").read_text(encoding="utf-8").replace("hidden = hidden * mask", "hidden = hidden + 0 * mask")
    )
    Path("careless.py").write_text(text.replace('r("melody", ', 'r("careless", '), encoding="utf-8")
    quick = {name: check for name, check in CHECKS.items() if name not in ("two processes", "remote code")}
    monkeypatch.setattr(interface_checks, "CHECKS", quick)
    failed = {name for name, problem in check_interface("careless.py:MelodyConverter") if problem}
    assert failed == {"padding"}

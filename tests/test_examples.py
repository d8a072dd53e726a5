# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Every script of examples/ runs as it stands, and says what it promises."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from xllm.cli import main
from xllm.processing.media_kinds import MEDIA_KINDS


EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SAID = {
    "ask_about_a_picture": ".+",
    "compose_from_towers": r"67,200 parameters, 2,176 in the interface; towers .*language_model.*vision_tower",
    "interface_without_its_language_model": r"tokens \(3, 4, 64\)",
    "train_with_the_plain_trainer": r"(\d+) tensors were to be trained; \1 have moved, 0 others",
    "status_modality": "",
}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example(path, tmp_path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 40
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    assert re.search(SAID[path.stem], run.stdout, re.DOTALL)


def test_the_modality_of_ones_own_from_a_file_to_an_answer(tmp_path, capsys, monkeypatch):
    """init, chat and inspect with nothing but the example's module."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = ["--module", str(EXAMPLES / "status_modality.py")]
    state = tmp_path / "state.json"
    state.write_text(json.dumps([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
    folder = str(tmp_path / "model")
    try:
        assert main(["init", folder, "--preset", "tiny", "--modality", "status", *module]) == 0
        assert main(["inspect", folder, *module]) == 0
        assert "status" in capsys.readouterr().out
        assert main(["chat", folder, "--status", str(state), "What is this?", "--json", *module]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert answer
    finally:
        MEDIA_KINDS.pop("status", None)
        sys.modules.pop("status_modality", None)

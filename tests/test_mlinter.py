# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' structure rules for model packages (`mlinter`), and the ones that we do not follow."""

import json
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
EXCEPTIONS = {
    "TRF028": "files carry the licence in one line, as house style; LICENSE has the text",
    "TRF057": "@auto_docstring leaves gaps in the text outside transformers; docstrings are written by hand",
}


def test_structure_rules(tmp_path):
    report = tmp_path / "report.json"
    command = [str(Path(sys.executable).with_name("mlinter")), "modeling_xllm", "processing", "--no-cache"]
    run = subprocess.run(
        [*command, "--no-progress", "--output-json", str(report)], cwd=ROOT, capture_output=True, text=True
    )
    assert report.is_file(), run.stdout + run.stderr
    findings = json.loads(report.read_text(encoding="utf-8"))["findings"]
    unexplained = [
        f"{hit['path']}:{hit['line']}: {hit['message']}" for hit in findings if hit["rule"] not in EXCEPTIONS
    ]
    assert unexplained == []
    assert {hit["rule"] for hit in findings} == set(EXCEPTIONS), "an exception that nothing needs any more"

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The documentation says what is so: the first hour is lived through, and errors that are explained exist."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from xllm import public_names
from xllm.cli import main


ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.M | re.S)
PACKAGE = ("xllm", "modeling_xllm", "processing", "training", "hub_cards")


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_first_hour(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said, python = {}, ["data.py", None]
    for language, text in BLOCK.findall(page("first_hour.md")):
        if language == "yaml":
            Path("recipe.yaml").write_text(text, encoding="utf-8")
        elif language == "python" and (name := python.pop(0)) is not None:
            Path(name).write_text(text, encoding="utf-8")
        elif language == "python":
            answer = io.StringIO()
            with contextlib.redirect_stdout(answer):
                exec(compile(text, "first_hour.md", "exec"), {})
        for line in text.splitlines() if language == "bash" else ():
            program, *arguments = shlex.split(line)
            if program == "xllm":
                capsys.readouterr()
                assert main(arguments) == 0, line
                said[arguments[0]] = capsys.readouterr().out
            elif program != "pip":
                subprocess.run(["bash", "-c", line.replace("python", sys.executable, 1)], check=True)
    assert list(said) == ["init", "inspect", "check", "explain", "train", "chat", "evaluate", "look"]
    assert said["chat"].strip() == answer.getvalue().strip() == "blue"
    assert "100" in said["evaluate"]
    for name in ("sample.html", "runs/stage2-image/report.html", "scores/report.html", "look.html"):
        assert Path(name).is_file(), name


def test_both_languages_run_the_same():
    assert BLOCK.findall(page("first_hour.md")) == BLOCK.findall(page("first_hour_zh.md"))


def test_every_command_is_in_the_table(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = re.findall(r"^    ([a-z][a-z-]+)\b", capsys.readouterr().out, flags=re.M)
    rows = [line for line in page("commands.md").splitlines() if line.startswith("| `xllm ")]
    assert sorted(set(commands)) == sorted({row.split("`")[1].split()[1] for row in rows})
    assert len(commands) > 15


def test_both_readmes_run_the_same():
    """But for remarks and the question."""
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README_zh.md")]
    lines = [
        [line for kind, text in BLOCK.findall(file) if kind == "bash" for line in text.splitlines()] for file in pages
    ]
    words = [[word for line in file for word in shlex.split(line.rstrip("\\"), comments=True)] for file in lines]
    english, chinese = ([word for word in file if not word.endswith(("?", "？"))] for file in words)
    assert english == chinese
    assert len(english) > 20


def test_errors_that_are_explained_exist():
    """Each piece of a line in the tables of troubleshooting.md stands in a message of the package."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for folder in PACKAGE for path in sorted((ROOT / folder).rglob("*.py"))
    )
    source = re.sub(r'"\s*\n\s*f?"', "", source)  # strings that are written in several lines
    rows = [line.split("|")[1] for line in page("troubleshooting.md").splitlines() if line.startswith("| `")]
    pieces = [piece for row in rows for piece in re.findall(r"`([^`]+)`", row)]
    assert len(pieces) > 15
    assert [piece for piece in pieces if piece not in source] == []


def test_every_public_name_is_in_the_api():
    documented = {line.rpartition(".")[2] for line in page("api.md").splitlines() if line.startswith("::: ")}
    assert set(public_names()) <= documented


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == set(re.findall(r"\w+\.md", text))

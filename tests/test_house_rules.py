# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Rules of CONTRIBUTING.md that a machine can check."""

import ast
import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("modeling_xllm", "processing", "training", "hub_cards", "xllm")
# Who may import whom, by package of the installed layout.
ALLOWED = {
    "modeling_xllm": set(),
    "processing": set(),
    "assembly": {"modeling_xllm", "processing"},
    "training": {"modeling_xllm", "processing", "assembly"},
    "hub_cards": {"modeling_xllm", "processing", "assembly", "training"},
    "xllm": {"modeling_xllm", "processing", "assembly", "training", "hub_cards", "xllm"},
}
HUB_FOLDERS = ("modeling_xllm", "processing")
LONGER = {"modeling_xllm/modeling_chatglm.py": 600}

SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement of a file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path):
    relative = path.relative_to(ROOT)
    travels = len(relative.parts) == 2 and relative.parts[0] in HUB_FOLDERS  # sub-packages stay here
    folder = "assembly" if relative.parts[:2] == ("xllm", "assembly") else relative.parts[0]
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Copyright 2026 The X-LLM Transformers Authors."), "licence line"
    assert ast.get_docstring(ast.parse(text)), "module docstring"
    assert len(text.splitlines()) <= LONGER.get(str(relative), 400), "a file is one idea"
    for level, module in imports_of(path):
        if level:
            assert travels, f"relative import of {module}: absolute outside the Hub folders"
            assert level == 1, "only siblings"
            assert module, "from . import x is not seen by the Hub's exporter"
            assert "." not in module, "the Hub's exporter knows no sub-folders"
        elif module.split(".")[0] == "xllm":
            if module == "xllm.auto_classes" and path.name == "__init__.py":
                continue  # importing any part of the package registers all of it; no __init__.py travels
            assert not travels, f"{module}: Hub files know no xllm"
            parts = module.split(".")
            package = parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "xllm"
            assert package == folder or package in ALLOWED[folder], f"{folder} must not import {module}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_fit_a_screen_and_public_ones_are_documented(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{node.name} has {lines} lines"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def test_hub_files_have_unique_names():
    names = [
        path.name for folder in HUB_FOLDERS for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"
    ]
    assert len(names) == len(set(names)), "both folders become one flat folder on the Hub"


def test_no_machine_paths():
    pattern = re.compile(r"/(?:home|root|raid|mnt|work)/")
    files = [path for pattern_ in ("**/*.py", "**/*.yaml", "*.md") for path in ROOT.glob(pattern_)]
    mine = [path for path in files if ".venv" not in path.parts and "build" not in path.parts]
    hits = [str(path) for path in mine if path != Path(__file__) and pattern.search(path.read_text(encoding="utf-8"))]
    assert hits == []


def test_every_folder_is_packaged():
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    folders = {str(path.parent.relative_to(ROOT)) for path in SOURCES}
    mapped = set(re.findall(r'": "([a-z0-9_/]+)"', text))
    assert folders == mapped

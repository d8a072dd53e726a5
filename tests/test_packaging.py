# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What is installed: inference without the training extras, the line that names an extra, wheel and sdist."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from PIL import Image
from setuptools import build_meta

import xllm
from xllm import cli


ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = (
    "datasets", "dill", "jiwer", "rapidfuzz", "matplotlib", "pandas", "peft", "pyarrow", "scipy", "sklearn",
    "tensorboard", "bitsandbytes", "torchao", "trl",
)  # fmt: skip
HIDE = f"""
import importlib.machinery, sys
find_spec = importlib.machinery.PathFinder.find_spec
def hide(name, path=None, target=None):
    return None if name.split(".")[0] in {OPTIONAL!r} else find_spec(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(hide)
"""
ASK = """
import numpy as np
from transformers import AutoModelForImageTextToText, AutoProcessor
from xllm.cli import main

folder = sys.argv[1]
assert main(["init", folder, "--preset", "tiny"]) == 0
assert main(["inspect", folder]) == 0
model = AutoModelForImageTextToText.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
for part in (
    {"type": "image", "image": np.zeros((8, 8, 3), np.uint8)},
    {"type": "audio", "audio": np.zeros(16_000, np.float32)},
    {"type": "video", "video": np.zeros((4, 8, 8, 3), np.uint8)},
):
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": [part, {"type": "text", "text": "What ?"}]}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )
    output = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    print("answered", part["type"], output.shape[1] > inputs["input_ids"].shape[1])
"""


def run_without_extras(code: str, *arguments: str) -> subprocess.CompletedProcess:
    """Python code in a process where no optional package can be found."""
    return subprocess.run(
        [sys.executable, "-c", HIDE + code, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_the_packages_really_are_hidden():
    for name in ("jiwer", "peft"):  # both are installed for the tests
        assert run_without_extras(f"import {name}").stderr.strip().endswith(f"No module named '{name}'")


def test_load_process_and_generate_need_no_extra(tmp_path):
    result = run_without_extras(ASK, str(tmp_path / "model"))
    assert result.returncode == 0, result.stderr
    answers = [line for line in result.stdout.split("\n") if line.startswith("answered")]
    assert answers == ["answered image True", "answered audio True", "answered video True"]


def test_data_are_checked_without_an_extra(tmp_path):
    (tmp_path / "data.csv").write_text("file,text\ngone.wav,a\n")
    code = "from xllm.cli import main; sys.exit(main(['check', sys.argv[1], '--workers', '1']))"
    result = run_without_extras(code, str(tmp_path / "data.csv"))
    assert result.returncode == 1
    assert "data.csv:2: missing: no such file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("command", "package"), [("train", "jiwer"), ("evaluate", "jiwer")])
def test_a_command_names_the_extra_in_one_line(command, package, tmp_path):
    arguments = {"train": ["stage3", "model=m", "train=a"], "evaluate": ["m", "--task", "asr", "--data", "d.csv"]}
    code = f"from xllm.cli import main; sys.exit(main({[command, *arguments[command]]!r}))"
    result = run_without_extras(code)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("xllm")]
    assert line == f'xllm {command}: No module named {package!r}: pip install "xllm-transformers[train]"'
    assert "Traceback" not in result.stderr


def test_the_table_of_extras_is_that_of_pyproject():
    extras = PROJECT["optional-dependencies"]
    imported = {"sklearn": "scikit-learn", "espeakng_loader": "espeakng-loader", "multipart": "python-multipart"}
    for module, extra in cli.EXTRAS.items():
        name = imported.get(module, module)
        assert any(entry.startswith(f"{name}>=") for entry in extras[extra]), module


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A wheel and a source distribution, built from a copy without any network."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "outputs", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    with contextlib.chdir(folder / "source"):
        sdist = folder / build_meta.build_sdist(str(folder))
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return sdist, built_wheel(folder / sdist.name.removesuffix(".tar.gz"))  # it is built from the other, as pip does


def built_wheel(source: Path) -> Path:
    """A wheel, beside the folder that it is built from and named as it."""
    (place := source.with_name(f"wheel of {source.name}")).mkdir()
    with contextlib.chdir(source):
        return place / build_meta.build_wheel(str(place))


def wheel_files(wheel: Path) -> set[str]:
    """What it puts beside other packages, less its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def tracked_files() -> set[str]:
    """Files of the repository; all of them where it is no checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if found.returncode:
        pytest.skip("not a git checkout")
    return {name for name in found.stdout.split("\n") if name and (ROOT / name).exists()}


def test_the_source_distribution_holds_every_tracked_file(distributions):
    with tarfile.open(distributions[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked_files() - held == set()


def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    held = wheel_files(distributions[1])
    assert {name.split("/")[0] for name in held} == {"xllm"}
    folders = ("xllm/", "modeling_xllm/", "processing/", "training/", "hub_cards/")
    ours = {name for name in tracked_files() if name.startswith(folders)}
    assert held == {name if name.startswith("xllm/") else f"xllm/{name}" for name in ours}


def test_a_wheel_of_the_checkout_is_that_of_the_source_distribution(distributions):
    def files(wheel: Path) -> dict[str, int]:
        with zipfile.ZipFile(wheel) as archive:
            return {entry.filename: entry.CRC for entry in archive.infolist() if not entry.filename.endswith("RECORD")}

    assert files(built_wheel(distributions[0].parent / "source")) == files(distributions[1])


TRY = """
import sys
from importlib.metadata import files, version
from pathlib import Path
import xllm, xllm.training.train, xllm.demo.run, xllm.serving
from xllm.cli import main
from xllm.training.recipes.recipe import shipped_recipes

assert Path(xllm.__file__).is_relative_to(sys.prefix), xllm.__file__
assert version("xllm-transformers") == xllm.__version__
ours = [file for file in files("xllm-transformers") if file.parts[0] == "xllm" and file.suffix != ".pyc"]
print("there:", sum(file.locate().is_file() for file in ours), "of", len(ours), "recipes:", len(shipped_recipes()))
assert main(["init", "model", "--preset", "tiny"]) == 0
assert main(["chat", "model", "--image", "picture.png", "What is this?", "--max-new-tokens", "2"]) == 0
"""


@pytest.mark.slow  # a new environment, and four processes in it
def test_the_wheel_works_in_a_new_environment_away_from_the_checkout(distributions, tmp_path):
    """What it depends on comes from where this test runs; whether the versions fit is for pip to say."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def said(*command: str | Path, status: int = 0) -> str:
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert run.returncode <= status, run.stdout + run.stderr
        return run.stdout

    said(sys.executable, "-m", "venv", "--without-pip", "new")
    python = tmp_path / "new" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python]
    said(*pip, "install", "--no-deps", "--no-index", distributions[1])
    (site,) = (tmp_path / "new" / "lib").glob("python*/site-packages")
    here = {str(Path(module.__file__).parents[1]) for module in (pytest, torch, setuptools)}
    (site / "others.pth").write_text("\n".join(here) + "\n")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "picture.png")
    xllm = python.with_name("xllm")
    assert said(xllm, "--version") == f"xllm {PROJECT['version']}\n"
    assert f"xllm-transformers: {PROJECT['version']}\n" in said(xllm, "env")
    files, recipes = wheel_files(distributions[1]), [*(ROOT / "training" / "recipes").glob("*.yaml")]
    assert f"there: {len(files)} of {len(files)} recipes: {len(recipes)}\n" in said(python, "-c", TRY)
    wrong = said(*pip, "check", status=1)  # of other packages, too
    assert not [line for line in wrong.splitlines() if line.startswith("xllm-transformers")]


def declared() -> dict[str, list[Requirement]]:
    """Requirements of the package and of its extras that users install; `lmms-eval` resolves only at its newest."""
    extras = PROJECT["optional-dependencies"]
    groups = {
        "": PROJECT["dependencies"],
        **{name: extras[name] for name in extras if name not in ("dev", "lmms-eval")},
    }
    found = {name: [*map(Requirement, entries)] for name, entries in groups.items()}
    return {name: [one for one in entries if one.name != PROJECT["name"]] for name, entries in found.items()}


def test_the_oldest_versions_that_are_declared_are_those_that_are_tested():
    lines = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for extra, requirements in declared().items():
        for one in requirements:
            (lowest,) = [bound.version for bound in one.specifier if bound.operator == ">="]
            pinned = pins[canonicalize_name(one.name)]
            assert Version(pinned) == Version(lowest), f"{one} {extra}: make oldest tries {pinned}"


def test_one_version_everywhere():
    version = PROJECT["version"]
    assert xllm.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == version
    assert re.fullmatch(r" - \d{4}-\d{2}-\d{2}", headings[1][1])


def test_the_python_that_is_named_is_one_that_the_tests_run_on():
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if " :: Python :: 3." in line]
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(version) for version in named)
    assert "3.11" in named
    assert f"Python {named[-1]}." in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")

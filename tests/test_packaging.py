# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What is installed: inference without the training extras, the line that names an extra, wheel and sdist."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
from setuptools import build_meta

from xllm import cli


ROOT = Path(__file__).resolve().parents[1]
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
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {"sklearn": "scikit-learn", "espeakng_loader": "espeakng-loader", "multipart": "python-multipart"}
    for module, extra in cli.EXTRAS.items():
        name = imported.get(module, module)
        assert any(entry.startswith(f"{name}>=") for entry in extras[extra]), module


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A wheel and a source distribution, built from a copy without any network."""
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "outputs", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    here = Path.cwd()
    os.chdir(folder / "source")
    try:
        sdist = build_meta.build_sdist(str(folder))
        with tarfile.open(folder / sdist) as archive:
            archive.extractall(folder, filter="data")
        os.chdir(folder / sdist.removesuffix(".tar.gz"))  # the wheel is built from it, as pip does
        wheel = build_meta.build_wheel(str(folder))
    finally:
        os.chdir(here)
    return folder / sdist, folder / wheel


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
    with zipfile.ZipFile(distributions[1]) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {name.split("/")[0] for name in held} == {"xllm"}
    folders = ("xllm/", "modeling_xllm/", "processing/", "training/", "hub_cards/")
    ours = {name for name in tracked_files() if name.startswith(folders)}
    assert held == {name if name.startswith("xllm/") else f"xllm/{name}" for name in ours}


def test_the_wheel_works_where_it_is_installed(distributions, tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*install, str(distributions[1])], check=True, capture_output=True)
    code = (
        "import xllm.training.train, xllm.demo.run, xllm.training.recipes.recipe as recipe;"
        "print(xllm.__file__, len(recipe.shipped_recipes()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
    )
    path, recipes = result.stdout.split()[-2:]
    assert path.startswith(str(target))
    assert int(recipes) == len(list((ROOT / "training" / "recipes").glob("*.yaml")))

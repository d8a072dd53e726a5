# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' own common tests, taken from the source distribution of the installed version.

They are fetched by `python tests/conformance/suites.py` into a cache folder (`$XLLM_CONFORMANCE_CACHE`, by default
`xllm-conformance` in the user's cache) and imported from there as the package `transformers_suites`; nothing of them
is kept in this repository. The source distribution lacks the generation and exporter suites: they are taken from
transformers' repository, of which `$XLLM_CONFORMANCE` names the `tests` folder (by default `shared/conformance` beside
this checkout), or left out. It also lacks two small modules that the suites import; what stands in for them is
defined here.
"""

import importlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import warnings
from pathlib import Path
from types import ModuleType
from unittest import mock

import transformers


PACKAGE = "transformers_suites"
# What the source distribution lacks, and the class of it that the common suites import.
FURTHER_SUITES = {"exporters/test_export.py": "ExportTesterMixin", "generation/test_utils.py": "GenerationTesterMixin"}
# Arguments that any config takes, none of them with its default.
COMMON_CONFIG_ARGUMENTS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 4,
    "architectures": ["SomeModel"],
    "id2label": {0: "a", 1: "b", 2: "c"},
    "label2id": {"a": 0, "b": 1, "c": 2},
    "problem_type": "regression",
}


class SuitesError(RuntimeError):
    """The suites cannot be had."""


def cache_folder() -> Path:
    """Where the suites of all versions are kept."""
    if folder := os.environ.get("XLLM_CONFORMANCE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xllm-conformance"


def suites_folder() -> Path:
    """The unpacked tests of the installed transformers, there or not."""
    return cache_folder() / f"transformers-{transformers.__version__}" / "tests"


def fetch_suites() -> Path:
    """Download and unpack the suites unless they are there.

    Raises:
        SuitesError: the package index cannot be reached, or has no source distribution of this version.
    """
    folder = suites_folder()
    if folder.is_dir():
        return folder
    requirement = f"transformers=={transformers.__version__}"
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as scratch:
        # pip reads the metadata of what it downloads with setuptools: the installed one, rather than one more
        # download.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        pip = subprocess.run(
            [*command, "--no-binary", "transformers", "--dest", scratch, requirement], capture_output=True, text=True
        )
        archives = list(Path(scratch).glob("transformers-*.tar.gz"))
        if pip.returncode or not archives:
            raise SuitesError(
                f"pip could not download the source distribution of {requirement} into {cache_folder()}: an index "
                f"must be reachable the first time.\n{pip.stderr.strip()}"
            )
        with tarfile.open(archives[0]) as archive:
            members = [member for member in archive.getmembers() if "/tests/" in member.name]
            archive.extractall(scratch, members=members, filter="data")
        # Renamed at the end, so that an interrupted download leaves nothing that looks whole.
        (Path(scratch) / folder.parent.name).rename(folder.parent)
    return folder


def further_folder() -> Path:
    """Where the suites lie that the source distribution lacks, there or not."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "conformance"
    return Path(os.environ.get("XLLM_CONFORMANCE") or beside)


def take_further_suites() -> bool:
    """Copy the generation and exporter suites beside the fetched ones; whether they are there."""
    there = [suites_folder() / name for name in FURTHER_SUITES]
    for name, target in zip(FURTHER_SUITES, there):
        source = further_folder() / name
        if source.is_file() and not (target.is_file() and target.read_bytes() == source.read_bytes()):
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = target.with_suffix(f".{os.getpid()}")
            shutil.copyfile(source, aside)
            aside.replace(target)  # other processes of the same run may read it
    return all(target.is_file() for target in there)


def _stand_in(name: str, **contents) -> None:
    module = ModuleType(name)
    module.__dict__.update(contents, __path__=[])
    sys.modules[name] = module


def import_suite(name: str) -> ModuleType:
    """Import one of the fetched test modules, such as `test_modeling_common`."""
    if PACKAGE not in sys.modules:
        from conformance.stand_in_media import local_media  # needs PyAV and torch, which fetching alone does not
        from transformers import testing_utils

        folder = suites_folder()
        (folder / "__init__.py").touch()
        _stand_in(PACKAGE)
        sys.modules[PACKAGE].__path__ = [str(folder)]
        _stand_in(f"{PACKAGE}.utils")
        has_further = take_further_suites()
        for file, mixin in FURTHER_SUITES.items():
            module = f"{PACKAGE}.{file.removesuffix('.py').replace('/', '.')}"
            if has_further:  # their own imports start at the root of transformers' repository
                all_run = mock.patch.object(testing_utils, "_run_slow_tests", True)  # all that exports is marked slow
                with all_run, warnings.catch_warnings(action="ignore"):  # marks of another repository
                    sys.modules[module.replace(PACKAGE, "tests")] = importlib.import_module(module)
            else:
                _stand_in(module.rpartition(".")[0])
                _stand_in(module, **{mixin: type(mixin, (), {})})
        if has_further:  # they are of a tree in which an export was the program itself
            exported = importlib.import_module("transformers.exporters.base").ExportedModel
            exported.module = lambda export: export.program.module()
        _stand_in(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=COMMON_CONFIG_ARGUMENTS)
        _stand_in("fetch_hub_objects_for_ci", url_to_local_path=local_media)
    return importlib.import_module(f"{PACKAGE}.{name}")


if __name__ == "__main__":
    try:
        print(fetch_suites())
    except SuitesError as error:
        sys.exit(str(error))

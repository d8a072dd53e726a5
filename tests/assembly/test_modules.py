# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Modules of the user's are imported once, under one name, in every process."""

import pickle
import subprocess
import sys
from multiprocessing import get_context

import pytest

from xllm.assembly.modules import import_modules


CODE = "class Reader:\n    size = 3\n"


@pytest.fixture(autouse=True)
def _leave_no_module(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("my_readers", None)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_file_is_imported_once_and_found_by_workers(tmp_path, method):
    path = tmp_path / "my_readers.py"
    path.write_text(CODE)
    (first,) = import_modules([str(path)])
    (second,) = import_modules([str(path)])
    assert first.Reader is second.Reader
    assert first.Reader.__module__ == "my_readers"
    with get_context(method).Pool(1) as pool:
        assert type(pool.apply(pickle.loads, (pickle.dumps(first.Reader()),))) is first.Reader


def test_an_installed_module_is_imported_by_its_name():
    import json.decoder

    assert import_modules(["json.decoder"]) == [json.decoder]


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("none.py", None, r"none\.py: no such file"),
        ("my-readers.py", CODE, r"my-readers\.py: a module's name has letters, digits and _ only"),
        ("json.py", CODE, r"the name json belongs to .*json.__init__\.py; rename the file"),
        ("my_readers.py", "1 / 0", r"my_readers\.py: ZeroDivisionError while it was imported"),
        ("my_readers.py", "import no_such_thing", r"my_readers\.py: it needs no_such_thing, which is not installed"),
    ],
)
def test_files_that_cannot_be_imported(tmp_path, name, code, message):
    if code is not None:
        (tmp_path / name).write_text(code)
    with pytest.raises(ValueError, match=message):
        import_modules([str(tmp_path / name)])


def test_a_name_that_is_not_installed():
    with pytest.raises(ValueError, match=r"no_such_module: there is no such module; a file is given by its path"):
        import_modules(["no_such_module"])


def test_a_file_of_the_same_name_in_the_current_folder_is_another_module(tmp_path):
    asked, current = tmp_path / "asked", tmp_path / "current"
    for folder in (asked, current):
        folder.mkdir()
        (folder / "twice_there.py").write_text(f"WHERE = {folder.name!r}\n", encoding="utf-8")
    file = str(asked / "twice_there.py")
    code = f"from xllm.assembly.modules import import_modules; print(import_modules([{file!r}])[0].WHERE)"
    done = subprocess.run([sys.executable, "-c", code], cwd=current, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "asked"

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The suites run only where they were fetched; every skip or failure must be one that `exceptions.py` explains."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conformance.exceptions import ENVIRONMENT_SKIPS, KNOWN_FAILURES, KNOWN_SKIPS
from conformance.suites import suites_folder
from transformers.models.auto import modeling_auto


HAS_SUITES = suites_folder().is_dir()
collect_ignore_glob = [] if HAS_SUITES else ["test_*_suite.py"]
WAS_SKIPPED = pytest.StashKey[bool]()


def pytest_report_header() -> str:
    state = suites_folder() if HAS_SUITES else "not fetched, left out (`make conformance` fetches and runs them)"
    return f"transformers' own suites: {state}"


def name_of(item: pytest.Item) -> str:
    return "::".join(item.nodeid.split("::")[1:])


def reason_in(table: dict[str, str], item: pytest.Item) -> str | None:
    """What `table` says of a test, by "Class::test" (shell patterns)."""
    return next((reason for pattern, reason in table.items() if fnmatch(name_of(item), pattern)), None)


def is_suite(item: pytest.Item) -> bool:
    return item.path.name.endswith("_suite.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    suite_items = [item for item in items if is_suite(item)]
    for item in suite_items:
        if reason := reason_in(KNOWN_FAILURES, item):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    if {item.path for item in suite_items} == set(Path(__file__).parent.glob("test_*_suite.py")):
        names = [name_of(item) for item in suite_items]
        listed = [*KNOWN_FAILURES, *KNOWN_SKIPS]
        if stale := [pattern for pattern in listed if not any(fnmatch(name, pattern) for name in names)]:
            raise pytest.UsageError(f"exceptions.py lists tests that do not exist: {', '.join(stale)}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    if not is_suite(item) or hasattr(report, "wasxfail"):
        return report
    listed = reason_in(KNOWN_SKIPS, item)
    if report.skipped:
        item.stash[WAS_SKIPPED] = True
        said = (
            call.excinfo.value.msg if call.excinfo and hasattr(call.excinfo.value, "msg") else str(report.longrepr[2])
        )
        if not listed and not any(re.search(pattern, said) for pattern in ENVIRONMENT_SKIPS):
            report.outcome, report.longrepr = "failed", f"skipped without a line in exceptions.py: {said}"
    elif report.passed and call.when == "call" and listed and not item.stash.get(WAS_SKIPPED, False):
        report.outcome, report.longrepr = "failed", f"passes, but exceptions.py lists it as skipped: {listed}"
    return report


@pytest.fixture(autouse=True)
def _known_base_models(monkeypatch):
    """The suites tell base models from those with a head by name; `AutoModel` gives ours with their heads."""
    monkeypatch.setitem(modeling_auto.MODEL_MAPPING_NAMES, "xllm", "XLLMModel")
    monkeypatch.setitem(modeling_auto.MODEL_MAPPING_NAMES, "chatglm", "ChatGLMModel")

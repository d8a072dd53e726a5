# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The suites run only where they were fetched; every skip or failure must be one that `exceptions.py` explains."""

import inspect
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conformance import exceptions
from conformance.exceptions import ENVIRONMENT_SKIPS
from conformance.suites import PACKAGE, further_folder, suites_folder, take_further_suites
from transformers.models.auto import modeling_auto


HAS_SUITES = suites_folder().is_dir()
HAS_FURTHER = HAS_SUITES and take_further_suites()
KNOWN_FAILURES = exceptions.KNOWN_FAILURES | (exceptions.FURTHER_FAILURES if HAS_FURTHER else {})
KNOWN_SKIPS = exceptions.KNOWN_SKIPS | (exceptions.FURTHER_SKIPS if HAS_FURTHER else {})
collect_ignore_glob = [] if HAS_SUITES else ["test_*_suite.py"]
ADAPTED = exceptions.ADAPTED | (exceptions.FURTHER_ADAPTED if HAS_FURTHER else {})
WAS_SKIPPED = pytest.StashKey[bool]()


def pytest_report_header() -> list[str]:
    state = suites_folder() if HAS_SUITES else "not fetched, left out (`make conformance` fetches and runs them)"
    further = "with the others" if HAS_FURTHER else f"NOT RUN: not in {further_folder()} ($XLLM_CONFORMANCE)"
    return [f"transformers' own suites: {state}", f"transformers' generation and exporter suites: {further}"]


def name_of(item: pytest.Item) -> str:
    return "::".join(item.nodeid.split("::")[1:])


def reason_in(table: dict[str, str], item: pytest.Item) -> str | None:
    """What `table` says of a test, by "Class::test" (shell patterns)."""
    return next((reason for pattern, reason in table.items() if fnmatch(name_of(item), pattern)), None)


def is_suite(item: pytest.Item) -> bool:
    return item.path.name.endswith("_suite.py")


def is_ours(item: pytest.Item) -> bool:
    """Whether a test case of the suite has a test of ours in the place of its own."""
    suites = [base for base in item.cls.__mro__ if base.__module__.startswith(PACKAGE)]
    code = getattr(inspect.unwrap(item.function), "__code__", None)  # what parameterized leaves behind has none
    is_here = code is not None and Path(code.co_filename).parent == Path(__file__).parent
    return is_here and any(hasattr(base, item.originalname) for base in suites)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    suite_items = [item for item in items if is_suite(item)]
    ours = [item for item in suite_items if item.cls is not None and is_ours(item)]
    if unlisted := [name_of(item) for item in ours if reason_in(ADAPTED, item) is None]:
        raise pytest.UsageError(f"ADAPTED of exceptions.py does not list {', '.join(unlisted)}")
    for item in suite_items:
        if reason := reason_in(KNOWN_FAILURES, item):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        if "_export_" in name_of(item):
            item.add_marker(pytest.mark.slow)
    if {item.path for item in suite_items} == set(Path(__file__).parent.glob("test_*_suite.py")):
        names = [name_of(item) for item in suite_items]
        listed = [*KNOWN_FAILURES, *KNOWN_SKIPS, *ADAPTED]
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

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Fetching the suites, where they cannot be had."""

import pytest
import transformers
from conformance.suites import SuitesError, fetch_suites, suites_folder


def test_no_index_is_one_clear_error_and_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("XLLM_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(SuitesError, match=f"transformers=={transformers.__version__} .*index must be reachable"):
        fetch_suites()
    assert suites_folder().parent.parent == tmp_path / "cache"
    assert list((tmp_path / "cache").iterdir()) == []


def test_suites_that_are_there_are_not_fetched_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XLLM_CONFORMANCE_CACHE", str(tmp_path))
    suites_folder().mkdir(parents=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert fetch_suites() == suites_folder()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Fetching the suites, where they cannot be had."""

import pytest
import transformers
from conformance.suites import FURTHER_SUITES, SuitesError, fetch_suites, suites_folder, take_further_suites


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


def test_the_generation_and_exporter_suites_are_run():
    if suites_folder().is_dir() and not take_further_suites():
        pytest.skip("generation and exporter suites NOT RUN: $XLLM_CONFORMANCE names no folder that holds them")


def test_further_suites_are_copied_and_kept_up_to_date(tmp_path, monkeypatch):
    monkeypatch.setenv("XLLM_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XLLM_CONFORMANCE", str(tmp_path / "none"))
    suites_folder().mkdir(parents=True)
    assert not take_further_suites()
    monkeypatch.setenv("XLLM_CONFORMANCE", str(tmp_path / "tests"))
    for content in ("first", "second"):
        for name in FURTHER_SUITES:
            (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "tests" / name).write_text(content)
        assert take_further_suites()
        assert {(suites_folder() / name).read_text() for name in FURTHER_SUITES} == {content}
    monkeypatch.setenv("XLLM_CONFORMANCE", str(tmp_path / "none"))
    assert take_further_suites()  # those that were copied before

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""docs/models.md says what the tests have run, no more and no less."""

import models_table
import published_encoders
import published_language_models
import pytest
from command import test_published_encoders, test_published_language_models


def families(test) -> set[str]:
    """What a test is parametrised with."""
    (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")
    return set(mark.args[1])


def test_the_page_is_that_of_the_tests_that_run():
    page = models_table.PATH.read_text(encoding="utf-8")
    assert page == models_table.render(page), "write them again: PYTHONPATH=tests python tests/models_table.py"


@pytest.mark.parametrize(
    ("test", "table"),
    [
        (test_published_encoders.test_from_a_published_folder_to_an_answer, published_encoders.ENCODERS),
        (test_published_encoders.test_what_cannot_be_taken_is_one_line, published_encoders.REFUSED),
        (
            test_published_language_models.test_from_a_published_folder_to_an_answer,
            published_language_models.LANGUAGE_MODELS,
        ),
        (
            test_published_language_models.test_what_cannot_be_taken_is_one_line,
            published_language_models.REFUSED,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_row_is_of_a_test_that_runs(test, table):
    assert families(test) == set(table)
    assert not [mark.name for mark in test.pytestmark if mark.name in ("skip", "skipif", "xfail")]

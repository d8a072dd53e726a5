# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The optional packages of the demo (`pip install "xllm-transformers[demo]"`), asked for where they are needed."""

import importlib
from types import ModuleType


class MissingExtraError(ValueError):
    """A package that only the demo needs is not installed."""


def require_extra(module: str, package: str, purpose: str) -> ModuleType:
    """Import `module`, or say in one line what to install.

    Args:
        module (`str`): what is imported, e.g. `"sklearn.datasets"`.
        package (`str`): the name of the package it comes in, e.g. `"scikit-learn"`.
        purpose (`str`): what the demo takes from it, for the message.

    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"the demo takes {purpose} from {package}, which cannot be imported ({error}): "
            'pip install "xllm-transformers[demo]"'
        ) from error

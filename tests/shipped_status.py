# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The kind of media that a shipped module registers: known to some tests, unknown to those that have their own."""

import contextlib
import importlib

from xllm.modeling_xllm.converters import CONVERTERS
from xllm.processing.media_kinds import MEDIA_KINDS


@contextlib.contextmanager
def shipped_status():
    """The module of the device's status, with its kind and converter registered within."""
    module = importlib.import_module("xllm.device.device_status")
    MEDIA_KINDS["status"], CONVERTERS["fields"] = module.STATUS, module.FieldsConverter
    try:
        yield module
    finally:
        MEDIA_KINDS.pop("status")
        CONVERTERS.pop("fields")

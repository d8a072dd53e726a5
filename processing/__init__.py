# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Tokenizer, feature extractors, media decoding, processor. The files here go to the Hub as remote code: flat."""

from xllm.auto import register


register()

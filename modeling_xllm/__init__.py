# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Configurations and models. The files here go to the Hub as remote code: flat, importing only siblings."""

from xllm.auto import register


register()

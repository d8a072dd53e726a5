# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The embedded world of `xllm demo`: scanned digits, synthesised voices, a tiny language model with text skills."""

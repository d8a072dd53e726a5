# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Published weight files and folders under our names; not part of a checkpoint's code."""

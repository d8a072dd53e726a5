# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Model and processor together: opening a checkpoint, composing one, making a tiny one."""

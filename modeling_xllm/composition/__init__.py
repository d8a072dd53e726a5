# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""New models from published towers; not part of a checkpoint's code."""

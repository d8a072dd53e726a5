# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Data that are never read whole: their order over ranks and workers, and where they go on."""

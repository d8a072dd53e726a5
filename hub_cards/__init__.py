# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Model and data cards, publishing. Nothing is published yet: stage checkpoints are local folders."""

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Samples to batches: what is drawn together, which answers carry loss, the collator."""

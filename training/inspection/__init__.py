# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Looks at data, a recipe or a run: check, explain, estimate, report."""

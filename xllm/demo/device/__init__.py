# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The demo's second world: a phone whose status is read, and which does what it is told."""

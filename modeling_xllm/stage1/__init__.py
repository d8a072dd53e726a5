# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""First-stage models of the interfaces, with the heads that are thrown away; not part of a checkpoint's code."""

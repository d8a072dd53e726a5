# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a run leaves behind, and goes on from: checkpoints, folders, signals, lineage."""

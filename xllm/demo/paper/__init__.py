# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The paper's questions, asked by experiment in the demo's world: `xllm ablate --paper`."""

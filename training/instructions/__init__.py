# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Instruction data made from captions, transcripts and dialogues (`xllm build-instructions`)."""

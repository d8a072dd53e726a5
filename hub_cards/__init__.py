# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Model cards, the code beside a checkpoint, and publishing on the Hub."""

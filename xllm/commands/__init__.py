# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One module per command of `xllm`: `add_parser(subparsers)` declares it, `run(args)` does it."""

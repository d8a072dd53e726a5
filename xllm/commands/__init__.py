# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One module per command of `xllm`: its docstring says what it does, `add_arguments(parser)` declares it,
`run(args)` does it, and returns the exit status if that is not 0."""

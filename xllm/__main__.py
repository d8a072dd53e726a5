# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`python -m xllm` is the `xllm` command."""

import sys

from xllm.cli import main


sys.exit(main())

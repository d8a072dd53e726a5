# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""An OpenAI-compatible server for X-LLM, on FastAPI (`xllm serve`, docs/serving.md).

guard -> app -> service (media are fetched and decoded, in threads) -> engine (one thread: prompts join, answers
leave) -> replies
"""

from xllm.serving.app import create_app
from xllm.serving.limits import Limits
from xllm.serving.media_access import MediaAccess
from xllm.serving.service import Service


__all__ = ["Limits", "MediaAccess", "Service", "create_app"]

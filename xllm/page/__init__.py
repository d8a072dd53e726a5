# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A page in the browser, on Gradio (`xllm page`, docs/page.md): `page_app` serves a page per language behind a guard,
`chat_page` is the conversation, `talk` what one tab said, `looks` what the model heard and saw."""

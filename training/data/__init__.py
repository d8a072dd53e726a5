# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Data as they are to samples and a dataset: files, rows, media, augmentation."""

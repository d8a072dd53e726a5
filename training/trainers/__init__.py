# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The HF Trainer with what a stage needs: guards, watching, distillation, several processes."""

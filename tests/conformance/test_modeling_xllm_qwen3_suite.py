# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' suites of models, of generation and of export on X-LLM over Qwen3, whose head is its embedding."""

import unittest

from conformance.adapted import AdaptedXLLMTests
from conformance.xllm_testers import XLLMTester


class XLLMOverTiedQwen3ModelTest(AdaptedXLLMTests, unittest.TestCase):
    def setUp(self):
        self.model_tester = XLLMTester(self, "qwen3", tied=True)

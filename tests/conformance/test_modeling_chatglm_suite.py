# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' suites of models, of generation and of export on ChatGLM."""

import unittest

from conformance.adapted import AdaptedTests
from conformance.xllm_testers import ChatGLMTester

from xllm import ChatGLMForConditionalGeneration, ChatGLMModel


class ChatGLMModelTest(AdaptedTests, unittest.TestCase):
    all_model_classes = (ChatGLMModel, ChatGLMForConditionalGeneration)

    def setUp(self):
        self.model_tester = ChatGLMTester(self)

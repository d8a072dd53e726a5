# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' `ModelTesterMixin` on ChatGLM."""

import unittest

from conformance.suites import import_suite
from conformance.xllm_testers import ChatGLMTester

from xllm import ChatGLMForConditionalGeneration, ChatGLMModel


suite = import_suite("test_modeling_common")


class ChatGLMModelTest(suite.ModelTesterMixin, suite.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (ChatGLMModel, ChatGLMForConditionalGeneration)
    test_can_init_all_missing_weights_before_2023 = True

    def setUp(self):
        self.model_tester = ChatGLMTester(self)

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' `ModelTesterMixin` on X-LLM over Llama, for any other family."""

import unittest

from conformance.suites import import_suite
from conformance.xllm_testers import XLLMTester

from xllm import XLLMForConditionalGeneration, XLLMModel


suite = import_suite("test_modeling_common")


class XLLMOverLlamaModelTest(suite.ModelTesterMixin, suite.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (XLLMModel, XLLMForConditionalGeneration)
    test_can_init_all_missing_weights_before_2023 = True
    additional_model_inputs = ["pixel_values", "pixel_values_videos", "input_features", "input_features_mask"]
    _is_composite = True

    def setUp(self):
        self.model_tester = XLLMTester(self, "llama")

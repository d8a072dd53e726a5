# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' `ConfigTester` on every config of this package."""

import unittest

import pytest
from conformance.suites import import_suite
from conformance.xllm_testers import ChatGLMTester, XLLMTester

from xllm import ChatGLMConfig, X2LConfig, XLLMConfig
from xllm.modeling_xllm.configuration_cformer import CFormerConfig
from xllm.modeling_xllm.stage1.configuration_qformer_pretraining import QFormerPreTrainingConfig
from xllm.modeling_xllm.stage1.configuration_speech_recognition import SpeechRecognitionConfig


suite = import_suite("test_configuration_common")
NO_TEXT = {"has_text_modality": False}
# Config class, how the suite sees it, arguments other than the defaults.
CONFIGS = [
    (XLLMConfig, NO_TEXT, {"image_token_id": 7, "initializer_range": 0.01}),
    (ChatGLMConfig, {}, {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 150528}),
    (X2LConfig, {**NO_TEXT, "common_properties": ["encoder"]}, {"num_query_tokens": 4}),
    (CFormerConfig, NO_TEXT, {"hidden_size": 24, "cif_hidden_size": 16}),
    (QFormerPreTrainingConfig, NO_TEXT, {"projection_size": 8}),
    (SpeechRecognitionConfig, {}, {"vocab_size": 50, "ctc_weight": 0.3}),
]


class Parent(unittest.TestCase):
    """What `ConfigTester` asks of the test case that holds it."""

    def __init__(self, model_tester=None):
        super().__init__()
        self.model_tester = model_tester


class RowTester(suite.ConfigTester):
    """A row of the modality table refuses fields that it does not know, and has no labels to count."""

    def create_and_test_config_with_num_labels(self):
        with pytest.raises(ValueError, match="no field 'num_labels'"):
            super().create_and_test_config_with_num_labels()


@pytest.mark.parametrize(("config_class", "options", "arguments"), CONFIGS, ids=[row[0].__name__ for row in CONFIGS])
def test_config(config_class, options, arguments):
    testers = {XLLMConfig: lambda: XLLMTester(None, "chatglm"), ChatGLMConfig: lambda: ChatGLMTester(None)}
    tester = testers[config_class]() if config_class in testers else None
    config_tester = RowTester if config_class is X2LConfig else suite.ConfigTester
    config_tester(Parent(tester), config_class=config_class, **options, **arguments).run_common_tests()

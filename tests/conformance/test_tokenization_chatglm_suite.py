# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""transformers' tokenizer suite and its sentencepiece part on ChatGLM's tokenizer, with a small vocabulary."""

import tempfile
import unittest

from conformance.suites import import_suite
from conformance.xllm_testers import SENTENCES, small_tokenizer

from xllm import ChatGLMTokenizer


common = import_suite("test_tokenization_common")
sentencepiece_part = import_suite("test_sentencepiece_backend_mixin")


class ChatGLMTokenizerTest(
    common.TokenizerTesterMixin, sentencepiece_part.SentencePieceBackendTesterMixin, unittest.TestCase
):
    tokenizer_class = ChatGLMTokenizer
    from_pretrained_kwargs = {}
    test_sentencepiece = True
    test_seq2seq = False
    test_tokenizer_from_extractor = False

    @classmethod
    def setUpClass(cls):
        cls.tmpdirname = tempfile.mkdtemp()
        small_tokenizer(cls.tmpdirname).save_pretrained(cls.tmpdirname)
        cls.from_pretrained_id = [cls.tmpdirname]
        cls.tokenizers_list = [(ChatGLMTokenizer, cls.tmpdirname, {})]
        cls._data = "\n".join(SENTENCES)

    @classmethod
    def get_tokenizer(cls, pretrained_name=None, **kwargs):
        return ChatGLMTokenizer.from_pretrained(pretrained_name or cls.tmpdirname, **kwargs)

    def get_tokenizers(self, fast=False, **kwargs):
        return [self.get_tokenizer(**kwargs)]

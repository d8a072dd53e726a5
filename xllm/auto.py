# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Makes X-LLM and ChatGLM known to transformers' Auto classes; importing this module does it, without importing torch.

transformers finds a class of its own by name, in the module `transformers.models.<model type>`. The names are put into
its tables, and `auto_classes` stands in for that module: asked for the first class, it registers all of them.
"""

import importlib.util
import sys

from transformers.models.auto import auto_mappings

from xllm import auto_classes


AUTO = "transformers.models.auto"
TOKENIZERS = f"{AUTO}.tokenization_auto"


class TokenizerNames:
    """Puts the tokenizer's name into a table of transformers as soon as that is imported, which imports torch too.

    The key is no model type: for those, transformers would prefer the tokenizer's code in a checkpoint's repository.
    """

    def find_spec(self, name, path=None, target=None):
        """As a finder of `sys.meta_path`, of one module, once."""
        if name != TOKENIZERS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            module.TOKENIZER_MAPPING_NAMES["xllm_tokenizer"] = "ChatGLMTokenizer"

        spec.loader.exec_module = exec_module
        return spec


auto_mappings.CONFIG_MAPPING_NAMES.update(chatglm="ChatGLMConfig", xllm="XLLMConfig")
auto_mappings.FEATURE_EXTRACTOR_MAPPING_NAMES["xllm"] = "XLLMFeatureExtractor"
auto_mappings.PROCESSOR_MAPPING_NAMES["xllm"] = "XLLMProcessor"
auto_mappings.VIDEO_PROCESSOR_MAPPING_NAMES["xllm"] = {"torchvision": "XLLMVideoProcessor"}
for name in ("chatglm", "xllm", "xllm_tokenizer"):
    sys.modules[f"transformers.models.{name}"] = auto_classes
if f"{AUTO}.configuration_auto" in sys.modules:  # the tables have been read, and torch is there
    auto_classes.register()
else:
    sys.meta_path.insert(0, TokenizerNames())

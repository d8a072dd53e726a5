# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Makes X-LLM and ChatGLM known to transformers' Auto classes; importing this module does it, without importing torch.

transformers finds a class of its own by name, in the module `transformers.models.<model type>`. The names are put into
its tables, and this module stands in for that one: asked for the first class, it registers all of them.
Deviation from transformers' habit: `AutoModel` gives the class that can generate, as the repositories of ChatGLM,
InternVL and MiniCPM do, because `AutoModel.from_pretrained` is what this model's users type.
"""

import importlib.util
import sys

from transformers.models.auto import auto_mappings

import xllm


AUTO = "transformers.models.auto"
TOKENIZERS = f"{AUTO}.tokenization_auto"
_is_registered = False


def __getattr__(name: str):
    if name not in xllm.public_names():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    register()
    return getattr(xllm, name)


def register() -> None:
    """Registers every class, once. `modeling_xllm` and `processing` call it when any module of theirs is imported."""
    global _is_registered
    if _is_registered:
        return
    _is_registered = True  # before the imports: they come here again
    import transformers as hf
    from transformers.models.auto import modeling_auto, tokenization_auto

    from xllm.modeling_xllm.stage_checkpoints import StageCheckpointMixin

    hf.AutoConfig.register("chatglm", xllm.ChatGLMConfig, exist_ok=True)
    hf.AutoConfig.register("xllm", xllm.XLLMConfig, exist_ok=True)
    hf.AutoFeatureExtractor.register(xllm.XLLMConfig, xllm.XLLMFeatureExtractor, exist_ok=True)
    hf.AutoVideoProcessor.register(xllm.XLLMConfig, xllm.XLLMVideoProcessor, exist_ok=True)
    hf.AutoProcessor.register(xllm.XLLMConfig, xllm.XLLMProcessor, exist_ok=True)
    for text_class in (hf.AutoModel, hf.AutoModelForCausalLM):
        text_class.register(xllm.ChatGLMConfig, xllm.ChatGLMForConditionalGeneration, exist_ok=True)
    for auto_class in (hf.AutoModel, hf.AutoModelForMultimodalLM, hf.AutoModelForImageTextToText):
        auto_class.register(xllm.XLLMConfig, xllm.XLLMForConditionalGeneration, exist_ok=True)
    # By name rather than by config: with a config, transformers would prefer the code in THUDM's repositories.
    tokenization_auto.REGISTERED_TOKENIZER_CLASSES["ChatGLMTokenizer"] = xllm.ChatGLMTokenizer
    # Pipelines, `transformers serve` and the Trainer's loss look classes up by name in these tables.
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES["xllm"] = "XLLMForConditionalGeneration"
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["xllm"] = "XLLMForConditionalGeneration"
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["chatglm"] = "ChatGLMForConditionalGeneration"
    for saved_class in (StageCheckpointMixin, xllm.XLLMProcessor):
        saved_class.after_saving = staticmethod(_copy_user_modules)


def _copy_user_modules(folder) -> None:
    # Its module imports what is registered here, and may be the first that is imported.
    importlib.import_module("xllm.assembly.module_copies").copy_user_modules(folder)


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
    sys.modules[f"transformers.models.{name}"] = sys.modules[__name__]
if f"{AUTO}.configuration_auto" in sys.modules:  # the tables have been read, and torch is there
    register()
else:
    sys.meta_path.insert(0, TokenizerNames())

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A word tokenizer whose ids can be read by eye, and a small processor around it."""

from tiny import tiny_config
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import BlipImageProcessor, PreTrainedTokenizerFast

from xllm.assembly.processors import add_tokens, build_processor
from xllm.processing.feature_extraction_xllm import XLLMFeatureExtractor
from xllm.processing.processing_xllm import XLLMProcessor, add_placeholder_tokens
from xllm.processing.video_processing_xllm import XLLMVideoProcessor


WORDS = ("<pad>", "<unk>", "<eos>", "what", "is", "this", "user", "assistant", "a", "cat")
PAD, UNK, EOS, WHAT, IS, THIS, USER, ASSISTANT, A, CAT = range(10)
IMAGE, VIDEO, SPEECH = 10, 11, 12


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Ten words; anything else is `<unk>`."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def placeholder_tokenizer() -> PreTrainedTokenizerFast:
    """The same with the three placeholders as ids 10, 11, 12."""
    tokenizer = word_tokenizer()
    add_placeholder_tokens(tokenizer, vocab_size=16)
    return tokenizer


def small_processor(**kwargs) -> XLLMProcessor:
    """Pictures of 16 x 16, 2 query tokens per picture, one placeholder per 8 mel frames."""
    size = {"height": 16, "width": 16}
    return XLLMProcessor(
        image_processor=BlipImageProcessor(size=size),
        video_processor=XLLMVideoProcessor(size=size),
        feature_extractor=XLLMFeatureExtractor(),
        tokenizer=placeholder_tokenizer(),
        num_query_tokens=2,
        **kwargs,
    )


def tokenizer_of(template, special, **fields):
    """Bytes as tokens, with special tokens; no padding token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **{"eos_token": special[0], **fields})
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def composed(template, special, llm="llama", **fields):
    """(config, processor) over a Llama, or an LLM of another family."""
    config = tiny_config(llm)
    config.text_config.update({"vocab_size": 320, "max_position_embeddings": 2048})
    for row in config.modalities.values():
        row.token_id = None
    tokenizer = tokenizer_of(template, special, **fields)
    add_tokens(config, tokenizer)
    return config, build_processor(config, tokenizer, 28)

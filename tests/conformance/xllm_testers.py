# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Tiny models and batches in the form that transformers' `ModelTesterMixin` asks for."""

import torch
from tiny import FACTOR, FRAMES, PIXELS, QUERIES, speech, tiny_config, tiny_text_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from xllm import ChatGLMConfig, ChatGLMTokenizer, XLLMConfig
from xllm.assembly.tiny import train_sentencepiece
from xllm.processing.processing_xllm import add_placeholder_tokens


# The suites fill rows up with ids below 5, which must be words, and cut the last 15 ids off the vocabulary.
PAD, MASK, GMASK, SOP, EOP, IMAGE, VIDEO, SPEECH = range(5, 13)
FIRST_WORD, LAST_WORD = 20, 100
CLIP_FRAMES = 3 * FACTOR

SENTENCES = [
    "This is text to test the tokenizer.",
    "low l l l l lower newer This is a test Hello hi there Hey how are you doing",
    "I was born in 92000 , and this is falsé . 生活的真谛是 The following string should be properly encoded",
    "Testing batch inputs without padding, unicode é ปี ird ด",
]


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte and the placeholders; what it decodes is exactly what it was given."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(["<pad>", *alphabet])}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    add_placeholder_tokens(tokenizer, vocab_size=len(tokenizer) + 3)
    return tokenizer


def small_tokenizer(folder: str) -> ChatGLMTokenizer:
    """A ChatGLM tokenizer of some 160 pieces; its vocabulary file is written to `folder`."""
    vocab_file = train_sentencepiece(SENTENCES, folder, 160, byte_fallback=True, max_blank_length=80)
    return ChatGLMTokenizer(str(vocab_file))


def with_low_ids(config):
    """`config` of a tiny language model with the special tokens above."""
    config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, SOP, EOP
    if isinstance(config, ChatGLMConfig):
        config.mask_token_id, config.gmask_token_id = MASK, GMASK
    return config


class ChatGLMTester:
    """Seven rows of a prompt and an answer for ChatGLM; `batch_size` 7 is the number of rows the suites ask for."""

    batch_size = 7
    is_training = True
    num_hidden_layers = 2
    num_attention_heads = 4
    hidden_size = 32
    vocab_size = 120

    def __init__(self, parent):
        self.parent = parent
        self.seq_length = len(self.row(torch.Generator()))

    def row(self, generator: torch.Generator) -> list[int]:
        """Token ids of one row: words, `[gMASK] <sop>`, an answer."""
        config = self.get_config().get_text_config()
        words = torch.randint(FIRST_WORD, LAST_WORD, (9,), generator=generator).tolist()
        return [*words[:6], *self.ending(config), *words[6:]]

    @staticmethod
    def ending(config) -> list[int]:
        """What a ChatGLM prompt must end with; nothing for other language models."""
        return [config.gmask_token_id, config.bos_token_id] if isinstance(config, ChatGLMConfig) else []

    def get_config(self) -> ChatGLMConfig:
        """A fresh config."""
        return with_low_ids(tiny_text_config("chatglm"))

    def prepare_config_and_inputs_for_common(self) -> tuple:
        """A config and one batch."""
        generator = torch.Generator().manual_seed(0)
        input_ids = torch.tensor([self.row(generator) for _ in range(self.batch_size)])
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class XLLMTester(ChatGLMTester):
    """Rows with an image, a video and a spoken clip each."""

    def __init__(self, parent, text: str):
        self.text = text
        config = self.get_config()
        self.vision_config, self.audio_config = config.vision_config.to_dict(), config.audio_config.to_dict()
        super().__init__(parent)

    def get_config(self) -> XLLMConfig:
        """A fresh config."""
        config = tiny_config(self.text)
        with_low_ids(config.text_config)
        config.set_token_ids(image=IMAGE, video=VIDEO, speech=SPEECH)
        return config

    def row(self, generator: torch.Generator) -> list[int]:
        """Words, the placeholders of an image, a video and a clip, words, the end of the prompt, an answer."""
        words = torch.randint(FIRST_WORD, LAST_WORD, (9,), generator=generator).tolist()
        media = [IMAGE] * QUERIES + [VIDEO] * (QUERIES * FRAMES) + [SPEECH] * (CLIP_FRAMES // FACTOR)
        return [*words[:3], *media, *words[3:6], *self.ending(self.get_config().text_config), *words[6:]]

    def prepare_config_and_inputs_for_common(self) -> tuple:
        """A config and one batch."""
        config, inputs = super().prepare_config_and_inputs_for_common()
        generator = torch.Generator().manual_seed(1)
        shape = (3, PIXELS, PIXELS)
        return config, {
            **inputs,
            "pixel_values": torch.randn(self.batch_size, *shape, generator=generator),
            "pixel_values_videos": torch.randn(self.batch_size, FRAMES, *shape, generator=generator),
            **speech(*[CLIP_FRAMES] * self.batch_size),
        }

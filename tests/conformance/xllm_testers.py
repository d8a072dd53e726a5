# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Tiny models and batches in the form that transformers' `ModelTesterMixin` asks for."""

import torch
from tiny import FACTOR, FRAMES, PIXELS, QUERIES, speech, tiny_config, tiny_rows, tiny_text_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm import ChatGLMConfig, ChatGLMTokenizer, X2LConfig, XLLMConfig
from xllm.assembly.tiny import train_sentencepiece
from xllm.processing.processing_xllm import add_placeholder_tokens


# The suites fill rows up with ids below 5, which must be words, and cut the last 15 ids off the vocabulary.
PAD, MASK, GMASK, SOP, EOP, IMAGE, VIDEO, SPEECH, STATUS = range(5, 14)
FIRST_WORD, LAST_WORD = 20, 100
CLIP_FRAMES, READINGS = 3 * FACTOR, 12

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
    """Rows with an image, a video, a spoken clip and a status each; every second film lacks its last frame. Towers,
    language model and interfaces have other widths and depths.

    Args:
        text: kind of the language model; tied: whether its head is its embedding.
    """

    media_names = (
        "pixel_values", "pixel_values_videos", "video_frame_mask", "input_features", "input_features_mask",
        "status_values", "status_mask",
    )  # fmt: skip

    def __init__(self, parent, text: str, tied: bool = False):
        self.text, self.tied = text, tied
        config = self.get_config()
        self.vision_config = self.video_config = config.vision_config.to_dict()
        self.audio_config = config.audio_config.to_dict()
        super().__init__(parent)

    def get_config(self) -> XLLMConfig:
        """A fresh config."""
        status = X2LConfig(
            encoder=None, encoder_hidden_size=READINGS, input_name="status_values", mask_name="status_mask",
            converter="linear", placeholder_token="<StatusHere>",
        )  # fmt: skip
        vision = Blip2VisionConfig(
            hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=3, image_size=PIXELS,
            patch_size=14, initializer_range=0.02,
        )  # fmt: skip
        text = with_low_ids(tiny_text_config(self.text))
        text.tie_word_embeddings = self.tied
        rows = tiny_rows(status=status)
        config = tiny_config(rows=rows, text_config=text, vision_config=vision, tie_word_embeddings=self.tied)
        config.set_token_ids(image=IMAGE, video=VIDEO, speech=SPEECH, status=STATUS)
        return config

    def row(self, generator: torch.Generator, frames: int = FRAMES) -> list[int]:
        """Words, the placeholders of all media, words, the end of the prompt, an answer."""
        words = torch.randint(FIRST_WORD, LAST_WORD, (9 + QUERIES * FRAMES,), generator=generator).tolist()
        media = [IMAGE] * QUERIES + [VIDEO] * (QUERIES * frames) + [SPEECH] * (CLIP_FRAMES // FACTOR) + [STATUS] * 2
        media += words[9 : 9 + QUERIES * (FRAMES - frames)]
        return [*words[:3], *media, *words[3:6], *self.ending(self.get_config().text_config), *words[6:9]]

    def prepare_config_and_inputs_for_common(self) -> tuple:
        """A config and one batch."""
        config, inputs = super().prepare_config_and_inputs_for_common()
        generator = torch.Generator().manual_seed(1)
        shape, frame_mask = (3, PIXELS, PIXELS), torch.ones(self.batch_size, FRAMES, dtype=torch.long)
        frame_mask[1::2, -1] = 0
        rows = [self.row(generator, int(frames)) for frames in frame_mask.sum(1)]
        media = (
            torch.randn(self.batch_size, *shape, generator=generator),
            torch.randn(self.batch_size, FRAMES, *shape, generator=generator),
            frame_mask,
            *speech(*[CLIP_FRAMES, CLIP_FRAMES - 5] * self.batch_size).values(),
            torch.randn(self.batch_size, 2, READINGS, generator=generator),
            torch.ones(self.batch_size, 2, dtype=torch.long),
        )
        media = {name: tensor[: self.batch_size] for name, tensor in zip(self.media_names, media)}
        return config, {**inputs, "input_ids": torch.tensor(rows), **media}

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Small models with random weights around a ChatGLM, and their vocabularies: `--preset tiny`, demo, and `init:`."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import ParakeetEncoderConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig

from xllm.assembly.composing import added_rows, read_from, sized_modalities, transformer_sizes
from xllm.assembly.processors import add_tokens, build_processor, save
from xllm.modeling_xllm.configuration_xllm import X2LConfig, XLLMConfig, default_modalities
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.processing.tokenization_chatglm import ChatGLMTokenizer, append_pieces


PIXELS = 32
# What sentencepiece is told beside the text. Every character is kept; the published model seems to write full-width
# punctuation half-width ("nmt_nfkc"), which its `chat` turned back.
PUBLISHED: dict[str, Any] = {
    "split_digits": True, "normalization_rule_name": "identity", "bos_id": 1, "eos_id": 2, "pad_id": 3,
    "user_defined_symbols": ["<n>"],
}  # fmt: skip
TINY: dict[str, Any] = {**transformer_sizes(64, 2), "intermediate_size": 128}
WRAPPER_PIECES = ("<Image>", "</Image>", "<Video>", "</Video>", "<Speech>", "</Speech>")
SENTENCES = ("What is this?", "What do you see and hear?", "这是什么？", "请识别该语音", "图片里有什么")


def build_tiny(output_dir: str | Path, kinds: Sequence[str] = ()) -> Path:
    """A tiny ChatGLM with tiny towers and interfaces, all weights random: every command runs on it in seconds.

    Its vocabulary is that of a few sentences; it knows nothing until it is trained. It has the paper's rows, and one
    for each of `kinds`.
    """
    rows, output_dir = added_rows(kinds, TINY), Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    sentences = [*SENTENCES, " ".join("0123456789"), *map(chr, range(33, 127))]
    tokenizer = ChatGLMTokenizer(str(train_sentencepiece(sentences, output_dir, vocab_size=256, byte_fallback=True)))
    config = tiny_config(tokenizer, rows)
    processor = build_processor(config, tokenizer, PIXELS, readers=read_from(kinds))
    save(XLLMForConditionalGeneration(config), processor, output_dir)
    return output_dir


def tiny_config(tokenizer: ChatGLMTokenizer, added: dict[str, X2LConfig] | None = None) -> XLLMConfig:
    """Sizes of the tiny preset, with the ids of `tokenizer`, which gets placeholders for the rows that are added."""
    sizes: dict[str, Any] = TINY
    rows = sized_modalities(sizes)
    hearing = ParakeetEncoderConfig(subsampling_conv_channels=32, layerdrop=0.0, **sizes)
    towers = {row.encoder for row in (added or {}).values()} - {None, *(row.encoder for row in rows.values())}
    for row in rows.values():
        if row.tokens_per_item is not None:
            row.num_query_tokens = 4
        own: Any = row.converter_config
        if hasattr(own, "cif_hidden_size"):
            own.cif_hidden_size = 64
    return small_config(
        tokenizer,
        text={"max_position_embeddings": 1024, **sizes},
        rows={**rows, **(added or {})},
        vision_config=Blip2VisionConfig(image_size=PIXELS, patch_size=8, initializer_range=0.02, **sizes),
        audio_config=hearing,
        extra_encoders=dict.fromkeys(sorted(map(str, towers)), hearing),
    )


def small_config(
    tokenizer: ChatGLMTokenizer, text: dict[str, Any], rows: dict[str, Any], multiple: int = 64, **fields: Any
) -> XLLMConfig:
    """The config of a small model around a ChatGLM that reads `tokenizer`: sizes are given, ids are filled in.

    Args:
        text: sizes of the language model; its vocabulary is rounded up to a `multiple`.
        rows: see `sized_rows`.
        fields: of `XLLMConfig`, the towers' configs among them.
    """
    ids = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("mask", "gmask", "bos", "eos", "pad")
    }
    table = sized_rows(rows)
    added = len(table.keys() - default_modalities().keys())  # rows whose placeholders the tokenizer still lacks
    size = -(-(len(tokenizer) + added) // multiple) * multiple
    config = XLLMConfig(
        text_config={"model_type": "chatglm", "vocab_size": size, **ids, **text}, modalities=table, **fields
    )
    add_tokens(config, tokenizer)
    return config


def sized_rows(rows: dict[str, Any]) -> dict[str, X2LConfig]:
    """A table of modalities: the paper's rows, given by the fields that differ (sizes, say), and whole rows."""
    paper = {name: {**row.to_dict(), "converter_config": None} for name, row in default_modalities().items()}
    return {
        name: row if isinstance(row, X2LConfig) else X2LConfig(**{**paper.get(name, {}), **row})
        for name, row in rows.items()
    }


def train_sentencepiece(
    sentences: Iterable[str],
    path: str | Path,
    vocab_size: int = 256,
    *,
    word_level: bool = False,
    byte_fallback: bool = False,
    max_blank_length: int = 8,
    user_defined_symbols: tuple[str, ...] = WRAPPER_PIECES,
) -> Path:
    """Train a vocabulary and write it as `ice_text.model`; the same sentences give the same file.

    Ids as published: `<unk>` 0, `<s>` 1, `</s>` 2, `<pad>` 3, `<n>` 4, the text pieces, then `[MASK]`, `[gMASK]`,
    `[sMASK]`, `<unused_0>`, `<sop>`, `<eop>`, `<ENC>`, `<dBLOCK>`, `<|tab|>`, `<|blank_2|>`.., wrappers, words, bytes.

    Args:
        sentences: the text to learn from; every character of it is in the vocabulary.
        path: the file to write, or a folder, which gets an `ice_text.model`.
        vocab_size: most text pieces to learn (fewer where the text has fewer); at least its characters.
        word_level: each word of the sentences (between spaces) becomes one token, each digit too.
        byte_fallback, max_blank_length, user_defined_symbols: as in `append_pieces`.

    Returns:
        the file written.

    Raises:
        ValueError: no sentence, or fewer pieces than characters.
    """
    sentences, path = [sentence for sentence in sentences if sentence.strip()], Path(path)
    if not sentences:
        raise ValueError("sentences: got none with text, expected at least one")
    characters = set("".join(sentences)) - {" ", "\n", "\t"}
    if vocab_size < len(characters) + 6:
        raise ValueError(
            f"vocab_size: got {vocab_size}, expected at least {len(characters) + 6} (the text has {len(characters)} "
            "characters, and 6 pieces are fixed)"
        )
    trained = train_text_pieces(sentences, vocab_size, **PUBLISHED)
    model = sentencepiece.SentencePieceProcessor(model_proto=trained)
    proto = append_pieces(
        trained,
        user_defined=user_defined_symbols,
        normal=_word_pieces(sentences, model, user_defined_symbols) if word_level else (),
        byte_fallback=byte_fallback,
        max_blank_length=max_blank_length,
    )
    path = path / "ice_text.model" if path.is_dir() else path
    path.write_bytes(proto)
    return path


def train_text_pieces(sentences: list[str], vocab_size: int, **options: Any) -> bytes:
    """A plain sentencepiece model, without ChatGLM's pieces; `options` are sentencepiece's."""
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=trained,
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        unk_id=0,
        pad_piece="<pad>",
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return trained.getvalue()


def _word_pieces(
    sentences: list[str], model: sentencepiece.SentencePieceProcessor, taken: tuple[str, ...]
) -> tuple[str, ...]:
    """Pieces that make each word one token, behind a space ("▁seven") and elsewhere ("seven"), in a fixed order."""
    long = {word for sentence in sentences for word in sentence.split() if not word.isdigit()} - set(taken)
    words = sorted(long | {character for character in "".join(sentences) if character.isdigit()})
    pieces = [piece for word in words for piece in ("▁" + word, word)]
    return tuple(piece for piece in pieces if model.id_to_piece(model.piece_to_id(piece)) != piece)

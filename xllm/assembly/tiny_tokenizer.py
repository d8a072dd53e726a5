# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Trains small sentencepiece models of the same kind as ChatGLM's `ice_text.model`, for tiny models and tests."""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from xllm.processing.tokenization_chatglm import append_pieces


WRAPPER_PIECES = ("<Image>", "</Image>", "<Video>", "</Video>", "<Speech>", "</Speech>")


def train_sentencepiece(
    sentences: Iterable[str],
    path: str | Path,
    vocab_size: int = 256,
    *,
    model_type: str = "unigram",
    word_level: bool = False,
    byte_fallback: bool = False,
    max_blank_length: int = 8,
    normalization: str = "identity",
    user_defined_symbols: tuple[str, ...] = WRAPPER_PIECES,
) -> Path:
    """Train a vocabulary and write it as `ice_text.model`; the same sentences give the same file.

    Ids as published: `<unk>` 0, `<s>` 1, `</s>` 2, `<pad>` 3, `<n>` 4, the text pieces, then `[MASK]`, `[gMASK]`,
    `[sMASK]`, `<unused_0>`, `<sop>`, `<eop>`, `<ENC>`, `<dBLOCK>`, `<|tab|>`, `<|blank_2|>`.., wrappers, words, bytes.

    Args:
        sentences: the text to learn from; every character of it is in the vocabulary.
        path: the file to write, or a folder, which gets an `ice_text.model`.
        vocab_size: most text pieces to learn (fewer where the text has fewer); at least its characters.
        model_type: "unigram" or "bpe".
        word_level: each word of the sentences (between spaces) becomes one token, each digit too. Unigram only.
        byte_fallback, max_blank_length, user_defined_symbols: as in `append_pieces`.
        normalization: sentencepiece's rule; "nmt_nfkc" writes full-width punctuation half-width, as the published
            model seems to (its `chat` turned it back); "identity" keeps every character.

    Returns:
        the file written.

    Raises:
        ValueError: no sentence, a model type that cannot do it, or fewer pieces than characters.
    """
    sentences, path = [sentence for sentence in sentences if sentence.strip()], Path(path)
    if not sentences:
        raise ValueError("sentences: got none with text, expected at least one")
    if model_type not in ("unigram", "bpe") or (word_level and model_type != "unigram"):
        raise ValueError(f"model_type: got {model_type!r}, expected 'unigram'" + ("" if word_level else " or 'bpe'"))
    characters = set("".join(sentences)) - {" ", "\n", "\t"}
    if vocab_size < len(characters) + 6:
        raise ValueError(
            f"vocab_size: got {vocab_size}, expected at least {len(characters) + 6} (the text has {len(characters)} "
            "characters, and 6 pieces are fixed)"
        )
    trained = train_text_pieces(
        sentences, vocab_size, model_type=model_type, split_digits=True, normalization_rule_name=normalization,
        bos_id=1, eos_id=2, pad_id=3, user_defined_symbols=["<n>"],
    )  # fmt: skip
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
    words = {word for sentence in sentences for word in sentence.split() if not word.isdigit()} - set(taken)
    words = sorted(words | {character for character in "".join(sentences) if character.isdigit()})
    pieces = [piece for word in words for piece in ("▁" + word, word)]
    return tuple(piece for piece in pieces if model.id_to_piece(model.piece_to_id(piece)) != piece)


__all__ = ["WRAPPER_PIECES", "train_sentencepiece", "train_text_pieces"]

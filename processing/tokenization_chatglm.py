# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""ChatGLM-6B's tokenizer (sentencepiece, `ice_text.model`) and its chat format, with X-LLM's media placeholders.

As published: line breaks, tabs and runs of 2..80 spaces become pieces of their own, ids of text pieces are shifted by
`num_image_tokens` (20000 in the first release, 0 later), a prompt ends with `[gMASK]<sop>`, padding is on the left.

Deviations: the attention mask is `(batch, length)` with 1 = real and no `position_ids` are returned (the model makes
them); the text "[gMASK]" is always the special token, so that a chat template can write it; nothing is appended to a
prompt that holds `<sop>` already. Placeholder tokens take the first ids after the vocabulary, which the embedding
matrix has to spare.
"""

import os
import re
from typing import Any

import sentencepiece
from transformers import AddedToken
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend


# Pieces behind the text pieces, in their published order; the first release of ice_text.model lacks them all.
SPECIAL_PIECES = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
MAX_BLANK_LENGTH = 80
PLACEHOLDERS = {"image_token": "<ImageHere>", "video_token": "<VideoHere>", "audio_token": "<SpeechHere>"}

# One question is written bare, several as rounds counted from 0: what the `chat` of the April 2023 code did, and what
# X-LLM was trained on. Media stand before all text, whatever round they came in, as in the authors' code. Only the
# last answer is generated text: earlier ones are part of the prefix and see what follows them. Its loss starts at
# `<sop>`, as published.
CHATGLM_CHAT_TEMPLATE = (
    "{%- set image = '<Image>' ~ (image_token | default('<ImageHere>')) ~ '</Image>' -%}"
    "{%- set video = '<Video>' ~ (video_token | default('<VideoHere>')) ~ '</Video>' -%}"
    "{%- set audio = '<Speech>' ~ (audio_token | default('<SpeechHere>')) ~ '</Speech>' -%}"
    "{%- set media = media_parts | default({'image': image, 'video': video, 'audio': audio, 'speech': audio}) -%}"
    "{%- macro text_of(content) -%}"
    "{%- if content is string -%}{{- content -}}{%- else -%}"
    "{%- for part in content if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}"
    "{%- endif -%}{%- endmacro -%}"
    "{%- for message in messages if message['content'] is not string -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] in media -%}{{- media[part['type']] -}}"
    "{%- elif part['type'] != 'text' -%}"
    "{{- raise_exception('content part of type ' ~ part['type'] ~ ': expected text, ' ~ (media | join(', '))) -}}"
    "{%- endif -%}{%- endfor -%}{%- endfor -%}"
    "{%- set questions = messages | selectattr('role', 'equalto', 'user') | list | length -%}"
    "{%- set ns = namespace(round=0) -%}"
    "{%- for message in messages -%}"
    "{%- set text = text_of(message['content']) -%}"
    "{%- if message['role'] == 'user' -%}"
    "{%- if questions == 1 -%}{{- text -}}"
    "{%- else -%}{{- '[Round ' ~ ns.round ~ ']\\n问：' ~ text ~ '\\n答：' -}}{%- endif -%}"
    "{%- set ns.round = ns.round + 1 -%}"
    "{%- elif message['role'] == 'assistant' and loop.last -%}"
    "{{- '[gMASK]' -}}{%- generation -%}{{- '<sop>' ~ text ~ '<eop>' -}}{%- endgeneration -%}"
    "{%- else -%}{{- text ~ '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '[gMASK]<sop>' -}}{%- endif -%}"
)

_SPLIT = "\0"  # ends one piece of text and starts the next, inside `tokenize` only


def _varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


def append_pieces(
    model_proto: bytes,
    control: tuple[str, ...] = SPECIAL_PIECES,
    user_defined: tuple[str, ...] = (),
    normal: tuple[str, ...] = (),
    byte_fallback: bool = False,
    max_blank_length: int = MAX_BLANK_LENGTH,
) -> bytes:
    """A sentencepiece model with ChatGLM's pieces behind its own, in the published order.

    Two serialised protobuf messages in a row are their merge, so no protobuf library is needed.

    Args:
        model_proto: contents of a `.model` file.
        control, user_defined, normal: never found in text; always found whole; found where their score 0 is best,
            which makes them win over any sequence of ordinary pieces.
        byte_fallback: add the 256 byte pieces and switch the fallback on.
        max_blank_length: `<|tab|>` and `<|blank_2|>` to this length are added; 0 for none.
    """
    blanks = ("<|tab|>", *(f"<|blank_{length}|>" for length in range(2, max_blank_length + 1)))
    pieces = [(piece, 3) for piece in control]
    pieces += [(piece, 4) for piece in (*(blanks if max_blank_length else ()), *user_defined)]
    pieces += [(piece, 1) for piece in normal]
    if byte_fallback:
        pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
    for piece, kind in pieces:
        text = piece.encode()
        message = b"\x0a" + _varint(len(text)) + text + b"\x15" + bytes(4) + b"\x18" + _varint(kind)
        model_proto += b"\x0a" + _varint(len(message)) + message
    return model_proto + (b"\x12\x03\x98\x02\x01" if byte_fallback else b"")


def _load_model(vocab_file: str | None) -> sentencepiece.SentencePieceProcessor:
    if vocab_file is None or os.path.basename(vocab_file) == "tokenizer.model":  # transformers falls back to this name
        found = "no ice_text.model in this folder or repository"
        if vocab_file is not None:
            found = f"{vocab_file}: the vocabulary of ChatGLM2 or later"
        raise ValueError(
            f"{found}: a first-generation ChatGLM has ice_text.model (later ones have tokenizer.model and are another "
            "architecture)"
        )
    model = sentencepiece.SentencePieceProcessor(model_file=str(vocab_file))
    if model.id_to_piece(model.piece_to_id("[gMASK]")) != "[gMASK]":  # the release of March 2023
        extended = append_pieces(model.serialized_model_proto(), byte_fallback=True)
        model = sentencepiece.SentencePieceProcessor(model_proto=extended)
    return model


class ChatGLMTokenizer(SentencePieceBackend):
    """Text to ChatGLM ids and back.

    ```python
    >>> tokenizer("你好")["input_ids"][-2:] == [tokenizer.gmask_token_id, tokenizer.bos_token_id]
    True
    ```

    Args:
        vocab_file: path of `ice_text.model`; without one, a `ValueError`.
        bos_token, eos_token, pad_token, unk_token, mask_token, gmask_token: published special tokens; `bos_token`
            opens the answer, `eos_token` closes it.
        image_token, video_token, audio_token: stand for one embedding of a medium each; new ids.
        num_image_tokens: ids before the first text piece.
        do_lower_case, remove_space: published options, off in all published folders.
        chat_template: by default `CHATGLM_CHAT_TEMPLATE`.

    Source: ChatGLM-6B tokenization code, April-May 2023; tokenizer_config.json of THUDM/chatglm-6b.
    """

    vocab_files_names = {"vocab_file": "ice_text.model"}
    model_input_names = ["input_ids", "attention_mask"]
    padding_side = "left"

    def __init__(
        self,
        vocab_file: str | None,
        bos_token: str | AddedToken = "<sop>",
        eos_token: str | AddedToken = "<eop>",
        pad_token: str | AddedToken = "<pad>",
        unk_token: str | AddedToken = "<unk>",
        mask_token: str | AddedToken = "[MASK]",
        num_image_tokens: int = 0,
        do_lower_case: bool = False,
        remove_space: bool = False,
        chat_template: str | dict | None = None,
        **kwargs: Any,
    ):
        # Loading gathers all unusual *_token entries of tokenizer_config.json in one dict.
        extra = {"gmask_token": "[gMASK]", **PLACEHOLDERS, **(kwargs.pop("model_specific_special_tokens", None) or {})}
        for name in [name for name in kwargs if name.endswith("_token")]:
            extra[name] = kwargs.pop(name)
        extra.pop("end_token", None)  # "</s>", written by some releases and used by none
        eos_token = extra.pop("eop_token", eos_token)  # April 2023: eos_token was "</s>", the model stops at eop_token

        model = _load_model(vocab_file)
        self.num_image_tokens = num_image_tokens
        self.do_lower_case = do_lower_case
        self.remove_space = remove_space
        self.num_pieces = model.get_piece_size()
        blanks = (length for length in range(MAX_BLANK_LENGTH, 1, -1) if self._holds(model, f"<|blank_{length}|>"))
        self._longest_blank = next(blanks, None)
        pieces = {"\n": "<n>", "\t": "<|tab|>"}
        self._whitespace = {plain: piece for plain, piece in pieces.items() if self._holds(model, piece)}
        named = (unk_token, bos_token, eos_token, pad_token, mask_token, *extra.values())
        self._added_tokens_decoder = {
            model.piece_to_id(str(token)) + num_image_tokens: AddedToken(str(token), special=True, normalized=False)
            for token in named
            if self._holds(model, str(token))
        }
        super().__init__(
            vocab_file=str(vocab_file),
            bos_token=bos_token,
            eos_token=eos_token,
            pad_token=pad_token,
            unk_token=unk_token,
            mask_token=mask_token,
            model_specific_special_tokens=extra,
            num_image_tokens=num_image_tokens,
            do_lower_case=do_lower_case,
            remove_space=remove_space,
            chat_template=chat_template or CHATGLM_CHAT_TEMPLATE,
            **kwargs,
        )
        self.sp_model = model

    @staticmethod
    def _holds(model: sentencepiece.SentencePieceProcessor, piece: str) -> bool:
        return model.id_to_piece(model.piece_to_id(piece)) == piece

    # ---- vocabulary -------------------------------------------------------------------------------------------------

    @property
    def vocab_size(self) -> int:
        """Ids below the added tokens."""
        return self.num_image_tokens + self.num_pieces

    def get_vocab(self) -> dict[str, int]:
        """Text pieces and added tokens with their ids."""
        vocab = {self.sp_model.id_to_piece(index): index + self.num_image_tokens for index in range(self.num_pieces)}
        vocab.update(self.added_tokens_encoder)
        return vocab

    def _update_total_vocab_size(self):
        # New tokens go behind everything, also where ids below num_image_tokens have no piece.
        self.total_vocab_size = max(self.vocab_size, max(self._added_tokens_decoder, default=-1) + 1)

    def _add_tokens(self, new_tokens: list[str] | list[AddedToken], special_tokens: bool = False) -> int:
        if self.num_image_tokens:  # transformers would take the piece's own number for its id
            for token in new_tokens:
                content = str(token)
                if content not in self._added_tokens_encoder and self._holds(self.sp_model, content):
                    added = token if isinstance(token, AddedToken) else AddedToken(content, special=special_tokens)
                    index = self.sp_model.piece_to_id(content) + self.num_image_tokens
                    self._added_tokens_decoder[index] = added
                    self._added_tokens_encoder[content] = index
        return super()._add_tokens(new_tokens, special_tokens=special_tokens)

    def _convert_token_to_id(self, token: str) -> int:
        return self.sp_model.piece_to_id(token) + self.num_image_tokens

    def _convert_id_to_token(self, index: int) -> str:
        """Piece of an id; ids without one (the embedding has more rows than pieces) give the unknown token."""
        number = index - self.num_image_tokens
        if 0 <= number < self.num_pieces:
            return self.sp_model.id_to_piece(number)
        return f"<image_{index}>" if 0 <= index < self.num_image_tokens else str(self.unk_token)

    # ---- text to pieces ---------------------------------------------------------------------------------------------

    def prepare_for_tokenization(
        self, text: str, is_split_into_words: bool = False, **kwargs: Any
    ) -> tuple[str, dict[str, Any]]:
        """Mark the wrappers around a medium, which the authors encoded apart from the text around them (sec. 3.4)."""
        named = set(self.special_tokens_map) - {*SentencePieceBackend.SPECIAL_TOKENS_ATTRIBUTES, "gmask_token"}
        tokens = "|".join(re.escape(str(getattr(self, name))) for name in sorted(named))
        text = re.sub(rf"((?!{tokens})<\w+>)(?={tokens})", rf"{_SPLIT}\1", text)
        return re.sub(rf"((?:{tokens})</\w+>)", rf"\1{_SPLIT}", text), kwargs

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        if self.remove_space:
            text = " ".join(text.strip().split())
        if self.do_lower_case:
            text = text.lower()
        for plain, piece in self._whitespace.items():
            text = text.replace(plain, piece)
        if self._longest_blank:
            text = re.sub(f" {{2,{self._longest_blank}}}", lambda run: f"<|blank_{len(run.group())}|>", text)
        return [piece for part in text.split(_SPLIT) if part for piece in self.sp_model.encode(part, out_type=str)]

    # ---- pieces to text ---------------------------------------------------------------------------------------------

    def _to_text(self, pieces: list[str]) -> str:
        text = self.sp_model.decode(pieces) if pieces else ""
        for plain, piece in self._whitespace.items():
            text = text.replace(piece, plain)
        # Longer runs are no pieces, and a text may name any number.
        return re.sub(r"<\|blank_([2-9]|[1-7]\d|80)\|>", lambda found: " " * int(found.group(1)), text)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of pieces; each stretch between added tokens is decoded on its own, as it was encoded."""
        text = ""
        stretch: list[str] = []
        for token in tokens:
            if token in self._added_tokens_encoder:
                text, stretch = text + self._to_text(stretch) + token, []
            else:
                stretch.append(token)
        return text + self._to_text(stretch)

    def _decode(self, token_ids: int | list[int], *args: Any, **kwargs: Any) -> str:
        """Text of ids. Ids without a piece or an added token give nothing, whatever a model may have generated."""
        ids = [token_ids] if isinstance(token_ids, int) else [int(index) for index in token_ids]
        known = range(self.num_image_tokens, self.vocab_size)
        ids = [index for index in ids if index in known or index in self._added_tokens_decoder]
        return super()._decode(ids, *args, **kwargs)

    @property
    def _tokenizer(self) -> "ChatGLMTokenizer":
        """What transformers' server decodes a stream with: of a fast tokenizer the Rust one, here this."""
        return self

    # ---- special tokens ---------------------------------------------------------------------------------------------

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """`prompt [gMASK] <sop>`, or with an answer `prompt [gMASK] <sop> answer <eop>`; no second `<sop>`."""
        suffix = [] if self.bos_token_id in token_ids_0 else [self.gmask_token_id, self.bos_token_id]
        answer = [] if token_ids_1 is None else [*token_ids_1, self.eos_token_id]
        return [*token_ids_0, *suffix, *answer]

    def get_special_tokens_mask(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None, already_has_special_tokens: bool = False
    ) -> list[int]:
        """1 for tokens that `build_inputs_with_special_tokens` adds, 0 for text."""
        if already_has_special_tokens:
            return super().get_special_tokens_mask(token_ids_0, token_ids_1, already_has_special_tokens=True)
        suffix = [] if self.bos_token_id in token_ids_0 else [1, 1]
        answer = [] if token_ids_1 is None else [*[0] * len(token_ids_1), 1]
        return [*[0] * len(token_ids_0), *suffix, *answer]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """What the model calls token types: 0 up to `[gMASK]`, 1 from `<sop>` on."""
        ids = self.build_inputs_with_special_tokens(token_ids_0, token_ids_1)
        start = ids.index(self.bos_token_id)
        return [0] * start + [1] * (len(ids) - start)


__all__ = ["CHATGLM_CHAT_TEMPLATE", "ChatGLMTokenizer", "append_pieces"]

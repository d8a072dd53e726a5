# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Commands to a device as JSON: checked against their declared schema, and written so that they cannot break it.

    {"command": "set_volume", "value": 40}

`DeviceCommands.parse` refuses what breaks the schema, with the reason, before any device sees it.
`DeviceCommands.logits_processor` leaves `generate` nothing else to write than such a command or plain text: llguidance
(used by vLLM and llama.cpp) follows the schema byte by byte, through whatever pieces the tokenizer has.
"""

import json
import re
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from transformers import LogitsProcessor, PreTrainedTokenizerBase, PreTrainedTokenizerFast


# One way to write a command: members as the schema orders them, a space behind ":" and ",".
FORM = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# sentencepiece opens an answer with a space; text has no brace, so that half a command is never taken for an answer.
GRAMMAR = """start: " "? answer
answer: {text}command
TEXT: /[^ {{][^{{]*/
command: %json {schema}
"""
# Of one step: an object in an object without end takes 0.3 s, with the default of 50,000 items 8 s; a text of 30,000
# characters 0.1 s, with the default of 200,000 expressions 0.4 s.
LIMITS = LLParserLimits(step_max_items=10_000, step_lexer_fuel=50_000)
BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Refused(ValueError):
    """A command that is not executed, and why not."""


class DeviceCommands:
    """The commands of a device.

    Args:
        schema (`dict`): JSON Schema of a command, an object.

    Raises:
        ValueError: no JSON Schema, or one with a rule that decoding cannot follow; the message names it.
    """

    def __init__(self, schema: dict):
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"commands{error.json_path[1:]}: not a JSON Schema: {error.message}") from error
        self.schema = schema
        self._validator = Draft202012Validator(schema)
        if wrong := LLMatcher.validate_grammar(self.grammar()):
            reason = wrong.partition("\n")[0]
            raise ValueError(f"commands: a rule of this schema cannot be followed while decoding: {reason}")

    def parse(self, text: str) -> dict[str, Any]:
        """The command that a text is.

        Raises:
            Refused: no JSON object, or it breaks the schema.
        """
        try:
            command = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise Refused(f"not the JSON of a command: {error}") from error
        if not isinstance(command, dict):
            raise Refused(f"a command is an object, got {text:.60}")
        if wrong := best_match(self._validator.iter_errors(command)):
            where = ".".join(map(str, wrong.absolute_path))
            raise Refused(f"{where}: {wrong.message}" if where else wrong.message)
        return command

    @staticmethod
    def is_command(answer: str) -> bool:
        """Whether an answer is (meant as) a command rather than text."""
        return answer.lstrip().startswith("{")

    def grammar(self, or_text: bool = False) -> str:
        """The answers that are allowed, in llguidance's language: a command, or with `or_text` text without "{"."""
        return grammar_of(self.schema, or_text)

    def logits_processor(
        self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_id: Any = None, or_text: bool = True
    ) -> "CommandLogitsProcessor":
        """For one call of `generate(..., logits_processor=[...])`.

        Args:
            vocab_size: of the model, which may be larger than the tokenizer's.
            eos_token_id (`int` or `list[int]`, *optional*): the model's; by default the tokenizer's.
            or_text: whether an answer may be plain text too.
        """
        pieces = token_table(tokenizer, vocab_size, eos_token_id)
        return CommandLogitsProcessor(self.grammar(or_text), pieces)


def _once(pairs: list[tuple[str, Any]]) -> dict:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


class CommandLogitsProcessor(LogitsProcessor):
    """Leaves a grammar's tokens alone possible, in each row of a batch and each beam.

    It begins where the input of its first call ends, so each call of `generate` takes a new one.

    Args:
        grammar: as `DeviceCommands.grammar` writes it, or what `matcher_of` made of it.
    """

    def __init__(self, grammar: str | LLMatcher, tokenizer: LLTokenizer):
        self._start = matcher_of(grammar, tokenizer) if isinstance(grammar, str) else grammar
        self._ends = tokenizer.eos_tokens
        self._prompt: int | None = None
        self._matchers: dict[tuple[int, ...], LLMatcher] = {}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """(B, L), (B, V) -> (B, V) with -inf for what the grammar forbids."""
        self._prompt = input_ids.shape[1] if self._prompt is None else self._prompt
        earlier, self._matchers = self._matchers, {}
        allowed = np.zeros(scores.shape, dtype=bool)
        for place, row in enumerate(input_ids[:, self._prompt :].tolist()):
            matcher = self._matcher(tuple(row), earlier)
            mask = b"" if matcher.is_stopped() else matcher.compute_bitmask()
            check(matcher)
            if mask:
                bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
                allowed[place, : bits.size] = bits[: scores.shape[1]]
            else:
                allowed[place, self._ends] = True
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)

    def _matcher(self, tokens: tuple[int, ...], earlier: dict[tuple[int, ...], LLMatcher]) -> LLMatcher:
        """Where the grammar stands behind these tokens; one step on from an earlier call, or for a new row anew."""
        if tokens not in self._matchers:
            known = earlier.get(tokens[:-1]) if tokens else None
            matcher = (known or self._start).deep_copy()
            for token in tokens[-1:] if known else tokens:
                if not matcher.is_stopped():  # padding behind the end
                    matcher.consume_token(token)
            self._matchers[tokens] = matcher
        return self._matchers[tokens]


def grammar_of(schema: dict, or_text: bool = False) -> str:
    """`DeviceCommands.grammar` of a schema that nobody has checked."""
    text = json.dumps({**schema, "x-guidance": FORM})
    return LLMatcher.grammar_from_lark(GRAMMAR.format(schema=text, text="TEXT? | " if or_text else ""))


def matcher_of(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A grammar at its beginning, for these tokens."""
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)


def check(matcher: LLMatcher) -> None:
    """A `ValueError` where decoding cannot go on."""
    if matcher.is_error():
        told = matcher.get_error().partition("\n")[0]
        reason = "no text from here on fulfils it" if told == "NoExtensionBias" else told
        raise ValueError(f"decoding cannot follow the schema: {reason}")


def token_table(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, eos_token_id: int | list[int] | None = None
) -> LLTokenizer:
    """The bytes of each token, as llguidance takes them.

    Fast tokenizers are read by llguidance itself. Of others each piece is decoded behind another one, since at the
    beginning of a text it might lose its space; `<0x0A>` is a byte.
    """
    end = tokenizer.eos_token_id if eos_token_id is None else eos_token_id
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return llguidance.hf.from_tokenizer(tokenizer, n_vocab=vocab_size, eos_token=end)
    return LLTokenizer(llguidance.TokenizerWrapper(_Pieces(tokenizer, vocab_size)), vocab_size, end)


class _Pieces:
    """What llguidance asks of a tokenizer that it does not know."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int):
        self._tokenizer, self._opening = tokenizer, "a"
        self.eos_token_id, self.bos_token_id = tokenizer.eos_token_id, None
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        anchor = tokenizer.tokenize(self._opening)[-1:]
        alone = tokenizer.convert_tokens_to_string(anchor)
        self.tokens: list[bytes] = []
        for index in range(vocab_size):
            token = str(tokenizer.convert_ids_to_tokens(index)) if index < len(tokenizer) else ""
            if not token or index in special:
                self.tokens.append(b"")
            elif byte := BYTE.fullmatch(token):
                self.tokens.append(bytes([int(byte[1], 16)]))
            else:
                text = tokenizer.convert_tokens_to_string([*anchor, token])
                self.tokens.append(text[len(alone) :].encode() if text.startswith(alone) else b"")
        self.special_token_ids = [index for index, text in enumerate(self.tokens) if not text]
        for index in self.special_token_ids:
            self.tokens[index] = f"<special_{index}>".encode()
        # Before bytes that a piece falls back to comes the piece itself.
        self._numbers = {piece: index for index, piece in reversed([*enumerate(self.tokens)])}
        self._most = max(map(len, self._numbers), default=0)

    def __call__(self, text: bytes) -> list[int]:
        """A stretch of an answer as the tokenizer writes it within a text, where spaces at its ends stay."""
        opening = self._opening.encode()
        ids = self._tokenizer.encode(f"{self._opening}{text.decode()}{self._opening}", add_special_tokens=False)
        pieces = [self.tokens[index] for index in ids]
        begin = -len(opening) - pieces[0].startswith(b" ")
        found: list[int] = []
        end = 0
        for index, piece in zip(ids, pieces):
            if begin == end and text.startswith(piece, begin) and piece:
                found.append(index)
                end += len(piece)
            begin += len(piece)
        return [*found, *self._longest(text, end)]

    def _longest(self, text: bytes, begin: int) -> list[int]:
        """The longest piece, and again: for what the tokenizer writes across the ends of a stretch."""
        ids: list[int] = []
        while begin < len(text):
            sizes = range(min(self._most, len(text) - begin), 0, -1)
            size = next((size for size in sizes if text[begin : begin + size] in self._numbers), 0)
            if not size:
                break
            ids.append(self._numbers[text[begin : begin + size]])
            begin += size
        return ids

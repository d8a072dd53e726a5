# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""One answer while it is written: how its tokens are chosen, what text they are, and where it ends.

Each answer of a batch has settings and random numbers of its own: nobody's answer depends on who else asks.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper


WINDOW = 8  # tokens that are decoded again and again before the window moves on


@dataclass(frozen=True)
class Sampling:
    """How an answer is written, in the words of OpenAI's API; `grammar`: llguidance's matcher, which holds it."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    top_logprobs: int | None = None  # how many others are told for each token; `None`: not even its own
    grammar: Any = None

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is taken, and nothing else asked."""
        changed = self.temperature or self.frequency_penalty or self.presence_penalty or self.logit_bias
        return not changed and self.top_logprobs is None and self.grammar is None


@dataclass(frozen=True)
class Delta:
    """What a token adds to an answer: text, perhaps none yet; log probabilities; why it ends, if it does."""

    text: str = ""
    logprobs: list[dict] = field(default_factory=list)
    finish_reason: str | None = None
    tokens: int = 0


class IncrementalText:
    """Tokens to text, piece by piece: read off a short window that moves on with the text, so that the cost per token
    does not grow. Works with any tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer: Any = tokenizer
        self.ids: list[int] = []
        self._start = self._done = 0  # the window begins at `start`; tokens before `done` are out
        self._out = ""  # what those of the window are

    def add(self, token_id: int) -> str:
        """The text that a token completes; empty while a character is not complete."""
        self.ids.append(token_id)
        window = self._decode(self._start)
        text = window[len(self._out) :]
        if not text or text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        if len(self.ids) - self._start > WINDOW:
            self._start, window = self._done, self._decode(self._done)
        self._done, self._out = len(self.ids), window
        return text

    def rest(self) -> str:
        """The text that is not out yet."""
        return self._decode(self._start)[len(self._out) :]

    def _decode(self, start: int) -> str:
        return self._tokenizer.decode(self.ids[start:], skip_special_tokens=True)


class Answer:
    """An answer that is being written.

    Args:
        ends: ids that end it.
        pieces: the tokenizer as llguidance takes it; needed with a grammar.
        streams: what each token adds is told; else everything with the last one.
    """

    def __init__(
        self,
        sampling: Sampling,
        tokenizer: PreTrainedTokenizerBase,
        ends: set[int],
        pieces: Any = None,
        streams: bool = True,
    ):
        self.sampling, self._ends, self._streams = sampling, ends, streams
        self._tokenizer: Any = tokenizer
        self._text, self._held = IncrementalText(tokenizer), ""  # what may be the beginning of a stop
        self._untold = ""
        self._logprobs: list[dict] = []
        self._warpers: list[Any] = []
        if sampling.temperature:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
            self._warpers += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
            self._warpers += [TopPLogitsWarper(float(sampling.top_p))] if sampling.top_p < 1 else []
        self._random: torch.Generator | None = None
        self._grammar = None
        if sampling.grammar is not None:
            from xllm.device.commands import CommandLogitsProcessor

            self._grammar = CommandLogitsProcessor(sampling.grammar, pieces)

    @property
    def ids(self) -> list[int]:
        """The tokens so far."""
        return self._text.ids

    def choose(self, scores: torch.Tensor) -> int:
        """The next token, from scores `(V,)`."""
        sampling, scores = self.sampling, scores[None].float()  # (1, V)
        ids = torch.tensor([self.ids], dtype=torch.long, device=scores.device)
        for token, count in Counter(self.ids).items():
            scores[0, token] -= sampling.presence_penalty + count * sampling.frequency_penalty
        for token, bias in sampling.logit_bias.items():
            scores[0, token] += bias
        if self._grammar is not None:
            scores = self._grammar(ids, scores)
        logprobs = scores.log_softmax(-1)[0] if sampling.top_logprobs is not None else None
        for warp in self._warpers:
            scores = warp(ids, scores)
        token = int(scores.argmax()) if not sampling.temperature else self._draw(scores)
        if logprobs is not None:
            self._tell(logprobs, token)
        return token

    def _draw(self, scores: torch.Tensor) -> int:
        if self._random is None:
            self._random = torch.Generator(scores.device)
            self._random.manual_seed(self.sampling.seed) if self.sampling.seed is not None else self._random.seed()
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._random))

    def _tell(self, logprobs: torch.Tensor, token: int) -> None:
        best = logprobs.topk(self.sampling.top_logprobs or 0).indices.tolist()
        told, *others = (self._token(logprobs, one) for one in (token, *best))
        self._logprobs.append({**told, "top_logprobs": others})

    def _token(self, logprobs: torch.Tensor, token: int) -> dict:
        text = self._tokenizer.decode([token], skip_special_tokens=False)
        return {"token": text, "logprob": max(float(logprobs[token]), -9999.0), "bytes": [*text.encode()]}

    def add(self, token: int) -> Delta:
        """What a chosen token adds."""
        text, reason = "", None
        if token in self._ends:
            reason = "stop"
        else:
            if self._streams or self.sampling.stop:
                text = self._text.add(token)
            else:  # all text is read at the end
                self.ids.append(token)
            reason = "length" if len(self.ids) >= self.sampling.max_tokens else None
        if reason is not None:
            text = text or self._text.rest()
        text, reason = self._until_stop(text, reason)
        self._untold += text
        if not self._streams and reason is None:
            return Delta(tokens=len(self.ids))
        text, self._untold = self._untold, ""
        logprobs, self._logprobs = self._logprobs, []
        return Delta(text, logprobs, reason, len(self.ids))

    def _until_stop(self, text: str, reason: str | None) -> tuple[str, str | None]:
        held, self._held = self._held + text, ""
        found = [place for stop in self.sampling.stop if (place := held.find(stop)) >= 0]
        if found:
            return held[: min(found)], "stop"
        if reason is None and (keep := max(map(_overlap(held), self.sampling.stop), default=0)):
            held, self._held = held[:-keep], held[-keep:]
        return held, reason


def _overlap(text: str):
    """How many of the last characters of a text may be the beginning of a stop."""
    return lambda stop: next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

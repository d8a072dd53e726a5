# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`compute_metrics` of transformers' `Trainer`: how well a token is foretold where the right ones stand before it.

    Trainer(..., compute_metrics=AnswerMetrics(processor), preprocess_logits_for_metrics=likeliest_tokens)

That is what one forward pass can tell, and is better than what is generated: `xllm evaluate` measures that.
"""

from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction


def likeliest_tokens(logits: torch.Tensor | tuple, labels: torch.Tensor) -> torch.Tensor:
    """`preprocess_logits_for_metrics`: scores `(B, L, V)` to tokens `(B, L)`, which is all that `Trainer` gathers."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


class AnswerMetrics:
    """Figures over the labelled tokens of an evaluation.

    Args:
        processor: whose tokenizer turns tokens to texts.
        rate: "cer" or "wer" for an error rate of the answers' texts as well (extra `train`).

    Returns (when called with an `EvalPrediction` whose predictions are those of `likeliest_tokens`):
        `token_accuracy`, `answer_accuracy` (rows without a wrong token), `answers` (rows with labels), and the rate.

    Raises:
        ValueError: predictions that are no tokens, or no label at all.
    """

    def __init__(self, processor: Any, rate: str | None = None):
        if rate not in (None, "cer", "wer"):
            raise ValueError(f"rate is {rate!r}: expected cer, wer or None")
        self.tokenizer, self.rate = processor.tokenizer, rate

    def __call__(self, prediction: EvalPrediction) -> dict[str, float]:
        """The figures."""
        predicted, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
        if predicted.shape != labels.shape:
            raise ValueError(
                f"predictions have the shape {predicted.shape}, labels {labels.shape}: give Trainer "
                "preprocess_logits_for_metrics=likeliest_tokens"
            )
        predicted, labels = predicted[:, :-1], labels[:, 1:]  # the token at a place foretells the next
        is_answer: np.ndarray = np.asarray(labels >= 0)  # -100, of padding between batches too, is none
        if not is_answer.any():
            raise ValueError("no token of the evaluation has a label: there is nothing to measure")
        right = (predicted == labels) | ~is_answer
        rows: np.ndarray = np.asarray(is_answer.any(1))
        found = {
            "token_accuracy": float(right[is_answer].mean()),
            "answer_accuracy": float(right[rows].all(1).mean()),
            "answers": int(rows.sum()),
        }
        if self.rate is not None:
            from xllm.training.evaluation import metrics

            texts = [self._texts(tokens, is_answer, rows) for tokens in (labels, predicted)]
            found[self.rate] = getattr(metrics, self.rate)(*texts).value
        return found

    def _texts(self, tokens: np.ndarray, is_answer: np.ndarray, rows: np.ndarray) -> list[str]:
        answers = [row[kept].tolist() for row, kept in zip(tokens[rows], is_answer[rows])]
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]

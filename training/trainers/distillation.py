# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Distillation from the text LLM: what it would answer if it read what a medium says (the `distill` key of a stage).

The teacher is the frozen language model of the student itself, which reads the same conversation with the text
equivalent of each medium in its place: the transcript for a recording, say. At each of the N targets of the answers,
which are the same for both, with p the teacher's and q the student's distribution at temperature T,

    loss = cross-entropy + weight * T^2 * sum over targets of KL(p || q) / N

A sample without media, or without a text equivalent of each of its media, has a cross-entropy alone; its targets
count in N. No gradient reaches the teacher. An adapter that the stage trains is the student's only; one that it keeps
frozen is part of the language model.

Deviation: the paper has no such loss.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from xllm.modeling_xllm.language_heads import scaled_logits
from xllm.modeling_xllm.stage_checkpoints import adapted_layers
from xllm.training.recipes.strict import RecipeError


TEACHER = "teacher"  # key of a batch: input_ids, attention_mask, labels, and rows: which have a text equivalent


@dataclass(kw_only=True)
class DistillSpec:
    """Weight of the distillation beside the cross-entropy, and the temperature of both distributions."""

    weight: float = 1.0
    temperature: float = 2.0


def check_distillation(where: str, stage: int, spec: DistillSpec | None) -> None:
    """Raises a `RecipeError` for a stage without a language model, or settings that are no numbers above 0."""
    if spec is None:
        return
    if stage not in (2, 3):
        raise RecipeError(
            f"{where}.distill belongs to stages 2 and 3; in stage {stage} no frozen language model answers"
        )
    if not (0 < spec.weight < float("inf") and 0 < spec.temperature < float("inf")):
        raise RecipeError(
            f"{where}.distill: weight and temperature are above 0, got {spec.weight}, {spec.temperature}"
        )


def count_equivalents(where: str, samples: Iterable[Any]) -> str:
    """How many samples the teacher can read, for a message.

    Raises:
        RecipeError: none of them.
    """
    counts = [sample.equivalents is not None for sample in samples]
    if not any(counts):
        raise RecipeError(
            f"{where}.distill: no sample of data.train has a text equivalent of its media; give the rows a column "
            "text_equivalent, or the source `text_equivalent`, e.g. '{text}'"
        )
    return f"{where}.distill: {sum(counts)} of {len(counts)} samples have a text equivalent"


def in_words(messages: Sequence[dict], equivalents: Sequence[str] | None) -> list[dict]:
    """A conversation with the text equivalent of each medium in its place; without them, the media are left out."""
    texts = iter(equivalents or ())

    def said(part: dict) -> dict:
        return part if part["type"] == "text" else {"type": "text", "text": next(texts, "")}

    return [{**turn, "content": [said(part) for part in turn["content"]]} for turn in messages]


@contextmanager
def _as_teacher(model) -> Iterator[None]:
    """Eval mode, and without the adapters that are trained."""
    was = model.training
    layers = [layer for layer in adapted_layers(model).values() if _is_trained(layer)]
    before = [layer._disable_adapters for layer in layers]
    try:
        model.eval()
        for layer in layers:  # PEFT's own switch would change what is trained
            layer._disable_adapters = True
        yield
    finally:
        for layer, value in zip(layers, before):
            layer._disable_adapters = value
        model.train(was)


def _is_trained(layer) -> bool:
    return any(p.requires_grad for kind in layer.adapter_layer_names for p in getattr(layer, kind).parameters())


@torch.no_grad()
def teacher_logits(model, teacher: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits `(S, V)` of the language model at the S targets of a batch that is text alone."""
    with _as_teacher(model):
        names = ("input_ids", "attention_mask")
        states = model.model(**{name: teacher[name] for name in names}, use_cache=False).last_hidden_state  # (B, L, D)
        logits = model.lm_head(states[:, :-1][teacher["labels"][:, 1:] != -100])
        return scaled_logits(model.config.get_text_config(), logits)


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, kept: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 times the sum of KL(teacher || student) over the targets that are kept.

    Args:
        student, teacher (`torch.FloatTensor` of shape `(S, V)`): logits.
        kept (`torch.BoolTensor` of shape `(S,)`): targets of samples with a text equivalent.
    """
    of_student = F.log_softmax(student.float() / temperature, dim=-1)
    of_teacher = F.log_softmax(teacher.float() / temperature, dim=-1)
    each = F.kl_div(of_student, of_teacher, reduction="none", log_target=True).sum(-1)  # (S,)
    return temperature**2 * (each * kept.to(each)).sum()


def kept_targets(inputs: dict, teacher: dict[str, torch.Tensor]) -> torch.Tensor:
    """Which targets of a batch belong to rows with a text equivalent, `(S,)`.

    Raises:
        ValueError: the answers of teacher and student are not the same tokens.
    """
    mine, its = inputs["labels"][:, 1:], teacher["labels"][:, 1:]
    if not torch.equal(mine[mine != -100], its[its != -100]):
        raise ValueError("distill: the answers after the media and after their text equivalents are other tokens")
    return teacher["rows"][(mine != -100).nonzero()[:, 0]]


__all__ = [
    "TEACHER",
    "DistillSpec",
    "check_distillation",
    "count_equivalents",
    "distillation_loss",
    "in_words",
    "kept_targets",
    "teacher_logits",
]

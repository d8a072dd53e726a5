# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The HF Trainer with a teacher: the loss of `xllm.training.trainers.distillation` beside the cross-entropy."""

from typing import Any

import torch
from transformers import Trainer

from xllm.training.trainers.distillation import TEACHER, DistillSpec, distillation_loss, kept_targets, teacher_logits


class DistillTrainer(Trainer):
    """Adds the distillation where `distill` is set and a batch holds what the teacher reads; logs it as `distill_loss`
    per target, and as `distilled` which share of the targets has a teacher.
    """

    _found: Any
    distill: DistillSpec | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = dict(inputs)
        teacher = inputs.pop(TEACHER, None)
        if self.distill is None or teacher is None or not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        expected, mine = teacher_logits(self.model, teacher), []
        head = self.model.get_output_embeddings()  # in training it makes logits of the targets, and returns none
        hook = head.register_forward_hook(lambda module, args, output: mine.append(output))
        try:
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        finally:
            hook.remove()
        loss = loss + self._distillation(mine[-1], expected, kept_targets(inputs, teacher), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _distillation(self, student, expected, kept: torch.Tensor, num_items_in_batch) -> torch.Tensor:
        """The weighted distillation loss of a batch, in the share of the accumulated batch that it is."""
        distill: Any = self.distill
        total, own = distillation_loss(student, expected, kept, distill.temperature), max(len(kept), 1)
        self._found["distill_loss"].append(total.detach() / own)
        self._found["distilled"].append(kept.float().mean())
        if num_items_in_batch is None:
            return distill.weight * total / own
        ranks = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return distill.weight * total / num_items_in_batch * ranks


__all__ = ["DistillTrainer"]

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the log tells besides the loss, measured in the steps that are logged and in no others.

| entry                              | what                                                                           |
|------------------------------------|--------------------------------------------------------------------------------|
| `loss_image`, `loss_image+speech`  | mean over the samples that hold just these modalities (`loss_text`: none)      |
| `loss_data_<name>`                 | mean over the samples of a data source, where there are several                |
| `grad_norm_<part>`                 | of an interface, a tower, the heads of stage 1, where several are trained      |
| `itc_loss`, `ctc_loss`, ...        | terms of stage 1: means since the last entry                                   |

Losses are those of this process; gradients have been averaged over all.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import Trainer
from transformers.trainer_utils import IntervalStrategy

from xllm.training.batches.collator import IGNORE
from xllm.training.batches.notes import NOTES
from xllm.training.stages import part_of_parameter


TERMS = ("itc_loss", "itm_loss", "itg_loss", "ce_loss", "quantity_loss", "ctc_loss")


class Watch(Trainer):
    """Adds the entries of the module's table to the log. Nothing waits for the device before they are written."""

    model: Any

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._found: defaultdict[str, list[torch.Tensor]] = defaultdict(list)  # since the last entry of the log
        self._logits: torch.Tensor | None = None
        self._sources: list[str] = []
        self._operations: int | None = None  # of a token, as the log's `total_flos` counts them

    def train(self, *args, **kwargs):
        head = self.model.get_output_embeddings()
        # In training the model returns no logits; its head makes those of the supervised positions.
        hook = None if head is None else head.register_forward_hook(self._keep_logits)
        try:
            return super().train(*args, **kwargs)
        finally:
            if hook is not None:
                hook.remove()

    def floating_point_ops(self, inputs: dict) -> int:
        """transformers' estimate, for which it would count all parameters in every step."""
        name = getattr(self.model, "main_input_name", "input_ids")
        if not isinstance(inputs.get(name), torch.Tensor):
            return super().floating_point_ops(inputs)
        if self._operations is None:
            self._operations = super().floating_point_ops({name: torch.zeros(1)})
        return self._operations * inputs[name].numel()

    def _is_logged(self) -> bool:
        """Whether the step under way ends with an entry of the log; one that closes an epoch cannot be foretold."""
        args, step = self.args, self.state.global_step + 1
        if args.logging_strategy == IntervalStrategy.STEPS:
            return step % max(1, self.state.logging_steps) == 0 or (step == 1 and args.logging_first_step)
        return args.logging_strategy == IntervalStrategy.EPOCH

    def _keep_logits(self, head, inputs, output: torch.Tensor) -> None:
        if self.model.training and self._is_logged():
            self._logits = output.detach()

    def training_step(self, model, inputs, *args, **kwargs):
        self._sources = inputs.get(NOTES, {}).get("source", [])
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._logits = None
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self.model.training:
            self._keep_losses(inputs, outputs, num_items_in_batch)
        self._logits = None
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _keep_losses(self, inputs: dict, outputs: Any, num_items_in_batch) -> None:
        for name in TERMS:
            if outputs.get(name) is not None:
                self._found[name].append(outputs[name].detach() / _share_of_batch(inputs, num_items_in_batch))
        if self._logits is None or self._logits.dim() != 2 or "input_ids" not in inputs:
            return
        losses = losses_of_rows(inputs["labels"], self._logits)
        for name, row in zip(modalities_of_rows(self.model.config, inputs["input_ids"]), losses):
            self._found[f"loss_{name}"].append(row)
        if len(self._sources) == len(losses):  # not where a sample with several answers has become several rows
            for name, row in zip(self._sources, losses):
                self._found[f"loss_data_{name}"].append(row)

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        if self._is_logged():
            for part, value in self._norms_of_parts(norm).items():
                self._found[f"grad_norm_{part}"].append(value)
        return norm

    def _norms_of_parts(self, norm) -> dict[str, torch.Tensor]:
        """Norms before clipping; `norm` is that of all, which the gradients may have been clipped from."""
        parts = defaultdict(list)
        for name, parameter in self.accelerator.unwrap_model(self.model).named_parameters():
            if parameter.grad is not None:  # DeepSpeed keeps its own
                parts[part_of_parameter(name)].append(parameter.grad)
        if len(parts) < 2:
            return {}
        squares = {part: torch.stack([*map(_square, gradients)]).sum() for part, gradients in parts.items()}
        whole = torch.stack([*squares.values()]).sum().sqrt()
        total = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
        before = torch.where(whole > 0, total.to(whole) / whole, torch.ones_like(whole))
        return {part: value.sqrt() * before for part, value in squares.items()}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            sources = [name for name in self._found if name.startswith("loss_data_")]
            for name, values in sorted(self._found.items()):
                known = torch.stack([value.float() for value in values])
                known = known[~known.isnan()]  # of rows without a target
                if len(known) and (name not in sources or len(sources) > 1):
                    logs[name] = float(f"{known.mean():.6g}")
            self._found.clear()
        super().log(logs, *args, **kwargs)


def _square(gradient: torch.Tensor) -> torch.Tensor:
    square = gradient.float().square().sum()
    return square.full_tensor() if hasattr(square, "full_tensor") else square


def _share_of_batch(inputs: dict, num_items_in_batch) -> torch.Tensor | float:
    """Which part of the accumulated batch's targets this one holds: its losses are sums, divided by all of them."""
    if num_items_in_batch is None or "labels" not in inputs:
        return 1.0
    own = (inputs["labels"] != IGNORE).sum().clamp(min=1).float()
    return own / torch.as_tensor(num_items_in_batch, device=own.device).clamp(min=1).float()


def losses_of_rows(labels: torch.LongTensor, logits: torch.Tensor) -> torch.Tensor:
    """Mean loss of each row's targets `(B,)`, NaN where it has none.

    Args:
        labels (`torch.LongTensor` of shape `(B, L)`).
        logits (`torch.FloatTensor` of shape `(S, V)`): of the S positions whose next token is a target, row by row.
    """
    kept = labels[:, 1:] != IGNORE
    losses = F.cross_entropy(logits.float(), labels[:, 1:][kept], reduction="none")
    placed = torch.zeros(kept.shape, device=losses.device).masked_scatter_(kept, losses)
    return placed.sum(1) / kept.sum(1)


def modalities_of_rows(config: Any, input_ids: torch.LongTensor) -> Iterable[str]:
    """Names of the modalities that each row `(B, L)` holds, joined by "+", or "text"."""
    ids = {name: row.token_id for name, row in config.modalities.items() if row.token_id is not None}
    if not ids:
        return ["text"] * len(input_ids)
    held = torch.stack([(input_ids == token_id).any(1) for token_id in ids.values()], dim=1).tolist()
    return ["+".join(name for name, is_held in zip(ids, row) if is_held) or "text" for row in held]


__all__ = ["TERMS", "Watch", "losses_of_rows", "modalities_of_rows"]

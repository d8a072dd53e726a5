# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The HF Trainer with two additions: losses per modality and per term in the log, and whole checkpoints.

Everything works without it too: model + `XLLMDataCollator` + `transformers.Trainer` train any stage.
"""

from collections import defaultdict
from statistics import fmean

import torch
from torch.nn import functional as F

from xllm.modeling_xllm.stage_checkpoints import adapted_layers
from xllm.training.batching import GroupedSampler
from xllm.training.checkpoints import WholeCheckpoints
from xllm.training.collator import IGNORE
from xllm.training.data import ChatDataset
from xllm.training.guards import Guards
from xllm.training.lineage import FreezeReceipt
from xllm.training.optim_groups import OptimSpec, split_groups
from xllm.training.stream_trainer import StreamTrainer


TERMS = ("itc_loss", "itm_loss", "itg_loss", "ce_loss", "quantity_loss", "ctc_loss")


class XLLMTrainer(Guards, StreamTrainer, WholeCheckpoints):
    """Logs `loss_<modalities>` (`loss_image`, `loss_image+speech`, `loss_text`) in stages 2 and 3, and `<term>`
    (`ctc_loss`) in stage 1: means since the last entry, over the samples or batches of this process.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._losses: defaultdict[str, list[float]] = defaultdict(list)  # since the last entry of the log
        self._logits: torch.Tensor | None = None
        self.receipt: FreezeReceipt | None = None  # made when training starts, unless one is given
        self.one_modality = False  # batches of samples with the same kinds of media, see `GroupedSampler`
        self.groups: list[OptimSpec] = []  # learning rates and weight decay by names of parameters

    def train(self, *args, **kwargs):
        self.receipt = self.receipt or FreezeReceipt(self.model)
        head = self.model.get_output_embeddings()
        # In training the model returns no logits; its head makes those of the supervised positions.
        hook = None if head is None else head.register_forward_hook(self._keep_logits)
        try:
            return super().train(*args, **kwargs)
        finally:
            if hook is not None:
                hook.remove()

    def create_optimizer(self, model=None):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.groups:
            own = self.model if model is None else model
            split_groups(optimizer, self.groups, own, self.get_decay_parameter_names(own))
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Weights of a checkpoint and, which transformers would pass over, the adapter beside them."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        own = self.model if model is None else model
        if adapted_layers(own):
            own.load_adapter_weights(resume_from_checkpoint)

    def _get_train_sampler(self, train_dataset=None):
        data = self.train_dataset if train_dataset is None else train_dataset
        strategy = self.args.train_sampling_strategy
        by_length = strategy == "group_by_length"
        if not isinstance(data, ChatDataset) or not (by_length or self.one_modality or strategy == "batch_rebalance"):
            return super()._get_train_sampler(train_dataset)
        if strategy not in ("random", "group_by_length"):
            raise ValueError(f"train_sampling_strategy: {strategy} needs lengths as a column; choose group_by_length")
        return GroupedSampler(data, self.args.train_batch_size, by_length, self.one_modality)

    def _keep_logits(self, head, inputs, output: torch.Tensor) -> None:
        self._logits = output.detach()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self._logits = None
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if self.model.training:
            share = _share_of_batch(inputs, num_items_in_batch)
            for name in TERMS:
                if outputs.get(name) is not None:
                    self._losses[name].append(float(outputs[name].detach()) / share)
            if self._logits is not None and self._logits.dim() == 2 and "input_ids" in inputs:
                for name, value in losses_by_modality(self.model.config, inputs, self._logits):
                    self._losses[f"loss_{name}"].append(value)
            self._logits = None
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs.update({name: round(fmean(values), 6) for name, values in sorted(self._losses.items())})
            self._losses.clear()
        super().log(logs, *args, **kwargs)


def _share_of_batch(inputs: dict, num_items_in_batch) -> float:
    """Which part of the accumulated batch's targets this one holds: its losses are sums, divided by all of them."""
    if num_items_in_batch is None or "labels" not in inputs:
        return 1.0
    own = float((inputs["labels"] != IGNORE).sum())
    return max(own, 1.0) / max(float(num_items_in_batch), 1.0)


@torch.no_grad()
def losses_by_modality(config, inputs: dict, logits: torch.Tensor) -> list[tuple[str, float]]:
    """(modalities of a sample joined by "+", or "text"; mean loss of its targets) of each sample that has a target.

    Args:
        inputs: `input_ids` and `labels`, both `(B, L)`.
        logits (`torch.FloatTensor` of shape `(S, V)`): of the S positions whose next token is a target, sample by
            sample.
    """
    targets = inputs["labels"][:, 1:]
    kept = targets != IGNORE
    losses = F.cross_entropy(logits.float(), targets[kept], reduction="none")
    rows = kept.nonzero()[:, 0]
    ids = {name: row.token_id for name, row in config.modalities.items() if row.token_id is not None}
    present = {name: (inputs["input_ids"] == token_id).any(1).tolist() for name, token_id in ids.items()}
    found = []
    for row in rows.unique().tolist():
        held = "+".join(name for name in ids if present[name][row])
        found.append((held or "text", float(losses[rows == row].mean())))
    return found


__all__ = ["TERMS", "XLLMTrainer", "losses_by_modality"]

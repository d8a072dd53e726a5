# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The HF Trainer with what a run needs that can be trusted; each addition has a module of its own.

Everything works without it too: model + `XLLMDataCollator` + `transformers.Trainer` train any stage.
"""

from contextlib import nullcontext
from typing import Any

from transformers.utils import logging

from xllm.modeling_xllm.stage_checkpoints import adapted_layers
from xllm.training.batches.batching import GroupedSampler
from xllm.training.data.dataset import ChatDataset
from xllm.training.feature_cache import FeatureCache
from xllm.training.saving.checkpoints import WholeCheckpoints
from xllm.training.saving.lineage import FreezeReceipt
from xllm.training.trainers.distill_trainer import DistillTrainer
from xllm.training.trainers.engines import EngineTrainer
from xllm.training.trainers.guards import Guards
from xllm.training.trainers.muon import MuonBeside
from xllm.training.trainers.optim_groups import OptimSpec, split_groups
from xllm.training.trainers.processes import SharedSteps
from xllm.training.trainers.stream_trainer import StreamTrainer
from xllm.training.trainers.watch import Watch


logger = logging.get_logger(__name__)


class XLLMTrainer(DistillTrainer, Watch, Guards, SharedSteps, StreamTrainer, WholeCheckpoints, EngineTrainer):
    """Logs losses by modality and by source (`watch`), stops at nonsense (`guards`), makes of several processes' steps
    those of one (`processes`), reads streams, and writes each checkpoint as a whole.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.receipt: FreezeReceipt | None = None  # made when training starts, unless one is given
        self.one_modality = False  # batches of samples with the same kinds of media, see `GroupedSampler`
        self.features: FeatureCache | None = None  # what frozen encoders give, kept on disk
        self.groups: list[OptimSpec] = []  # learning rates and weight decay by names of parameters

    def train(self, *args, **kwargs):
        self.receipt = self.receipt or FreezeReceipt(self.model)
        with self.features or nullcontext():
            return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        super().log({**logs, **(self.features.counts if self.features else {})}, *args, **kwargs)

    def create_optimizer(self, model=None):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self.groups:
            own = self.model if model is None else model
            split_groups(optimizer, self.groups, own, self.get_decay_parameter_names(own))
            if any(spec.muon for spec in self.groups):
                self.optimizer = optimizer = MuonBeside(optimizer)
                optimizer.register_step_pre_hook(self._leave_unused)
        if is_new and self.is_world_process_zero() and not any(group["lr"] for group in optimizer.param_groups):
            logger.warning(f"{self.title}: the learning rate of all that is trained is 0: nothing will be learnt")
        return optimizer

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Weights of a checkpoint and, which transformers would pass over, the adapter beside them."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        own: Any = self.model if model is None else model
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


__all__ = ["XLLMTrainer"]

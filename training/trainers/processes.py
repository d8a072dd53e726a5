# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the processes of one run (`torchrun`, `accelerate launch`) do for each other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from transformers import Trainer
from transformers.utils import logging

from xllm.modeling_xllm.cformer import world_size
from xllm.modeling_xllm.modeling_encoders import is_trainable
from xllm.modeling_xllm.tower_sources import tower_of


logger = logging.get_logger(__name__)

# Evaluating a large model may take longer than any collective should.
PATIENCE = timedelta(days=30)


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def first_alone() -> Iterator[bool]:
    """True on the first process; the others wait, however long it takes, until that has come to the block's end."""
    if world_size() == 1:
        yield True
        return
    group: Any = distributed.new_group(backend="gloo", timeout=PATIENCE)
    yield distributed.get_rank() == 0
    distributed.barrier(group=group)
    distributed.destroy_process_group(group)


def users_of_parameters(model: Any) -> dict[str, tuple[str, ...]]:
    """Trained parameter of towers and interfaces -> the modalities that use it, a shared converter's included."""
    rows, names = model.config.modalities, dict(model.named_parameters())
    found: dict[str, tuple[str, ...]] = {}
    for name, parameter in names.items():
        pieces: list[str] = [*name.removeprefix("module.").split("."), "", "", ""]
        (_, group, owner), rest = pieces[:3], pieces[3:]
        if not parameter.requires_grad:
            continue
        if group == "interfaces":
            path = ".".join(part for part in rest if part)
            sharing = [
                other
                for other, row in rows.items()
                if row.shares_converter_with == owner and path.startswith("converter.")
                # its own query tokens, say, are not the owner's
                if name.replace(f".{owner}.{path}", f".{other}.{path}") not in names
            ]
            found[name] = tuple(sorted([owner, *sharing]))
        else:
            tower = f"{group}.{owner}" if group == "extra_towers" else group
            readers = [other for other, row in rows.items() if row.encoder and tower_of(row.encoder) == tower]
            if readers:
                found[name] = tuple(readers)
    return found


class SharedSteps(Trainer):
    """Steps of several processes that are those of one: what none of them has used since the last step stays as it is.

    A process that lacks a modality still has gradients for it, of zero (see `XLLMEncoderModel.stand_in`), by which an
    optimizer would forget its moments and decay the weights. Groups of parameters say by whom they are used.
    """

    model: Any
    _own: torch.Tensor | None = None  # 1 for each modality that this process has used since the last step
    _used: torch.Tensor | None = None  # the same over all processes

    def create_accelerator_and_postprocess(self):
        """Every process reads its own batches: of a batch that is dealt out, accelerate cuts each tensor at as many
        entries as the first one has, and media are not as many as texts.
        """
        if self.args.accelerator_config.dispatch_batches is None:
            self.args.accelerator_config.dispatch_batches = False
        super().create_accelerator_and_postprocess()

    def train(self, *args, **kwargs):
        if self.args.world_size > 1:
            for name, module in self.model.named_modules():
                if getattr(module, "layerdrop", 0) and is_trainable(module):
                    logger.warning(f"{name}: layerdrop is off; several processes must run the same layers")
                    module.layerdrop = 0.0
        return super().train(*args, **kwargs)

    def create_optimizer(self, model=None):
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        own: Any = self.model if model is None else model
        if is_new and isinstance(optimizer, torch.optim.Optimizer) and hasattr(own.config, "modalities"):
            _split_by_users(optimizer, own)
            optimizer.register_step_pre_hook(self._leave_unused)
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.args.world_size > 1 and hasattr(self.model.config, "modalities"):
            self._count(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def _count(self, inputs: dict) -> None:
        names = [row.input_name for row in self.model.config.modalities.values()]
        held = torch.tensor([float(inputs.get(name) is not None) for name in names], device=self.args.device)
        self._own = held if self._own is None else torch.maximum(self._own, held)
        if self.accelerator.sync_gradients:
            self._used, self._own = self.accelerator.reduce(self._own), None

    def _leave_unused(self, optimizer, args, kwargs) -> None:
        if self._used is None:
            return
        used = {name for name, count in zip(self.model.config.modalities, self._used.tolist()) if count}
        for group in optimizer.param_groups:
            if (users := group.get("modalities")) and not used.intersection(users):
                for parameter in group["params"]:
                    parameter.grad = None


def _split_by_users(optimizer: torch.optim.Optimizer, model: Any) -> None:
    users = users_of_parameters(model)
    by_id = {id(parameter): users.get(name, ()) for name, parameter in model.named_parameters()}
    groups: dict[tuple, dict] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            key = (number, by_id.get(id(parameter), ()))
            new = {**group, "params": [], "modalities": list(key[1])}
            groups.setdefault(key, new)["params"].append(parameter)
    optimizer.param_groups[:] = groups.values()


__all__ = ["SharedSteps", "first_alone", "is_first", "users_of_parameters"]

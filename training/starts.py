# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What an interface starts a stage from, if not from what it holds: random weights (the `reset` key of a stage)."""

from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedModel

from xllm.modeling_xllm.weight_files import copy_tensors
from xllm.modeling_xllm.x2l_interfaces import X2LInterface
from xllm.training.stages import StageError, resolve_modalities


def check_reset(config, names: Iterable[str], modalities: Iterable[str]) -> None:
    """Raises a `StageError` if a row that is to start anew does not exist, or would not be trained."""
    resolve_modalities(config, list(names))
    if idle := [name for name in names if name not in modalities]:
        raise StageError(f"reset: this stage does not train {idle[0]}; add it to modalities, or leave it out of reset")


@torch.no_grad()
def reset_interfaces(model: PreTrainedModel, names: Iterable[str]) -> None:
    """Give interfaces the random weights that a new model would have; a converter of another row stays."""
    for name in names:
        row = model.config.modalities[name]
        new = X2LInterface(row, model.config.row_of_converter(name))
        _initialise(new, model)
        copy_tensors(new.state_dict(), model.model.interfaces[name].state_dict(), f"reset: {name}")


def _initialise(module: nn.Module, owner: PreTrainedModel) -> None:
    """Each module's weights as the model that it is in makes them; transformers does so for whole models only."""
    for child in module.children():
        _initialise(child, child if isinstance(child, PreTrainedModel) else owner)
    owner._init_weights(module)


__all__ = ["check_reset", "reset_interfaces"]

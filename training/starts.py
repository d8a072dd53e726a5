# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What an interface starts a stage from, if not from what it holds: random weights, or what another has learnt."""

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


def start_from(model: PreTrainedModel, init_from: dict[str, str]) -> None:
    """Give an interface what another has learnt (video's stage 2 starts from the image interface, paper sec. 3.2)."""
    for name, other in init_from.items():
        own, given = (model.model.interfaces[row].state_dict() for row in (name, other))
        copy_tensors({key: given[key] for key in own.keys() & given.keys()}, own, f"init_from: {other} for {name}")


def _initialise(module: nn.Module, owner: PreTrainedModel) -> None:
    """Each module's weights as the model that it is in makes them; transformers does so for whole models only."""
    for child in module.children():
        _initialise(child, child if isinstance(child, PreTrainedModel) else owner)
    owner._init_weights(module)


__all__ = ["check_reset", "reset_interfaces", "start_from"]

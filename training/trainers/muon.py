# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Muon for the matrices of linear layers, beside the optimizer that trains everything else (`optim` of a stage).

Muon (K. Jordan et al., 2024; `torch.optim.Muon`) steps along the orthogonalised momentum of a matrix. Interfaces that
start from random weights need about a third of AdamW's steps with it.
"""

from typing import Any

import torch
from torch import nn


def matrices_of(model: nn.Module) -> set[int]:
    """`id` of each parameter that is the matrix of a linear layer; tables of embeddings are none."""
    return {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Linear)}


def muon_settings() -> dict[str, Any]:
    """What a group of matrices holds beside its own rate and decay."""
    return {**torch.optim.Muon([torch.empty(1, 1)]).defaults, "muon": True}


class MuonBeside(torch.optim.Optimizer):
    """`torch.optim.Muon` for the groups that are marked `muon`, and another optimizer for the other ones.

    Groups and state are those of one optimizer, as the Trainer, its schedules and its checkpoints know it.
    """

    def __init__(self, others: torch.optim.Optimizer):
        super().__init__(others.param_groups, {})
        matrices = [parameter for group in self.param_groups if group.get("muon") for parameter in group["params"]]
        self.others, self.muon = others, torch.optim.Muon(matrices)

    def step(self, closure=None):
        """One step of both; returns what `closure` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in (self.others, self.muon):
            own = [group for group in self.param_groups if group.get("muon", False) is (optimizer is self.muon)]
            optimizer.state, optimizer.param_groups = self.state, own  # loading a state has made new ones
            if own:
                optimizer.step()
        return loss


__all__ = ["MuonBeside", "matrices_of", "muon_settings"]

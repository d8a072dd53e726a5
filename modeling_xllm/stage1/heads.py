# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The throw-away heads of a stage-1 model (paper section 3.2): kept in a file of their own, never inside the interface."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


class StageOneHeadsMixin:
    """For models whose `model` is the composite's encoder model: everything beside it is thrown away after stage 1."""

    heads_name: str  # file of the heads

    def interface_state_dict(self) -> dict[str, torch.Tensor]:
        """The interface (and the one whose converter it shares), under the keys the composite model has."""
        return {key: value for key, value in self.state_dict().items() if key.startswith("model.interfaces.")}

    def heads_state_dict(self) -> dict[str, torch.Tensor]:
        """What stage 1 throws away."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith("model.")}

    def save_heads(self, folder: str | os.PathLike) -> Path:
        """Writes `heads_state_dict` to a file of its own, beside the interface's checkpoint; returns its path."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        path = Path(folder, self.heads_name)
        save_file({key: value.contiguous() for key, value in self.heads_state_dict().items()}, path)
        return path

    @torch.no_grad()
    def load_heads(self, folder: str | os.PathLike) -> None:
        """Reads what `save_heads` wrote, to continue stage 1.

        Raises:
            ValueError: a key is missing or unexpected, or a shape differs; the message lists them.
        """
        tensors, own = load_file(Path(folder, self.heads_name)), self.heads_state_dict()
        shapes = {key for key in own if key in tensors and own[key].shape != tensors[key].shape}
        if own.keys() != tensors.keys() or shapes:
            missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
            raise ValueError(
                f"{self.heads_name} does not fit: missing {missing}, unexpected {unexpected}, other shapes "
                f"{sorted(shapes)}"
            )
        for key, value in own.items():
            value.copy_(tensors[key])


__all__ = ["StageOneHeadsMixin"]

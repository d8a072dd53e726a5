# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Reading a published `.pth` file: its tensors, memory-mapped, and nothing of it is ever run.

The authors' runner stores `{"model", "optimizer", "config", "scaler", "epoch"}`, as LAVIS does, and "config" may be an
object of a library that is not installed, which PyTorch's weights-only loader refuses. Here every class or function
that it names is replaced by one inert class: none of them is imported, let alone called.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from xllm.modeling_xllm.weight_files import StageCheckpointError


class ConversionError(StageCheckpointError):
    """A published file cannot be read, or is not what it is taken for."""


class _Inert:
    """Stands for any foreign class or function; what it makes is plain data, which the loader may fill like a dict."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


def read_pth(path: str | Path) -> dict[str, torch.Tensor]:
    """State dict of a file that `torch.save` wrote (alone, or under "model"), on the CPU and memory-mapped. No such
    file, no checkpoint, half of one, or weights that are no tensors are a `ConversionError`."""
    path = Path(path)
    if not path.is_file():
        raise ConversionError(f"{path}: no such file")
    is_zip = zipfile.is_zipfile(path)  # False for torch.save before 1.6, which cannot be mapped, and for half a file
    try:
        foreign = get_unsafe_globals_in_checkpoint(path) if is_zip else []
        with safe_globals([(_Inert, name) for name in foreign]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, OSError) as error:
        if not is_zip:
            raise ConversionError(f"{path}: not a file that torch.save wrote, or cut short") from error
        raise ConversionError(
            f"{path}: damaged, or holds objects beside its tensors that cannot be skipped, and it is never unpickled "
            "here. If you trust it, keep its weights alone: "
            "torch.save({'model': torch.load(FILE, weights_only=False)['model']}, NEW_FILE)"
        ) from error
    weights = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(weights, dict) or not weights:
        raise ConversionError(f"{path}: holds a {type(weights).__name__}, expected a state dict (name -> tensor)")
    if other := [str(name) for name, value in weights.items() if not isinstance(value, torch.Tensor)]:
        raise ConversionError(f"{path}: {len(other)} of its weights are not tensors: {', '.join(other[:3])}")
    return weights

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Where a checkpoint comes from, and proof that what was frozen has not moved.

`config.lineage` has an entry per stage: the interfaces' fingerprint before ("parent") and after ("weights"), the
data's, and that of the frozen tensors. An entry's "parent" is the "weights" of the one before, so the chain can be
checked; where interfaces of several runs were put together, their entries stand one run after the other. An entry with
"words" is of no training: an interface has kept the head of its stage 1 (`starts.keep_words`), so many words.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from xllm.modeling_xllm.weight_files import write_json
from xllm.processing.conversations import part_source
from xllm.training.adapters import adapter_of, merge_lora
from xllm.training.data.samples import Sample, file_name
from xllm.training.stages import adapter_parameters, frozen_tensors


RECEIPT_NAME = "frozen.json"
MOST_HASHERS = 8  # threads
PACKAGE = "xllm-transformers"


class FrozenTensorError(RuntimeError):
    """A tensor that was declared frozen has changed."""


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 over type, shape and bytes."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def raise_if_moved(moved: list[str]) -> None:
    """Raises a `FrozenTensorError` that names some of the frozen tensors that have `moved`, if any have."""
    if moved:
        some = ", ".join(moved[:3]) + (" ..." if len(moved) > 3 else "")
        raise FrozenTensorError(
            f"{len(moved)} frozen tensors have moved, nothing was saved: {some}; only what freeze_for_stage "
            "declares may be trained"
        )


def over(hashes: dict[str, str]) -> str:
    """SHA-256 over names and hashes."""
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


class FreezeReceipt:
    """Hashes of every frozen tensor of `model` (see `frozen_tensors`), taken now, to be checked after training."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.before = self._hashes()
        self.checked: dict | None = None
        self.merged: list[str] = []  # frozen tensors that an adapter was put into after the check

    def _hashes(self) -> dict[str, str]:
        tensors = dict(sorted(frozen_tensors(self.model).items()))
        with ThreadPoolExecutor(min(MOST_HASHERS, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter
            return dict(zip(tensors, pool.map(tensor_digest, tensors.values())))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names and hashes of what was frozen."""
        return over(self.before)

    def check(self) -> dict:
        """Compare with now: `{"tensors": count, "sha256": over names and hashes}`.

        Raises:
            FrozenTensorError: a tensor has moved, or is no longer frozen; the message names it.
        """
        after = self._hashes()
        raise_if_moved(sorted(name for name, value in self.before.items() if after.get(name) != value))
        self.checked = {"tensors": len(after), "sha256": over(after)}
        return self.checked

    def write(self, folder: str | Path) -> Path:
        """Store the hashes before and after, as last checked (a large model is not hashed twice), as `frozen.json`."""
        checked = self.checked or self.check()
        receipt: dict[str, Any] = {"before": self.fingerprint, "after": checked["sha256"], "tensors": self.before}
        if self.merged:
            receipt["merged"] = self.merged
        path = Path(folder, RECEIPT_NAME)
        write_json(path, receipt)
        return path


def interfaces_fingerprint(model: Any) -> str:
    """SHA-256 over names, types, shapes and bytes of all interfaces of an X-LLM."""
    tensors = model.model.interfaces.state_dict()
    return over({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def adapter_fingerprint(model: Any) -> str | None:
    """SHA-256 over names, types, shapes and bytes of the adapter of an X-LLM; `None` where it has none."""
    names = set(adapter_parameters(model))
    tensors = {name: parameter for name, parameter in model.named_parameters() if name in names}
    return over({name: tensor_digest(tensor) for name, tensor in tensors.items()}) if tensors else None


def adapter_entry(model: Any, parent: str | None, receipt: FreezeReceipt, merge: bool) -> dict | None:
    """What the lineage says of the adapter: `{"parent", "weights", "r", ...}`, fingerprints and fields; `None` without
    one. With `merge` it is put into the language model, the receipt being checked, and "merged" says so.
    """
    weights, fields = adapter_fingerprint(model), adapter_of(model)
    if fields is None:
        return None
    if merge:
        receipt.merged = merge_lora(model)
    return {"parent": parent, "weights": weights, "merged": merge, **fields}


def data_fingerprint(samples: Iterable[Sample]) -> dict:
    """`{"names", "samples", "sha256"}` of a training set: over its texts and file names, not over the media's bytes.

    Two folders with the same data file have the same fingerprint: of a path only the last part counts.
    """
    digest, sources = hashlib.sha256(), []
    for sample in samples:
        sources.append(sample.source)
        if sample.messages is None:
            content = [[_portable(part) for part in sample.media], sample.prompts, sample.answers]
        else:
            content = [
                [
                    turn["role"],
                    [_portable(part) for part in turn["content"]],
                    *([turn["loss"]] if "loss" in turn else []),
                ]
                for turn in sample.messages
            ]
        if sample.equivalents is not None:
            content = [content, sample.equivalents]
        digest.update(json.dumps(content, ensure_ascii=False).encode() + b"\n")
    names = [name for name in dict.fromkeys(sources) if name]
    return {"names": names, "samples": len(sources), "sha256": digest.hexdigest()}


def _portable(part: dict) -> list[str]:
    """A content part as its type and its text or file name."""
    if part["type"] == "text":
        return ["text", part["text"]]
    return [part["type"], file_name(part_source(part))]


def lineage_entry(
    stage: int, modalities: list[str], parent: str, weights: str, data: dict, frozen: dict, adapter: dict | None = None
) -> dict:
    """One entry of `config.lineage`; see the module's first lines."""
    entry = {"stage": stage, "modalities": modalities, "parent": parent, "weights": weights, "data": data}
    try:
        package = f"{PACKAGE} {version(PACKAGE)}"
    except PackageNotFoundError:  # run from a checkout
        package = PACKAGE
    entry |= {} if adapter is None else {"adapter": adapter}
    return {**entry, "frozen": frozen, "package": package}


__all__ = ["FreezeReceipt", "FrozenTensorError", "adapter_entry", "adapter_fingerprint", "data_fingerprint"]
__all__ += ["interfaces_fingerprint", "lineage_entry", "over", "raise_if_moved"]

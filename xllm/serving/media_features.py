# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Encoded media of several conversations, each encoded once: kept by content, for further turns and other clients."""

import hashlib
from collections import OrderedDict
from typing import Any

import torch
from torch.nn.functional import pad

from xllm.modeling_xllm.x2l_interfaces import X2LOutput, join_items


Item = tuple[torch.Tensor, torch.Tensor | None]  # input (1, ...) and mask (1, T) of one medium


class MediaFeatures:
    """What the media in the processor's outputs are to the language model.

    Args:
        most: bytes that are kept; what was not asked for longest goes first.
    """

    def __init__(self, model: Any, most: int):
        self._model, self._most, self.held = model, most, 0
        self._kept: OrderedDict[tuple[str, bytes], X2LOutput] = OrderedDict()
        self.hits = self.misses = 0

    def of(self, conversations: list[dict[str, torch.Tensor]]) -> dict[str, X2LOutput]:
        """`modality_features` of the processor's outputs for several conversations, in their order."""
        wanted: dict[str, list[bytes]] = {}
        new: dict[tuple[str, str | None], dict[bytes, Item]] = {}
        for name, row in self._model.config.modalities.items():
            for inputs in conversations:
                for item in items_of(inputs, row.input_name, row.mask_name):
                    digest = digest_of(item)
                    wanted.setdefault(name, []).append(digest)
                    known = (name, digest) in self._kept or digest in new.get((row.input_name, row.mask_name), {})
                    self.hits, self.misses = self.hits + known, self.misses + (not known)
                    if not known:
                        new.setdefault((row.input_name, row.mask_name), {})[digest] = item
        keys = [(name, digest) for name, digests in wanted.items() for digest in digests]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        for (input_name, mask_name), items in new.items():
            for group in same_shapes(items):
                found |= self._encode(input_name, mask_name, group)
        self._keep(found)
        return {name: _joined([found[name, digest] for digest in digests]) for name, digests in wanted.items()}

    def _encode(self, input_name: str, mask_name: str | None, items: dict[bytes, Item]) -> dict:
        values, masks = _batched([*items.values()])
        inputs = {input_name: values.to(self._model.device)}
        if mask_name is not None and masks is not None:
            inputs[mask_name] = masks.to(self._model.device)
        return {
            (name, digest): _one(features, place)
            for name, features in self._model.encode_media(inputs).items()
            for place, digest in enumerate(items)
        }

    def _keep(self, found: dict) -> None:
        for key, features in found.items():
            if key not in self._kept:
                self.held += features["embeddings"].nbytes
            self._kept[key] = features
            self._kept.move_to_end(key)
        while self.held > self._most:
            self.held -= self._kept.popitem(last=False)[1]["embeddings"].nbytes


def items_of(inputs: dict[str, torch.Tensor], input_name: str, mask_name: str | None) -> list[Item]:
    """The media among a processor's output, each without the padding behind it."""
    if input_name not in inputs:
        return []
    values, masks = inputs[input_name], inputs.get(mask_name or "")
    items: list[Item] = []
    for place in range(len(values)):
        value, mask = values[place : place + 1], None if masks is None else masks[place : place + 1]
        if mask is not None and mask.dim() == 2 and value.dim() > 1 and value.shape[1] == mask.shape[1]:
            real = int(mask[0].nonzero().max()) + 1 if mask.any() else 1
            value, mask = value[:, :real], mask[:, :real]
        items.append((value, mask))
    return items


def digest_of(item: Item) -> bytes:
    """The same for the same content."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in item:
        if tensor is not None:
            digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()


def same_shapes(items: dict[bytes, Item]) -> list[dict[bytes, Item]]:
    """Items that go in one batch: of one shape, where a mask does not say which part of them is real."""
    groups: dict[Any, dict[bytes, Item]] = {}
    for digest, (value, mask) in items.items():
        is_padded = mask is not None and mask.shape[1:] == value.shape[1:2]
        groups.setdefault(value.shape[2:] if is_padded else value.shape, {})[digest] = (value, mask)
    return [*groups.values()]


def _batched(items: list[Item]) -> tuple[torch.Tensor, torch.Tensor | None]:
    values, masks = [value for value, _ in items], [mask for _, mask in items if mask is not None]
    width = max(value.shape[1] for value in values) if values[0].dim() > 1 else 0
    values = [pad(v, (0, 0) * (v.dim() - 2) + (0, width - v.shape[1])) if v.dim() > 1 else v for v in values]
    if not masks:
        return torch.cat(values), None
    width = max(mask.shape[1] for mask in masks)
    return torch.cat(values), torch.cat([pad(mask, (0, width - mask.shape[1])) for mask in masks])


def _one(features: X2LOutput, place: int) -> X2LOutput:
    names = ("embeddings", "mask", "num_placeholders")  # what stands in a text
    return X2LOutput(**{name: features[name][place : place + 1].clone() for name in names})


def _joined(items: list[X2LOutput]) -> X2LOutput:
    found = items[0]
    for item in items[1:]:
        found = join_items(found, item)
    return found

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A modality of your own, in one file: the state of a robot, `{"type": "status", "path": "state.json"}`.

`xllm chat MODEL --module examples/status_modality.py ...` and every other command can read it then.
"""

import json
from pathlib import Path

import torch

from xllm.processing.media_kinds import MediaKind, register_media_kind


class StatusReader:
    """Files with a list of readings, `[[speed, angle], ...]`, to vectors and their mask."""

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        return cls(**json.loads(Path(folder, "status.json").read_text(encoding="utf-8")))

    def save_pretrained(self, folder, **kwargs):
        Path(folder, "status.json").write_text(json.dumps({"scale": self.scale}), encoding="utf-8")

    def load(self, source) -> torch.Tensor:
        rows = json.loads(Path(source).read_text(encoding="utf-8")) if isinstance(source, (str, Path)) else source
        return torch.as_tensor(rows, dtype=torch.float32)  # (readings, 2)

    def __call__(self, items, return_tensors="pt"):
        items = [self.load(item) * self.scale for item in items]
        masks = [torch.ones(len(item), dtype=torch.long) for item in items]
        padded = [torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) for rows in (items, masks)]
        return {"status_values": padded[0], "status_mask": padded[1]}  # (items, readings, 2), (items, readings)


ROW = {"converter": "linear", "encoder": None, "encoder_hidden_size": 2, "mask_name": "status_mask"}
register_media_kind(MediaKind("status", reader_class=StatusReader, row=ROW, extensions=(".json",)))

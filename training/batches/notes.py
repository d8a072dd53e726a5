# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What the data loader of a run calls: batches that know their samples, and what happens to a broken one.

A batch that cannot be made is taken apart: each sample is made a batch of its own, so that the error has the place of
the sample whose it is. With `on_error: skip` the next good sample takes its place; nothing is done twice otherwise.
"""

from collections.abc import Sequence
from typing import Any

import torch

from xllm.training.batches.collator import IGNORE, XLLMDataCollator
from xllm.training.data.dataset import SampleError, describe


NOTES = "notes"  # key of a batch: {"where": places of its samples, "source": names of their sources}


class NamedBatches:
    """A collator whose batches have the places of their samples under "notes".

    Args:
        collator (`XLLMDataCollator`).
        one_token_per_frame (`bool`): the CIF fires at most one token per frame, so that a clip needs as many frames as
            its text has tokens.

    Raises:
        SampleError: a sample is broken and its data set raises; or all of them are; or samples that are good alone
            make no batch together.
    """

    def __init__(self, collator: XLLMDataCollator, one_token_per_frame: bool = False):
        self.collator, self.one_token_per_frame = collator, one_token_per_frame

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        try:
            batch = self._batch(samples)
        except Exception:  # noqa: BLE001  # of any kind: a processor is another library's
            samples = [self._usable(sample) for sample in samples]
            try:
                batch = self._batch(samples)
            except Exception as error:
                where = ", ".join(str(sample.get("where", "a sample")) for sample in samples)
                raise SampleError(f"{where}: no batch together: {describe(error)}") from error
        return {
            **batch,
            NOTES: {key: [str(sample.get(key, "?")) for sample in samples] for key in ("where", "source")},
        }

    def _batch(self, samples: Sequence[dict]) -> dict[str, Any]:
        batch = self.collator(samples)
        if "labels" in batch and not (batch["labels"] != IGNORE).any():
            raise ValueError("no token of the answer carries loss")
        for name, value in batch.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.isfinite().all():
                raise ValueError(f"{name} holds NaN or Inf")
        if self.one_token_per_frame:
            self._check_clips(batch)
        return batch

    def _check_clips(self, batch: dict[str, Any]) -> None:
        row = self.collator.processor.rows[self.collator.modality]
        for frames, tokens in zip(batch[row.mask_name].sum(1).tolist(), (batch["labels"] != IGNORE).sum(1).tolist()):
            if (room := row.num_placeholders(int(frames))) < tokens:
                raise ValueError(f"{tokens} tokens of text for {room} frames of the encoder: it fires one per frame")

    def _usable(self, sample: dict) -> dict:
        """The sample, or the one that its data set gives for it."""
        while True:
            try:
                self._batch([sample])
            except Exception as error:  # noqa: BLE001
                if "data" not in sample:
                    raise
                sample = sample["data"].instead_of(sample, error)
            else:
                return sample


__all__ = ["NOTES", "NamedBatches"]

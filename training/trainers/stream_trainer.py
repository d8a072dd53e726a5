# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""The HF Trainer over a `StreamingDataset`: its own loader, and its state in every checkpoint.

accelerate's loaders are not used: they would slice or skip batches of a stream that is dealt to the ranks already
(`dispatch_batches`, `IterableDatasetShard`). To the Trainer a stream is one epoch of `max_steps`. When a run goes on,
nothing is read again to be skipped: each checkpoint holds where every lane stands.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from xllm.training.data.media_rows import DataError
from xllm.training.saving.interruption import PatientWorkers
from xllm.training.streams.streaming import StreamingDataset


STATE_NAME = "stream_state.json"


def _unchanged(made: Any) -> Any:
    return made


class StreamLoader:
    """Batches of a stream for one rank, without end; workers start when it is iterated."""

    def __init__(
        self, dataset: StreamingDataset, collator, args, batch_size: int, rank: int, ranks: int, worker_init=None
    ):
        self.dataset, self.args, dataset.collate = dataset, args, collator
        self.batch_size, self.rank, self.ranks, self.worker_init = batch_size, rank, ranks, worker_init

    def __iter__(self) -> Iterator[Any]:
        args = self.args
        workers = self.dataset.place(self.rank, self.ranks, self.batch_size, args.dataloader_num_workers)
        loader = DataLoader(
            self.dataset,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
            worker_init_fn=self.worker_init,
            generator=torch.Generator().manual_seed(args.seed),  # a loader draws from it, not from the model's
        )
        for made in loader:
            self.dataset.consume(made)
            yield made.batch


class _StreamEpoch(TrainerCallback):
    """`state.epoch` of a run that goes on: the Trainer would count its steps from 0 again."""

    def on_step_end(self, args, state, control, **kwargs):
        state.epoch = state.global_step / state.max_steps


class StreamTrainer(PatientWorkers):
    """A Trainer whose `train_dataset` may be a `StreamingDataset`."""

    @property
    def stream(self) -> StreamingDataset | None:
        """The training set, if it is a stream."""
        return self.train_dataset if isinstance(self.train_dataset, StreamingDataset) else None

    def get_train_dataloader(self):
        """The Trainer's loader, or of a stream its own."""
        if self.stream is None:
            return super().get_train_dataloader()
        self.args.ignore_data_skip = True
        if not any(isinstance(callback, _StreamEpoch) for callback in self.callback_handler.callbacks):
            self.callback_handler.callbacks.insert(0, _StreamEpoch())  # before those that read the epoch
        ranks, rank = self.accelerator.num_processes, self.accelerator.process_index
        how = self.args, self._train_batch_size, rank, ranks, self.worker_init()
        return StreamLoader(self.stream, self.data_collator, *how)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.stream is not None and resume_from_checkpoint is not None:
            path = Path(resume_from_checkpoint, STATE_NAME)
            try:
                self.stream.load_state_dict(json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError as error:
                raise DataError(f"{path}: no such file; the checkpoint was not made with `data.streaming`") from error
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(f"{path}: not the state of a stream: {error}") from error
        return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """The state of the stream, of all ranks, beside that of the random generators."""
        super()._save_rng_state(output_dir)
        if self.stream is not None:
            ranks = gather_object([self.stream.progress()])
            if self.args.should_save:
                state = json.dumps(self.stream.state_dict(ranks), separators=(",", ":"))
                Path(output_dir, STATE_NAME).write_text(state, encoding="utf-8")


__all__ = ["STATE_NAME", "StreamLoader", "StreamTrainer"]

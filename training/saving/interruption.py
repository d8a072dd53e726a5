# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""SIGTERM and Ctrl-C: a run saves a checkpoint after its step and ends; the second time it stops at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback


class Interrupted(KeyboardInterrupt):
    """A signal has ended the run; `status` is the exit status that shells give for it."""

    def __init__(self, signum: int, where: str = "interrupted"):
        self.status = 128 + signum
        super().__init__(f"{signal.Signals(signum).name}: {where}; go on with --resume")


class Interruption(TrainerCallback):
    """While it is entered, signals end the run: during training after the step, with a checkpoint; else at once.

    All ranks stop after the same step: each tells the others of its signals, which costs nothing but a message between
    the processors that is waited for one step later.
    """

    def __init__(self):
        self.signum, self.step, self.is_training = 0, 0, False
        self._before: dict[int, Any] = {}
        self._pid, self._group = os.getpid(), None
        self._work, self._flag = None, torch.tensor(0)

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGTERM, signal.SIGINT):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *error) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a worker of the data loader: the run ends it
        if not self.is_training or self.signum:
            raise Interrupted(signum)
        self.signum = signum
        if os.environ.get("RANK", "0") == "0":
            os.write(2, f"\n{signal.Signals(signum).name}: saving after this step; again to stop at once\n".encode())

    def on_train_begin(self, args, state, control, **kwargs):
        """From now on a signal waits for the end of the step."""
        self.is_training = True
        if args.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop, if any rank was told to; a run that is at its end finishes."""
        if self._is_wanted() and state.global_step < state.max_steps:
            self.step = state.global_step
            control.should_save = control.should_training_stop = True
            control.should_evaluate &= args.load_best_model_at_end  # there may be seconds left

    def on_epoch_end(self, args, state, control, **kwargs):
        """A run that stops does not evaluate first."""
        if self.step:
            control.should_save = control.should_evaluate = False

    def on_train_end(self, args, state, control, **kwargs):
        """Signals end the run at once again."""
        self.is_training = False
        if self._work is not None:
            self._work.wait()

    def _is_wanted(self) -> bool:
        if self._group is None:
            return bool(self.signum)
        if self._work is not None:
            self._work.wait()
            self.signum = max(self.signum, int(self._flag))
        was_told = bool(self._flag)
        self._flag = torch.tensor(self.signum)
        self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return was_told

    def check(self, folder: os.PathLike | str) -> None:
        """Raises `Interrupted` if the training was ended by a signal."""
        if self.signum:
            done = f"stopped after step {self.step}, saved in {folder}" if self.step else f"stopped; {folder} is saved"
            raise Interrupted(self.signum, done)


class Patience:
    """`worker_init_fn` of a data loader: while the run is training, its workers live until the run ends them.

    Args:
        before: another `worker_init_fn`, called too.
        training (`torch.Tensor`): of one number in shared memory; 0 when the run is over, or has failed.
    """

    def __init__(self, before, training: torch.Tensor):
        self.before, self.training = before, training

    def __call__(self, worker: int) -> None:
        """Called in the worker."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._handle)
        if self.before is not None:
            self.before(worker)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if not self.training:
            os._exit(0)


class PatientWorkers(Trainer):
    """A Trainer whose data loaders' workers leave the signals of a run to it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._training = torch.zeros(()).share_memory_()

    def worker_init(self, before=None) -> Patience:
        """The `worker_init_fn` of a loader; `before` is another one."""
        return Patience(before, self._training)

    def train(self, *args, **kwargs):
        """`Trainer.train`; when it is over, or has failed, the workers may be ended."""
        self._training.fill_(1)
        try:
            return super().train(*args, **kwargs)
        finally:
            self._training.fill_(0)

    def _get_dataloader(self, *args, **kwargs):
        loader = super()._get_dataloader(*args, **kwargs)
        base = getattr(loader, "base_dataloader", loader)
        # Its own random numbers: how often a loader draws depends on its workers, and dropout would with it.
        base.generator = torch.Generator().manual_seed(self.args.seed)
        base.worker_init_fn = self.worker_init(base.worker_init_fn)
        return loader


__all__ = ["Interrupted", "Interruption", "PatientWorkers"]

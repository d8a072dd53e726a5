# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a signal does to a run, step by step; whole runs that are told to stop: `test_resume.py`."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainingArguments

from xllm.training.saving import interruption
from xllm.training.saving.interruption import Interrupted, Interruption, Patience, PatientWorkers


SIGNALS = (signal.SIGTERM, signal.SIGINT)
ARGS = SimpleNamespace(world_size=1, load_best_model_at_end=False)


def step_of(watch, step, last=10, args=ARGS, **control):
    control = TrainerControl(**control)
    watch.on_step_end(args, SimpleNamespace(global_step=step, max_steps=last), control)
    return control


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_before_the_training_ends_it_at_once(signum, tmp_path):
    def run():
        with Interruption() as watch:
            watch.check(tmp_path)
            os.kill(os.getpid(), signum)

    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(Interrupted, match=f"{signum.name}: interrupted; go on with --resume") as stopped:
        run()
    assert stopped.value.status == 128 + signum
    assert [signal.getsignal(each) for each in SIGNALS] == before


@pytest.mark.parametrize("signum", SIGNALS)
def test_during_training_it_waits_for_the_step(signum, capfd, tmp_path):
    with Interruption() as watch:
        watch.on_train_begin(ARGS, None, None)
        control = step_of(watch, 2, should_evaluate=True)
        assert not control.should_save
        assert not control.should_training_stop
        assert control.should_evaluate
        os.kill(os.getpid(), signum)
        control = step_of(watch, 3, should_evaluate=True)
        assert control.should_save
        assert control.should_training_stop
        assert not control.should_evaluate
        watch.on_epoch_end(ARGS, None, control)
        assert not control.should_save, "the step has been saved already"
        with pytest.raises(Interrupted, match=f"stopped after step 3, saved in {tmp_path}; go on"):
            watch.check(tmp_path)
        with pytest.raises(Interrupted, match="interrupted"):
            os.kill(os.getpid(), signum)
    assert f"{signum.name}: saving after this step; again to stop at once" in capfd.readouterr().err


def test_behind_the_training_it_ends_the_run_again(tmp_path):
    with Interruption() as watch:
        watch.on_train_begin(ARGS, None, None)
        watch.on_train_end(ARGS, None, None)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_at_its_last_step_a_run_finishes(tmp_path):
    with Interruption() as watch:
        watch.on_train_begin(ARGS, None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        control = step_of(watch, 10, last=10, should_evaluate=True, should_save=True)
        assert not control.should_training_stop
        watch.on_epoch_end(ARGS, None, control)
        assert control.should_save
        assert control.should_evaluate
        with pytest.raises(Interrupted, match=f"SIGTERM: stopped; {tmp_path} is saved"):
            watch.check(tmp_path)


def test_the_best_model_needs_its_evaluation():
    with Interruption() as watch:
        watch.on_train_begin(ARGS, None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        best = SimpleNamespace(world_size=1, load_best_model_at_end=True)
        assert step_of(watch, 3, args=best, should_evaluate=True).should_evaluate
        assert not step_of(watch, 3, args=best).should_evaluate


def test_only_the_first_rank_says_it(capfd, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Interruption() as watch:
        watch.on_train_begin(ARGS, None, None)
        os.kill(os.getpid(), signal.SIGTERM)
    assert capfd.readouterr().err == ""


def test_a_worker_that_was_forked_leaves_signals_to_the_run(monkeypatch):
    with Interruption() as watch:
        monkeypatch.setattr(watch, "_pid", os.getpid() + 1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.signum == 0


def test_another_thread_handles_no_signals():
    before, seen = [signal.getsignal(each) for each in SIGNALS], []

    def run():
        with Interruption():
            seen.append([signal.getsignal(each) for each in SIGNALS])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


class Message:
    """An all-reduce whose other ranks have the number `theirs`, known when it is waited for."""

    def __init__(self, flag, theirs):
        self.flag, self.theirs, self.is_known = flag, theirs, False

    def wait(self):
        self.is_known = True
        self.flag.fill_(max(int(self.flag), self.theirs))


def test_ranks_stop_after_the_same_step(monkeypatch):
    """The signal of another rank is known one step after it was sent, our own is kept back as long."""
    theirs, messages = iter([0, 0, signal.SIGTERM, 0, 0]), []

    def all_reduce(flag, how, group, async_op=False):
        assert (how, group) == (interruption.dist.ReduceOp.MAX, "gloo")
        messages.append(Message(flag, next(theirs)))
        return messages[-1] if async_op else messages[-1].wait()

    monkeypatch.setattr(interruption.dist, "new_group", lambda backend: backend)
    monkeypatch.setattr(interruption.dist, "all_reduce", all_reduce)
    two = SimpleNamespace(world_size=2, load_best_model_at_end=False)
    with Interruption() as watch:
        watch.on_train_begin(two, None, None)
        group = watch._group
        watch.on_train_begin(two, None, None)
        assert watch._group is group == "gloo"
        stopped = [step_of(watch, step, args=two).should_training_stop for step in range(1, 5)]
        assert stopped == [False, False, False, True]
        assert watch.signum == signal.SIGTERM
        assert [message.is_known for message in messages] == [True, True, True, False]
        watch.on_train_end(two, None, None)
        assert messages[-1].is_known, "a run must not end with a message on its way"
    theirs = iter([0, 0, 0])
    with Interruption() as watch:
        watch.on_train_begin(two, None, None)
        os.kill(os.getpid(), signal.SIGINT)
        assert [step_of(watch, step, args=two).should_training_stop for step in (1, 2)] == [False, True]


def test_a_worker_lives_while_its_run_is_training(monkeypatch):
    training, called, ended = torch.ones((), dtype=torch.long), [], []
    monkeypatch.setattr(interruption.os, "_exit", ended.append)
    before = [signal.getsignal(each) for each in SIGNALS]
    try:
        Patience(called.append, training)(3)
        assert called == [3]
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "of Ctrl-C the run alone takes notice"
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == []
        training.fill_(0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert ended == [0]
    finally:
        for each, handler in zip(SIGNALS, before):
            signal.signal(each, handler)


class Line(nn.Module):
    """A line that notes what its run's workers are told while it is trained."""

    def __init__(self, fails):
        super().__init__()
        self.slope, self.seen, self.fails = nn.Parameter(torch.ones(1)), [], fails

    def forward(self, x):
        self.seen.append(int(self.told))
        if self.fails:
            raise KeyError
        return {"loss": (self.slope * x).sum()}


@pytest.mark.parametrize("fails", [False, True])
def test_workers_are_told_whether_their_run_is_training(tmp_path, fails):
    model = Line(fails)
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none", max_steps=2, save_strategy="no", seed=7)
    trainer = PatientWorkers(model=model, args=args, train_dataset=[{"x": torch.ones(2)}] * 4)
    loader = trainer.get_train_dataloader()
    loader = getattr(loader, "base_dataloader", loader)
    assert loader.generator.initial_seed() == 7
    model.told = loader.worker_init_fn.training
    assert (model.told.is_shared(), int(model.told)) == (True, 0)
    assert callable(loader.worker_init_fn.before), "the Trainer's own, which seeds the worker"
    if fails:
        with pytest.raises(KeyError):
            trainer.train()
    else:
        assert trainer.train().global_step == 2
    assert model.seen == [1] * (1 if fails else 2)
    assert int(model.told) == 0

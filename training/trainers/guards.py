# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""A run that learns nothing, or nonsense, stops and says why.

Loss and gradient norm are looked at after every step, before the optimizer moves a weight. On a GPU nothing waits for
that: the two numbers travel to the host while the next step is computed, and a fused optimizer is told by a tensor on
the device to leave the weights as they are from the first bad step on. The batch of that step is then run again, to
find the first module whose output is not finite.
"""

import math
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object, send_to_device
from transformers import Trainer

from xllm.training.batches.notes import NOTES


FIRST_STEPS = 10  # in which some gradient must reach what is trained
IN_FLIGHT = 2  # steps that may be under way before one is looked at
OVERFLOWS = 30  # in a row; with float16 the first steps are too large until the scale has come down


class TrainingError(ValueError):
    """A run that was stopped because it learns nothing, or nonsense; the message has stage, step and samples."""


@dataclass
class _Step:
    number: int
    batches: list[dict]
    values: torch.Tensor  # the gradient norm, and the losses
    arrived: Any = None  # event after which `values` are there


class Guards(Trainer):
    """Stops at NaN and Inf in loss or gradients, and where no gradient arrives; see the module's first lines."""

    model: Any
    home: Any  # see EngineTrainer
    title = "training"
    learns = False  # whether a gradient has arrived, in this run or in the one it goes on with

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._batches: list[dict] = []
        self._step_losses: list[torch.Tensor] = []
        self._steps: deque[_Step] = deque()
        self._looked_at, self._overflows = 0, 0

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        return {key: value for key, value in inputs.items() if key != NOTES} if NOTES in inputs else inputs

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._batches.append(inputs)
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except ValueError as error:  # what the model says of its inputs
            raise TrainingError(self._message(self.state.global_step + 1, [inputs], str(error))) from error
        self._step_losses.append(loss)
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        value = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
        losses = [loss.detach().float().to(value.device) for loss in self._step_losses]
        values = torch.stack([value.detach().float(), *losses])
        step = _Step(self.state.global_step + 1, self._batches, values)
        self._batches, self._step_losses = [], []
        self._steps.append(step)
        if self._holds_still(values):
            step.values, step.arrived = _send(values)
        self._look(IN_FLIGHT if step.arrived is not None else 0)
        return norm

    def _holds_still(self, values: torch.Tensor) -> bool:
        """Whether the optimizer leaves the weights alone from a bad step on, so that the look at it may wait."""
        inner: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        if not self._may_wait(values) or self.accelerator.scaler is not None or not inner.defaults.get("fused"):
            return False
        bad = (~values.isfinite().all()).float()
        inner.found_inf = torch.maximum(bad, getattr(inner, "found_inf", bad))
        return True

    @staticmethod
    def _may_wait(values: torch.Tensor) -> bool:
        return values.is_cuda

    def _look(self, under_way: int) -> None:
        """Look at the steps whose numbers have arrived; at most so many may be left."""
        while self._steps:
            step = self._steps[0]
            if step.arrived is not None and not step.arrived.query():
                if len(self._steps) <= under_way:
                    return
                step.arrived.synchronize()
            self._steps.popleft()
            self._check(step)

    def _check(self, step: _Step) -> None:
        norm, *losses = step.values.tolist()
        self._looked_at += 1
        if all(math.isfinite(value) for value in (norm, *losses)):
            self._overflows = 0
            self.learns |= norm > 0
            if not self.learns and self._looked_at >= FIRST_STEPS:
                self._fail_without_gradient()
            return
        self._overflows += 1
        scaled = self.accelerator.scaler is not None and all(map(math.isfinite, losses))
        if scaled and self._overflows < OVERFLOWS:
            return  # the scaler leaves this step out
        loss = sum(losses)
        what = f"the gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        culprit = self._culprit(step.batches)
        names = gather_object(_names(step.batches))
        raise TrainingError(self._message(step.number, [{NOTES: {"where": names}}], f"{what}: {culprit}"))

    def _fail_without_gradient(self) -> None:
        trained = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        raise TrainingError(
            f"{self.title}: no gradient has reached any of the {len(trained)} trained tensors in the first "
            f"{self._looked_at} steps ({trained[0]}, ...): the data hold nothing that they read, or nothing to learn"
        )

    def _message(self, number: int, batches: list[dict], text: str) -> str:
        names = _names(batches)
        shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
        return f"{self.title}, step {number}: {text}; samples: {shown or 'unknown'}; nothing of this step was saved"

    def _culprit(self, batches: list[dict]) -> str:
        """What is first not finite: a weight, an input, the output of a module, the gradient of a weight.

        All processes look for the same at the same time: none may wait in a module that they run together for one that
        has found it already. An engine's weights may have moved; the model at home has those last saved.
        """
        model = self.accelerator.unwrap_model(self.model) if self.home is None else self.home
        inputs = [send_to_device(self._prepare_inputs(batch), model.device) for batch in batches]
        for look in (partial(_at_sight, model, inputs), *(partial(self._run_again, model, one) for one in inputs)):
            found = gather_object([look()])
            if text := next((text for text in found if text), ""):
                return text
        return "what is wrong is gone when the batch is run again" + (" from the last checkpoint" if self.home else "")

    def _run_again(self, model, inputs: dict) -> str:
        outputs: list[str] = []
        names = {module: name for name, module in model.named_modules()}

        def look(module, args, output) -> None:
            if not outputs and not _is_finite(output):
                outputs.append(names[module] or "the model")

        hooks = [module.register_forward_hook(look) for module in names]
        try:
            with self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
        except ValueError as error:
            return f"first in the output of {outputs[0]}" if outputs else str(error)
        finally:
            for hook in hooks:
                hook.remove()
        if outputs:
            return f"first in the output of {outputs[0]}"
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(loss, [parameter for _, parameter in trained], allow_unused=True)
        broken = [name for (name, _), gradient in zip(trained, gradients) if not _is_finite(gradient)]
        return f"the outputs are finite, the gradient of {broken[-1]} is not" if broken else ""

    def _save_checkpoint(self, model, trial) -> None:
        self._look(0)  # nothing of a bad step is saved over a good one
        super()._save_checkpoint(model, trial)

    def _finalize_training(self, *args, **kwargs):
        self._look(0)
        if self._looked_at and not self.learns:
            self._fail_without_gradient()
        return super()._finalize_training(*args, **kwargs)


def _send(values: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Numbers on their way from a GPU to the host, and the event after which they are there."""
    host, arrived = torch.empty_like(values, device="cpu", pin_memory=True), torch.cuda.Event()
    host.copy_(values, non_blocking=True)
    arrived.record()
    return host, arrived


def _at_sight(model: Any, batches: list[dict]) -> str:
    """The first weight or input that is not finite, in a few words."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not _is_finite(tensor):
            return f"{name} itself is not finite"
    inputs = [(name, tensor) for batch in batches for name, tensor in batch.items()]
    return next((f"the input {name} is not finite" for name, tensor in inputs if not _is_finite(tensor)), "")


def _names(batches: list[dict]) -> list[str]:
    return [name for batch in batches for name in batch.get(NOTES, {}).get("where", ())]


def _is_finite(value: Any) -> bool:
    """Whether no floating-point tensor in it holds NaN or Inf."""
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point() or value.itemsize < 2 or value.device.type == "meta":
            return True
        return bool(value.detach().isfinite().all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, (list, tuple)) else True


__all__ = ["Guards", "TrainingError"]

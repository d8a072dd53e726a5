# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Runs that hand the model to an engine, which holds it in parts or casts it: FSDP2, DeepSpeed's ZeRO-1 to ZeRO-3.

The engine gets a copy of the modules, which has tensors of its own once the engine has moved, cut or cast them. The
model itself, "at home", stays whole on every process: for each checkpoint, and at the end, it gets what was trained,
and is saved, evaluated and described as if there had been no engine. What is frozen is compared with it, not copied.
"""

import copy
import importlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import (
    deepspeed_load_checkpoint,
    is_deepspeed_available,
    unset_hf_deepspeed_config,
)
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from xllm.training.recipes.strict import RecipeError
from xllm.training.saving.lineage import raise_if_moved
from xllm.training.stages import frozen_tensors


# Embeddings of stage 1 whose matrix is used outside of them too: FSDP must not take them for a unit of its own.
TIED = "Blip2TextEmbeddings"
# By these variables accelerate tells itself of an engine; it sets them, and does not take them back.
SWITCHES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")
# What the keys of `trainer` say, where the file does not.
DEEPSPEED_DEFAULTS: dict[str, Any] = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "zero_force_ds_cpu_optimizer": False,  # the optimizer is the Trainer's own, wherever its state is kept
}


def import_quietly() -> None:
    """accelerate imports DeepSpeed where it is installed, which logs to standard output, where the results belong."""
    if is_deepspeed_available():
        if not torch.accelerator.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or every process says that it found no other
        with redirect_stdout(sys.stderr):
            importlib.import_module("deepspeed")


def deepspeed_settings(source: str | Mapping) -> dict:
    """The configuration of DeepSpeed, a JSON file or a mapping, with what the keys of `trainer` say filled in.

    Raises:
        RecipeError: DeepSpeed is not installed, the file cannot be read, or it has an optimizer of its own.
    """
    if not is_deepspeed_available():
        raise RecipeError("trainer.deepspeed: DeepSpeed is not installed: pip install 'xllm-transformers[deepspeed]'")
    try:
        given = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"trainer.deepspeed: {source} is not a JSON file that can be read: {error}") from error
    if not isinstance(given, Mapping) or not isinstance(given.get("zero_optimization"), Mapping):
        raise RecipeError(f"trainer.deepspeed: {source} has no zero_optimization; e.g. {{'stage': 2}}")
    if own := [key for key in ("optimizer", "scheduler") if key in given]:
        raise RecipeError(
            f"trainer.deepspeed: {source} has {own[0]!r} of its own, which would ignore learning rates by module and "
            "move what no process has used; leave it out and use the keys of trainer"
        )
    return {**DEEPSPEED_DEFAULTS, **given}


def engine_of(args: TrainingArguments) -> str:
    """ "fsdp", "zero1", "zero2", "zero3", or "" for a run whose processes all hold the model as it is."""
    if args.deepspeed_plugin is not None:
        return f"zero{args.deepspeed_plugin.zero_stage}"
    is_on = args.fsdp_plugin_args is not None or os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    return "fsdp" if is_on else ""


def check_engine(
    args: TrainingArguments, model: Any, caches: bool, distills: bool, streams: bool = False, muon: bool = False
) -> None:
    """Raises a `RecipeError` for an engine that cannot train a stage: it would fail later, or do something else."""
    unset_hf_deepspeed_config()  # till the training begins: ZeRO-3 would load and answer with all processes together
    engine = engine_of(args)
    if not engine:
        return
    key = "trainer.fsdp" if engine == "fsdp" else "trainer.deepspeed"
    if args.world_size < 2:
        raise RecipeError(f"{key}: there is one process; start it with torchrun or accelerate launch, or leave it out")
    if engine == "fsdp":
        version = (args.fsdp_plugin_args or {}).get("fsdp_version") or int(os.environ.get("FSDP_VERSION", "1"))
        settings: Any = args.fsdp_config or {}
        if version != 2 or settings.get("xla"):
            raise RecipeError(f"{key}: only version 2 of FSDP is known here; say fsdp_config.version=2")
        if not can_shard(args.device):
            raise RecipeError(f"{key}: accelerate shards no model on {args.device}, but says nothing; leave it out")
    if getattr(model, "is_quantized", False):
        raise RecipeError(
            f"{key}: a quantised language model cannot be divided; leave it out, each process has its own"
        )
    if streams:
        raise RecipeError(f"{key}: a stream was never trained from with it; leave out data.streaming, or {key}")
    if muon:
        raise RecipeError(
            f"{key}: Muon steps by whole matrices, which an engine may divide; leave muon out of optim, or {key}"
        )
    if engine in ("fsdp", "zero3"):
        what = "data.cache_features" if caches else "distill" if distills else None
        if what is not None:
            raise RecipeError(
                f"{key}: {what} makes one process run modules that another does not, which those that hold them in "
                f"parts cannot; leave {what} out, or train with ZeRO-2 or without {key}"
            )


def can_shard(device: torch.device) -> bool:
    """Whether accelerate's FSDP does anything there; on processors it is silently left out."""
    return device.type != "cpu"


def engine_copy(model: Any) -> nn.Module:
    """The same modules once more, around the same tensors, for an engine to take apart."""
    model.to("cpu")
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    for name in ("tokenizer",):  # of a stage-1 model: large, and read only
        if hasattr(model, name):
            memo[id(getattr(model, name))] = getattr(model, name)
    made: Any = copy.deepcopy(model, memo)
    kinds = {type(module).__name__ for module in made.modules()}
    made._no_split_modules = sorted(kinds & set(model._no_split_modules or ()) - {TIED})  # accelerate wants each
    if TIED in kinds:
        made.get_input_embeddings = lambda: None  # nor does accelerate find it here
    return made


def whole(parameter: Any) -> torch.Tensor:
    """A parameter that processes may hold in parts; all of them call it. What an engine trains in half precision comes
    in the full one that it keeps beside it.
    """
    if hasattr(parameter, "full_tensor"):
        return parameter.detach().full_tensor()
    if parameter.requires_grad and (hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")):
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter).detach()
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return parameter.detach()


def as_held(value: torch.Tensor, parameter: Any) -> torch.Tensor:
    """A tensor of a parameter's shape as FSDP holds the parameter; all processes have the same."""
    if not hasattr(parameter, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, parameter.device_mesh, parameter.placements)


class EngineTrainer(Trainer):
    """A Trainer whose model may be an engine's copy of `home`, which is then what is saved and gone on with."""

    model: Any
    model_wrapped: Any
    optimizer: Any
    lr_scheduler: Any
    home: Any = None

    def train(self, *args, **kwargs):
        """`Trainer.train`; an engine's switches are off again when it is over."""
        if self.home is None:
            return super().train(*args, **kwargs)
        before = {name: os.environ.get(name) for name in SWITCHES}
        try:
            done = super().train(*args, **kwargs)
            self.bring_home()
            self._release()
            return done
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                os.environ.update({} if value is None else {name: value})

    def _pairs(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """Name, parameter at home, parameter of the engine, in the order that all processes have."""
        own = self.accelerator.unwrap_model(self.model)
        for module in own.modules() if self.is_fsdp_enabled else ():
            if hasattr(module, "reshard"):  # behind an evaluation it may be whole
                module.reshard()
        for (name, parameter), other in zip(self.home.named_parameters(), own.parameters(), strict=True):
            yield name, parameter, other

    @torch.no_grad()
    def bring_home(self) -> None:
        """Give the model at home what was trained; all processes call it.

        Raises:
            FrozenTensorError: a frozen tensor is no longer what it is at home.
        """
        moved = []
        for name, parameter, other in self._pairs():
            value = whole(other).to(parameter.device)
            if parameter.requires_grad:
                parameter.copy_(value)
            elif not torch.equal(value, parameter.to(value.dtype)):
                moved.append(name)
        raise_if_moved(moved)
        frozen = set(frozen_tensors(self.home))
        own = self.accelerator.unwrap_model(self.model).named_buffers()
        for (name, buffer), (_, other) in zip(self.home.named_buffers(), own, strict=True):
            if name not in frozen:
                buffer.copy_(other)

    @torch.no_grad()
    def send_out(self) -> None:
        """Give FSDP's copy what is trained at home."""
        for _, parameter, other in self._pairs():
            if parameter.requires_grad:
                other.copy_(as_held(parameter.detach().to(device=other.device, dtype=other.dtype), other))

    def _release(self) -> None:
        """The engine is done with: its memory is free again, and the Trainer's model is the one at home."""
        if hasattr(self.model_wrapped, "destroy"):
            self.model_wrapped.destroy()
        unset_hf_deepspeed_config()
        self.accelerator.free_memory()
        self.model = self.model_wrapped = self.callback_handler.model = self.home
        self.optimizer = self.lr_scheduler = self.callback_handler.optimizer = None
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.home.parameters())
        device = self.args.device
        if device.type == "cuda" and self.args.should_save and torch.cuda.mem_get_info(device)[0] > 1.5 * size:
            self.home.to(device)  # the first process evaluates

    def save_model(self, output_dir=None, _internal_call: bool = False) -> None:
        """An ordinary checkpoint, whatever holds the model."""
        if self.home is None:
            super().save_model(output_dir, _internal_call)
            return
        self.bring_home()
        with self._at_home():
            self._save(output_dir)

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        model, is_fsdp = self.model, self.is_fsdp_enabled
        self.model, self.is_fsdp_enabled = self.home, False
        try:
            yield
        finally:
            self.model, self.is_fsdp_enabled = model, is_fsdp

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """DeepSpeed's own state, without the weights that are frozen; of FSDP what one process would write."""
        if self.home is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        if self.is_deepspeed_enabled:
            self.model_wrapped.save_checkpoint(output_dir, exclude_frozen_parameters=True)
        else:
            state = self.optimizer.state_dict()
            state["state"] = {
                index: {name: whole(value) for name, value in values.items()}
                for index, values in state["state"].items()
            }
            if self.args.should_save:
                torch.save(state, os.path.join(output_dir, OPTIMIZER_NAME))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        if self.home is None or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with self._at_home():
            super()._load_optimizer_and_scheduler(checkpoint)
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:
                    values[name] = as_held(value, parameter)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        if self.home is None or resume_from_checkpoint is None:
            return super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        made = super()._prepare_for_training(max_steps, train_dataloader, None)
        self._load_weights(resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        self._load_scaler(resume_from_checkpoint)
        return made

    def _load_weights(self, folder: str) -> None:
        if self.is_deepspeed_enabled:
            deepspeed_load_checkpoint(self.model_wrapped, folder, load_module_strict=False)
            return
        with self._at_home():
            self._load_from_checkpoint(folder)
        self.send_out()

    def _load_best_model(self) -> None:
        if self.home is None:
            super()._load_best_model()
        else:
            self._load_weights(str(self.state.best_model_checkpoint))


__all__ = ["EngineTrainer", "check_engine", "deepspeed_settings", "engine_copy", "engine_of", "import_quietly"]

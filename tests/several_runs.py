# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Several command lines of `xllm` one after the other in one process, or in those of torchrun: starting takes long.

    python -m torch.distributed.run --nproc_per_node 2 tests/several_runs.py lines.json

`lines.json` holds a list of lists of arguments; {"kill": [rank, step]} before one kills a process in that step of it,
{"poison": [module, rank, step]} makes a module give NaN there.
Nothing is drawn that would depend on the number of processes: hard negatives are the hardest. accelerate shards no
model on processors; here it is made to, so that its FSDP2 runs on two processes of gloo as it does on GPUs. DeepSpeed
compiles an operator for processors, which is left out: gloo does without.
"""

import importlib
import json
import math
import os
import signal
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, DistributedType, PartialState
from transformers.integrations.deepspeed import is_deepspeed_available

from xllm.cli import main
from xllm.modeling_xllm.stage1 import modeling_qformer_pretraining as qformer
from xllm.training.trainers import engines
from xllm.training.trainers.trainer import XLLMTrainer


BEGIN, DRAW, STEP = AcceleratorState.__init__, qformer.draw_hard_negatives, XLLMTrainer.training_step


def begin(self, *args, fsdp_plugin=None, **kwargs) -> None:
    """`AcceleratorState` as it is where there are several GPUs."""
    is_new = not self._shared_state
    BEGIN(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if is_new and fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


def without_compiler() -> None:
    """DeepSpeed, if it is there, uses gloo alone."""
    if is_deepspeed_available():
        engines.import_quietly()
        importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None


def kill_at(rank: int, step: int) -> None:
    """SIGKILL for the process of this rank, before it computes anything of this step."""

    def training_step(self, *args, **kwargs):
        if self.args.process_index == rank and self.state.global_step + 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return STEP(self, *args, **kwargs)

    XLLMTrainer.training_step = training_step


def poison(name: str, rank: int, step: int) -> None:
    """NaN is what a module gives on the process of this rank from this step on."""

    def training_step(self, *args, **kwargs):
        if self.args.process_index == rank and self.state.global_step + 1 == step:
            for model in (self.home, self.accelerator.unwrap_model(self.model)):
                if model is not None:
                    model.get_submodule(name).register_forward_hook(lambda module, args, output: output * math.nan)
        return STEP(self, *args, **kwargs)

    XLLMTrainer.training_step = training_step


if __name__ == "__main__":
    without_compiler()
    AcceleratorState.__init__ = begin
    engines.can_shard = lambda device: True
    qformer.draw_hard_negatives = lambda scores, positives, hardest: DRAW(scores, positives, hardest=True)
    for line in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        if isinstance(line, dict):
            kill_at(*line["kill"]) if "kill" in line else poison(*line["poison"])
        elif status := main(line):
            sys.exit(status)

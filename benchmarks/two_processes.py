# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Steps of two processes with any mixture of modalities against the same steps of one process.

    python benchmarks/two_processes.py --mixes 1000 --kinds ddp,fsdp

Each process draws its own rows (text, images, video, speech, several of them), so that one mostly lacks what the other
has. A step of both must move the weights as one process does that reads all rows with gradient accumulation: relative
to the step's update within 1e-6. Kinds: ddp, fsdp (`fully_shard` on every block of language model, encoders and
interfaces), zero2 and zero3 (DeepSpeed). Models: ChatGLM and Llama; stages 2 and 3, one modality, trained encoders, a
C-Former that never fires; with and without gradient checkpointing and accumulation. Prints one line of JSON per
model; exit status 1 for a difference or a hang.
"""

import argparse
import copy
import faulthandler
import json
import os
import random
import sys
import time
from contextlib import nullcontext
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import torch
from several_runs import without_compiler
from tiny import IMAGE, SPEECH, VIDEO, batch_of, mixed_rows, tiny_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from xllm import freeze_for_stage
from xllm.modeling_xllm import modeling_xllm


MOST = 1e-6
STEPS = 8  # of one model, before another is built
RATE = 2.0  # large: an update must not drown in the rounding of the weights
ROWS = mixed_rows()
# Name -> stage, modalities, what is trained besides.
TASKS = {
    "align": (2, None, None),
    "integrate": (3, None, None),
    "one modality": (2, ["image"], None),
    "mute": (2, None, None),
    "trained encoders": (2, None, ("vision_tower", "audio_tower")),
}


def build(text: str, task: str):
    """The model of a task, in train mode without dropout."""
    model = tiny_model(text)
    stage, modalities, towers = TASKS[task]
    freeze_for_stage(model, stage, modalities)
    for name in towers or ():
        getattr(model.model, name).requires_grad_(True)
    if towers:  # parts that no picture or clip reaches
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and "pooler" not in name)
    if task == "mute":
        with torch.no_grad():
            model.model.interfaces["speech"].converter.cif.weight_proj.bias.fill_(-20.0)
    for module in model.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model.train()


def inputs_of(rows: tuple[int, ...]) -> dict:
    """The batch of these rows, with every real token as a target."""
    batch = batch_of([ROWS[row] for row in rows])
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def targets_of(rows: tuple[int, ...]) -> int:
    """Targets of the batch, without placeholders and each row's first token."""
    labels = inputs_of(rows)["labels"][:, 1:]
    return int((~torch.isin(labels, torch.tensor([-100, IMAGE, VIDEO, SPEECH]))).sum())


class Single:
    """The reference: all rows in one process, one batch after the other."""

    def __init__(self, model):
        self.model = copy.deepcopy(model)

    def step(self, weights: dict, batches: list[tuple[int, ...]]) -> dict[str, torch.Tensor]:
        """Gradients at these weights, by name."""
        several, modeling_xllm.world_size = modeling_xllm.world_size, lambda: 1
        try:
            self.model.load_state_dict(weights, strict=False)
            self.model.zero_grad()
            total = sum(map(targets_of, batches))
            for rows in batches:
                self.model(**inputs_of(rows), num_items_in_batch=torch.tensor(total)).loss.backward()
        finally:
            modeling_xllm.world_size = several
        return {name: p.grad for name, p in self.model.named_parameters() if p.grad is not None}


class Wrapped:
    """The same model on all processes."""

    def __init__(self, model, kind: str, accumulation: int):
        self.model, self.kind, self.engine = model, kind, model
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if kind == "ddp":
            self.engine = torch.nn.parallel.DistributedDataParallel(model)
        elif kind == "fsdp":
            mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
            for module in reversed(list(model.modules())):
                if type(module).__name__ in model._no_split_modules:
                    fully_shard(module, mesh=mesh)
            fully_shard(model, mesh=mesh)
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.SGD(trained, lr=RATE)
        if kind.startswith("zero"):
            import deepspeed

            self.engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=self.optimizer,
                dist_init_required=False,
                config={
                    "train_micro_batch_size_per_gpu": 1,
                    "gradient_accumulation_steps": accumulation,
                    "gradient_clipping": 0.0,
                    "zero_allow_untested_optimizer": True,
                    "zero_optimization": {"stage": int(kind[-1]), "stage3_param_persistence_threshold": 0},
                },
            )

    def weights(self) -> dict[str, torch.Tensor]:
        """The trained parameters, whole, on every process."""
        found = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                found[name] = self._whole(parameter)
        return found

    def _whole(self, parameter) -> torch.Tensor:
        if hasattr(parameter, "ds_id"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                return parameter.detach().clone()
        parameter = parameter.detach()
        return parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter.clone()

    def step(self, own: list[tuple[int, ...]], total: int) -> None:
        """One step on this process's batches."""
        world = distributed.get_world_size()
        for number, rows in enumerate(own):
            is_last = number == len(own) - 1
            if self.kind == "fsdp":
                self.engine.set_requires_gradient_sync(is_last)
            with self.engine.no_sync() if self.kind == "ddp" and not is_last else nullcontext():
                loss = self.engine(**inputs_of(rows), num_items_in_batch=torch.tensor(total)).loss * world
                if self.kind.startswith("zero"):
                    self.engine.backward(loss * len(own))  # it divides by the number of accumulated batches
                    self.engine.step()
                else:
                    loss.backward()
        if not self.kind.startswith("zero"):
            self.optimizer.step()
            self.optimizer.zero_grad()

    def close(self) -> None:
        """Free what DeepSpeed holds."""
        if self.kind.startswith("zero"):
            self.engine.destroy()


def compare(kind: str, text: str, task: str, checkpointing: bool, accumulation: int, draw: random.Random) -> dict:
    """The largest difference of `STEPS` steps of one model."""
    model = build(text, task)
    if not kind.startswith("zero"):  # DeepSpeed knows no float64
        model.double()
    single = Single(model)
    if checkpointing:
        model.activation_checkpointing_enable()
    wrapped = Wrapped(model, kind, accumulation)
    rank, world = distributed.get_rank(), distributed.get_world_size()
    worst, started = 0.0, time.perf_counter()
    for _ in range(STEPS):
        batches = [
            [tuple(draw.randrange(len(ROWS)) for _ in range(draw.choice((1, 1, 2)))) for _ in range(accumulation)]
            for _ in range(world)
        ]
        before = wrapped.weights()
        everyone = [rows for own in batches for rows in own]
        wrapped.step(batches[rank], sum(map(targets_of, everyone)))
        after = wrapped.weights()
        gradients = single.step(before, everyone)
        error = sum(
            float((after[name] - (value - RATE * gradients.get(name, torch.zeros(())))).double().square().sum())
            for name, value in before.items()
        )
        update = sum(float((RATE * gradient).double().square().sum()) for gradient in gradients.values())
        # A batch of text alone trains nothing; nothing may move then.
        worst = max(worst, (error / update) ** 0.5 if update else float(error > 0))
    wrapped.close()
    seconds = round(time.perf_counter() - started, 2)
    return {
        "kind": kind, "text": text, "task": task, "checkpointing": checkpointing, "accumulation": accumulation,
        "steps": STEPS, "worst": worst, "seconds": seconds,
    }  # fmt: skip


def main() -> int:
    """Run the mixes on each of the processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixes", type=int, default=40, help="steps of each kind")
    parser.add_argument("--kinds", default="ddp,fsdp")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=120, help="seconds of one model that count as a hang")
    args = parser.parse_args()
    if "RANK" not in os.environ:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        os.execv(sys.executable, [*launcher, *sys.argv])
    torch.set_num_threads(1)
    if "zero" in args.kinds:
        without_compiler()
    distributed.init_process_group("gloo")
    worst, steps = 0.0, 0
    for kind in args.kinds.split(","):
        draw = random.Random(args.seed)  # the same on every process
        for number in range(-(-args.mixes // STEPS)):
            faulthandler.dump_traceback_later(args.limit, exit=True)
            task = list(TASKS)[number % len(TASKS)]
            text = draw.choice(("chatglm", "llama"))
            found = compare(kind, text, task, draw.random() < 0.5, draw.choice((1, 2)), draw)
            worst, steps = max(worst, found["worst"]), steps + STEPS
            if distributed.get_rank() == 0:
                print(json.dumps(found), flush=True)
    faulthandler.cancel_dump_traceback_later()
    if distributed.get_rank() == 0:
        print(json.dumps({"mixes": steps, "worst": worst, "most": MOST}), flush=True)
    distributed.destroy_process_group()
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())

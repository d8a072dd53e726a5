# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""What a step of `xllm train` costs beside the same step of a plain PyTorch loop, on the tiny preset.

    python benchmarks/step_overhead.py [--steps 200] [--batch 16] [--wall] [--parts] [--json]

The trainer that a recipe gets (guards, watch, notes, receipt, log, progress line of a terminal) and a bare loop
(loader, forward, backward, clipping, AdamW, schedule) take turns step by step in one process, each with a model of its
own, over the same batches. Media stay decoded. Printed per stage: milliseconds per step (medians of periods of ten
steps, each with one entry of the log; CPU time of the process unless --wall) and their ratio. With `--parts` also the
ratio of transformers' own Trainer, and of ours without one of its parts at a time.
"""

import argparse
import copy
import gc
import io
import json
import statistics
import tempfile
import time
import wave
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Trainer, TrainerCallback, get_scheduler, set_seed
from transformers.utils import logging

from xllm.assembly.opening import load_checkpoint
from xllm.assembly.tiny import build_tiny
from xllm.training.preparing import prepare, switches
from xllm.training.recipes.recipe import StageSpec
from xllm.training.recipes.strict import build
from xllm.training.running import make_learner, make_trainer
from xllm.training.saving.lineage import FreezeReceipt
from xllm.training.stages import freeze_for_stage
from xllm.training.trainers import trainer as trainers
from xllm.training.trainers.callbacks import ProgressCallback
from xllm.training.trainers.distill_trainer import DistillTrainer
from xllm.training.trainers.guards import Guards
from xllm.training.trainers.processes import SharedSteps
from xllm.training.trainers.watch import Watch


STAGES = {
    "stage 1, image": (1, ["image"]),
    "stage 2, image": (2, ["image"]),
    "stage 2, speech": (2, ["speech"]),
    "stage 3, image + video + speech": (3, ["image", "video", "speech"]),
}
PERIOD = 10  # steps between two entries of the log
WARM = 2  # periods that are not counted
PARTS = {"guards": Guards, "watch": Watch, "distillation": DistillTrainer, "several processes": SharedSteps}


class Terminal(io.StringIO):
    """Shows the progress line at every step."""

    def isatty(self) -> bool:
        return True


def draw(folder: Path, count: int) -> None:
    """Pictures of noise, second-long tones and small films, with captions, a table of each."""
    noise, tables = np.random.default_rng(0), {"image": [], "speech": [], "video": []}
    for number in range(count):
        pixels = noise.integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        samples = 8000 * np.sin(2 * np.pi * (200 + 7 * number) * np.arange(16_000) / 16_000)
        with wave.open(str(folder / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for _ in range(8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        for kind, ending in (("image", "png"), ("speech", "wav"), ("video", "mp4")):
            tables[kind].append(f"{number}.{ending},one two {number:03d}\n")
    for kind, lines in tables.items():
        (folder / f"{kind}.csv").write_text("file,text\n" + "".join(lines))


class BareLoop:
    """The loop that one would write by hand."""

    def __init__(self, model, batches, arguments, steps: int):
        self.model, self.clip = model.train(), arguments.max_grad_norm
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=arguments.learning_rate, fused=True)
        self.schedule = get_scheduler("linear", self.optimizer, 0, steps)
        self.batches = iter(batches)

    def step(self) -> None:
        """One step."""
        loss = self.model(**next(self.batches)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


class Turns(TrainerCallback):
    """After each step of the Trainer one of the bare loop; the seconds of both."""

    def __init__(self, loop: BareLoop, clock):
        self.loop, self.clock = loop, clock
        self.seconds: dict[str, list[float]] = {"trainer": [], "bare": []}

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.resumed = self.clock()

    def on_step_end(self, args, state, control, **kwargs):
        stopped = self.clock()
        self.loop.step()
        done = self.clock()
        self.seconds["trainer"].append(stopped - self.resumed)
        self.seconds["bare"].append(done - stopped)
        self.resumed = self.clock()


def without(*parts: type) -> type:
    """`XLLMTrainer` without some of its bases."""
    kept = tuple(base for base in trainers.XLLMTrainer.__bases__ if base not in parts)
    return type("Without", kept, {"receipt": None, "features": None, "one_modality": False, "groups": []})


def measure(folder: Path, stage: int, modalities: list[str], args: argparse.Namespace, kind=None) -> dict[str, float]:
    """Milliseconds per step of both; `kind` is the Trainer's class, by default what a recipe gets."""
    set_seed(0)
    model, processor = load_checkpoint(str(folder / "tiny"))
    sources = [{"path": str(folder / f"{name}.csv"), "modality": name} for name in modalities]
    spec = {"stage": stage, "modalities": modalities, "data": {"train": sources, "cache_media": True}}
    spec["trainer"] = {"max_steps": args.steps, "per_device_train_batch_size": args.batch, "logging_steps": PERIOD}
    spec["trainer"] |= {"learning_rate": 1e-4, "use_cpu": True}
    prepared = prepare(model, processor, build(StageSpec, spec, "stage", ""), 0)
    learner, task = make_learner(model, processor, prepared, None, False)
    freeze_for_stage(learner, prepared.stage, modalities, **switches(prepared.spec))
    ours = kind is None or kind is not Trainer
    make, trainers_class = make_trainer, trainers.XLLMTrainer
    import xllm.training.running as running

    running.XLLMTrainer = kind or trainers_class
    try:
        trainer = make(learner, processor, prepared, task, folder / "run", 0, Terminal() if ours else False)
    finally:
        running.XLLMTrainer = trainers_class
    trainer.receipt = FreezeReceipt(learner) if ours else None
    collator = trainer.data_collator.collator
    if not ours:
        trainer.data_collator = collator
        for callback in [*trainer.callback_handler.callbacks]:
            if isinstance(callback, (PrinterCallback, ProgressCallback)):
                trainer.remove_callback(callback)
    order = torch.randint(len(prepared.train), (args.steps * args.batch,), generator=torch.Generator().manual_seed(0))
    trainer._get_train_sampler = lambda dataset=None: order.tolist()
    batches = DataLoader(prepared.train, args.batch, sampler=order.tolist(), collate_fn=collator)
    clock = time.perf_counter if args.wall else time.process_time
    turns = Turns(BareLoop(copy.deepcopy(learner), batches, trainer.args, args.steps), clock)
    trainer.add_callback(turns)
    gc.collect()
    trainer.train()
    return {name: per_step(seconds) for name, seconds in turns.seconds.items()}


def per_step(seconds: list[float]) -> float:
    """Milliseconds: the median of the means of periods."""
    periods = [seconds[start : start + PERIOD] for start in range(WARM * PERIOD, len(seconds), PERIOD)]
    return 1e3 * statistics.median(statistics.fmean(period) for period in periods)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    for name in ("wall", "parts", "json"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    kinds: dict[str, type | None] = {"xllm train": None}
    if args.parts:
        kinds["transformers' Trainer"] = Trainer
        kinds |= {f"without {name}": without(part) for name, part in PARTS.items()}
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_tiny(folder / "tiny")
        draw(folder, 64)
        for title, (stage, modalities) in STAGES.items():
            for kind, own in kinds.items():
                times = measure(folder, stage, modalities, args, own)
                found.setdefault(title, {})[kind] = {**times, "ratio": times["trainer"] / times["bare"]}
                if not args.json:
                    line = f"{title:32} {kind:24} {times['trainer']:7.2f} ms, bare loop {times['bare']:7.2f} ms"
                    print(f"{line}, ratio {times['trainer'] / times['bare']:.3f}", flush=True)
    if args.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

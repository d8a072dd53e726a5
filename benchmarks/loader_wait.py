# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How much of training is waiting for the data loader, with worker processes and without.

    python benchmarks/loader_wait.py [--media FOLDER] [--steps 20] [--batch 8] [--width 512] [--layers 8]

Stage 3 over pictures and recordings (those of a folder, or by default drawn: 640 x 480 JPEG, FLAC of 3 seconds),
decoded, resized and turned into features by the loader, and a language model of the given size. Two runs in turns,
each twice: with as many worker processes as a recipe gets by default, and with none, where all decoding is waiting.
Printed: the share of the time between two steps that the loop waits for a batch (medians over the steps, the first
ones aside), and the ratio of the runs' times per step.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from padding import build
from PIL import Image
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.utils import logging

from xllm.processing.media_kinds import MEDIA_KINDS
from xllm.training.preparing import FEW_SAMPLES
from xllm.training.train import train
from xllm.training.trainers.trainer import XLLMTrainer


KINDS = {"image": "image", "audio": "speech"}  # type of content part -> row of the model
FIRST = 4  # steps that are not counted: workers start
LONGEST = 20_000_000  # bytes of a file that is taken


class Waits(TrainerCallback):
    """Seconds between the ends of steps, and those of them in the loader."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.waited, self.steps, self.ended = [], [], time.perf_counter()
        self.workers = args.dataloader_num_workers

    def on_step_end(self, args, state, control, **kwargs):
        now = time.perf_counter()
        self.steps.append(now - self.ended)
        self.ended = now


def watch_loader(waits: Waits) -> None:
    """Take the time that the Trainer spends in getting batches."""
    get = XLLMTrainer.get_batch_samples

    def timed(self, *args):
        began = time.perf_counter()
        try:
            return get(self, *args)
        finally:
            waits.waited.append(time.perf_counter() - began)

    XLLMTrainer.get_batch_samples = timed


def draw(folder: Path, count: int = 24) -> Path:
    """Pictures and recordings, as files."""
    noise = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(noise.integers(0, 256, (30, 40, 3), np.uint8))
        small.resize((640, 480)).save(folder / f"{number}.jpg")
        samples = (8000 * np.sin(np.arange(48_000) / (5 + number))).astype(np.int16)
        with av.open(str(folder / f"{number}.flac"), "w") as container:
            stream = container.add_stream("flac", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
            frame.sample_rate = 16_000
            resampler = av.AudioResampler("s16", "mono", 16_000, frame_size=stream.codec_context.frame_size or 4096)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    return folder


def tables(media: Path, folder: Path) -> list[dict]:
    """A table per kind, its files repeated until workers are worth while."""
    sources = []
    for kind, row in KINDS.items():
        files = [path for path in sorted(media.rglob("*")) if path.suffix.lower() in MEDIA_KINDS[kind].extensions]
        files = [path for path in files if path.stat().st_size < LONGEST]
        lines = [f'"{path.resolve()}",{number}\n' for number, path in enumerate(files)]
        lines = list(itertools.islice(itertools.cycle(lines), FEW_SAMPLES))
        (folder / f"{row}.csv").write_text("file,text\n" + "".join(lines))
        sources.append({"path": str(folder / f"{row}.csv"), "modality": row})
    return sources


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--media", type=Path)
    for name, value in {"steps": 20, "batch": 8, "width": 512, "layers": 8, "repeats": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    logging.set_verbosity_error()
    DEFAULT_CALLBACKS.append(waits := Waits())
    watch_loader(waits)
    shares: dict[str, list[float]] = {"workers": [], "none": []}
    steps: dict[str, list[float]] = {"workers": [], "none": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "media").mkdir()
        sources = tables(args.media or draw(folder / "media"), folder)
        recipe = {"model": str(build(folder, args.width, args.layers)), "stage": 3, "report_samples": 0}
        recipe |= {"modalities": list(KINDS.values()), "data": {"train": sources, "on_error": "skip"}}
        recipe["trainer"] = {"max_steps": args.steps, "per_device_train_batch_size": args.batch, "use_cpu": True}
        for run in range(2 * args.repeats):
            way = ("workers", "none")[run % 2]
            changes = {} if way == "workers" else {"trainer.dataloader_num_workers": 0}
            train({**recipe, "output_dir": str(folder / f"run{run}")}, changes, progress=False)
            pairs = list(zip(waits.waited[-args.steps :], waits.steps))[FIRST:]
            waits.waited.clear()
            shares[way] += [wait / step for wait, step in pairs]
            steps[way] += [step for _, step in pairs]
            print(
                f"{way:8} ({waits.workers} processes): {1e3 * statistics.median(steps[way]):.0f} ms per step, "
                f"{statistics.median(shares[way]):.2%} of it waiting (mean {statistics.fmean(shares[way]):.2%})",
                flush=True,
            )
    ratio = statistics.median(steps["workers"]) / statistics.median(steps["none"])
    print(f"step with workers / without: {ratio:.2f}")


if __name__ == "__main__":
    main()

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Training epochs that read the features of a frozen encoder from disk, against epochs that encode every picture.

    python benchmarks/feature_cache.py [--pictures 64] [--size 112] [--layers 12] [--width 384]

Stage 2 of an interface to pictures over a vision tower of the given size (random weights; language model and interface
of the tiny preset; decoded pictures are kept in memory), two epochs twice in one process: without a cache, and with
one. Printed: seconds of each epoch, their ratios, the disk's megabytes, and whether all tensors are equal.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import TrainerCallback
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.utils import logging

from xllm.assembly.opening import load_checkpoint
from xllm.assembly.processors import build_processor, save
from xllm.assembly.tiny import build_tiny
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration
from xllm.training.train import train


class Clock(TrainerCallback):
    """Seconds of each epoch of the last run."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.epochs: list[float] = []

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_epoch_end(self, args, state, control, **kwargs):
        self.epochs.append(time.perf_counter() - self.began)


def build(folder: Path, args: argparse.Namespace) -> Path:
    """The tiny preset over a larger vision tower."""
    model, processor = load_checkpoint(str(build_tiny(folder / "tiny")))
    values = model.config.to_dict()
    sizes = {"hidden_size": args.width, "num_hidden_layers": args.layers, "intermediate_size": 4 * args.width}
    vision = Blip2VisionConfig(image_size=args.size, patch_size=14, num_attention_heads=args.width // 64, **sizes)
    values["vision_config"] = vision.to_dict()
    for row in values["modalities"].values():
        if row["encoder"] == "vision":
            row["encoder_hidden_size"] = args.width
            if row["converter_config"]:
                row["converter_config"]["encoder_hidden_size"] = args.width
    config = XLLMConfig.from_dict(values)
    save(
        XLLMForConditionalGeneration(config), build_processor(config, processor.tokenizer, args.size), folder / "model"
    )
    return folder / "model"


def draw(folder: Path, args: argparse.Namespace) -> str:
    """Pictures of noise and their captions, as a table."""
    noise, lines = np.random.default_rng(0), []
    for number in range(args.pictures):
        Image.fromarray(noise.integers(0, 256, (args.size, args.size, 3), np.uint8)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,{number}\n")
    (folder / "pictures.csv").write_text("file,text\n" + "".join(lines))
    return str(folder / "pictures.csv")


def main() -> None:
    """Print the figures, as JSON too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"pictures": 64, "size": 112, "layers": 12, "width": 384, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    logging.disable_progress_bar()
    DEFAULT_CALLBACKS.append(clock := Clock())
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = {"model": str(build(folder, args)), "stage": 2, "modalities": ["image"], "report_samples": 0}
        recipe["trainer"] = {"num_train_epochs": 2, "per_device_train_batch_size": args.batch}
        data, tensors = {"train": draw(folder, args), "cache_media": True}, {}
        for run, cache in (("without", None), ("with", str(folder / "features"))):
            asked = {**recipe, "data": {**data, "cache_features": cache}, "output_dir": str(folder / run)}
            output = train(asked, progress=False).stages[0].folder
            seconds[run] = clock.epochs
            tensors[run] = {path.name: load_file(path) for path in sorted(output.glob("*.safetensors"))}
        with_cache = {f"{file} {key}": value for file, held in tensors["with"].items() for key, value in held.items()}
        pairs = [
            (own, with_cache[f"{file} {key}"])
            for file, held in tensors["without"].items()
            for key, own in held.items()
        ]
        stored = sum(path.stat().st_size for path in (folder / "features").rglob("*.safetensors"))
    encoded, first, cached = seconds["without"][1], *seconds["with"]
    found = {
        "seconds": {run: [round(value, 3) for value in epochs] for run, epochs in seconds.items()},
        "encoded / cached epoch": round(encoded / cached, 2),
        "first / cached epoch": round(first / cached, 2),
        "first / encoded epoch": round(first / encoded, 2),
        "KB per picture": round(stored / args.pictures / 1e3, 1),
        "equal": all(torch.equal(own, other) for own, other in pairs),
    }
    print(json.dumps(found, indent=1))
    sys.exit(0 if found["equal"] else 1)


if __name__ == "__main__":
    main()

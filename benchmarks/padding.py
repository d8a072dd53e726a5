# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""How many positions the language model computes for each real token of mixed data, by how batches are made.

    python benchmarks/padding.py [--samples 192] [--batch 8] [--width 256] [--layers 4]

Texts of 3 to 200 words (most of them short), pictures and recordings of 0.5 to 6 seconds in one stage 3, an epoch of
each way to make batches: by chance, `train_sampling_strategy: group_by_length`, `data.packing: true`, and both. Real
tokens are those that the language model attends to, of speech what was fired. Printed: positions that the language
model and the speech encoder compute for each real one, milliseconds of CPU time per real token, and their ratio to
batches by chance.
"""

import argparse
import tempfile
import time
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS
from transformers.utils import logging

from xllm.assembly.opening import load_checkpoint
from xllm.assembly.processors import build_processor, save
from xllm.assembly.tiny import PIXELS, build_tiny
from xllm.modeling_xllm.configuration_xllm import XLLMConfig
from xllm.modeling_xllm.modeling_xllm import XLLMForConditionalGeneration, XLLMModel
from xllm.training.train import train


WAYS = {
    "by chance": {},
    "group_by_length": {"trainer.train_sampling_strategy": "group_by_length"},
    "packing": {"data.packing": True},
    "packing, group_by_length": {"data.packing": True, "trainer.train_sampling_strategy": "group_by_length"},
}


class Counter(TrainerCallback):
    """Positions and real ones of the run under way, and its CPU seconds."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.computed = self.real = self.frames = self.real_frames = 0
        inner = model.model
        inner.language_model.register_forward_pre_hook(self._count, with_kwargs=True)
        inner.audio_tower.register_forward_pre_hook(self._count_frames, with_kwargs=True)
        place = XLLMModel._place

        def placed(*given):
            embeds, mask = place(inner, *given)
            self.real += int(mask.sum())
            return embeds, mask

        inner._place = placed
        self.began = time.process_time()

    def on_train_end(self, args, state, control, **kwargs):
        self.seconds = time.process_time() - self.began

    def _count(self, module, args, kwargs):
        self.computed += kwargs["inputs_embeds"].shape[:2].numel()

    def _count_frames(self, module, args, kwargs):
        self.frames += kwargs["attention_mask"].numel()
        self.real_frames += int(kwargs["attention_mask"].sum())


def draw(folder: Path, count: int) -> list[dict]:
    """Samples of four kinds, in files."""
    draw = np.random.default_rng(0)
    lines: dict[str, list[str]] = {"text": [], "image": [], "speech": []}
    for number in range(count):
        kind = ("text", "image", "speech")[number % 3]
        words = int(np.clip(draw.lognormal(2.5, 1.0), 3, 200))
        answer = " ".join(str(digit) for digit in draw.integers(0, 10, words))
        if kind == "image":
            pixels = draw.integers(0, 256, (32, 32, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
            lines[kind].append(f"{number}.png,{answer}\n")
        elif kind == "speech":
            seconds = float(np.clip(draw.lognormal(0.7, 0.6), 0.5, 6.0))
            samples = 8000 * np.sin(np.arange(int(16_000 * seconds)) / (5 + number % 20))
            with wave.open(str(folder / f"{number}.wav"), "wb") as file:
                file.setparams((1, 2, 16_000, 0, "NONE", ""))
                file.writeframes(samples.astype("<i2").tobytes())
            lines[kind].append(f"{number}.wav,{answer}\n")
        else:
            lines[kind].append(f"what is this {number},{answer}\n")
    for kind, rows in lines.items():
        header = "text,answer\n" if kind == "text" else "file,text\n"
        (folder / f"{kind}.csv").write_text(header + "".join(rows))
    text = {"path": str(folder / "text.csv"), "modality": "text", "prompts": ["{text}"], "answer": "{answer}"}
    return [text, *({"path": str(folder / f"{kind}.csv"), "modality": kind} for kind in ("image", "speech"))]


def build(folder: Path, width: int, layers: int) -> Path:
    """The tiny preset with a larger language model."""
    torch.manual_seed(0)
    model, processor = load_checkpoint(str(build_tiny(folder / "tiny")))
    values = model.config.to_dict()
    values["text_config"] |= {"hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 4 * width}
    for row in values["modalities"].values():
        row["language_hidden_size"] = width
    config = XLLMConfig.from_dict(values)
    save(XLLMForConditionalGeneration(config), build_processor(config, processor.tokenizer, PIXELS), folder / "model")
    return folder / "model"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"samples": 192, "batch": 8, "width": 256, "layers": 4}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    logging.set_verbosity_error()
    DEFAULT_CALLBACKS.append(counter := Counter())
    with tempfile.TemporaryDirectory() as name:
        folder, first = Path(name), 0.0
        recipe = {"model": str(build(folder, args.width, args.layers)), "stage": 3, "report_samples": 0}
        recipe["data"] = {"train": draw(folder, args.samples), "cache_media": True}
        recipe["trainer"] = {"num_train_epochs": 1, "per_device_train_batch_size": args.batch, "use_cpu": True}
        recipe["modalities"] = ["image", "speech"]
        for way, changes in WAYS.items():
            train({**recipe, "output_dir": str(folder / way.replace(",", ""))}, changes, progress=False)
            each = 1e3 * counter.seconds / counter.real
            first = first or each
            print(
                f"{way:26} {counter.real} tokens, computed {counter.computed / counter.real:.3f} of each, "
                f"of frames {counter.frames / counter.real_frames:.3f}; {each:.2f} ms per token, {each / first:.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()

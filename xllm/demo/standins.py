# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Makes the three stand-ins, each in a process of its own, and leaves them as folders that `from_pretrained` opens."""

import json
from pathlib import Path

import numpy as np
import torch

from xllm.demo.composite import build_config, build_model_processor
from xllm.demo.corpus import build_tokenizer
from xllm.demo.digits import draw_digit, draw_image, load_scans, random_style, split_scans
from xllm.demo.settings import DemoScale
from xllm.demo.towers import pretrain_language, pretrain_speech, pretrain_vision
from xllm.demo.voices import ENGLISH_WORDS, MANDARIN_WORDS
from xllm.processing.audio_decoding import load_audio


DRAWINGS_PER_SCAN = 5  # in the middle, and as many anywhere
WORDS = (*ENGLISH_WORDS, *MANDARIN_WORDS)


class LastLosses:
    """Remembers the mean of the last tenth of a training's losses."""

    def __init__(self):
        self.losses: list[float] = []

    def __call__(self, step: int, steps: int, loss: float) -> None:
        if step > 0.9 * steps:
            self.losses.append(loss)

    def __str__(self) -> str:
        return f"loss {sum(self.losses) / max(1, len(self.losses)):.3f}"


def make_language_model(folder: Path, scale: DemoScale, seed: int) -> str:
    """A ChatGLM that has read text alone, with its tokenizer."""
    folder.mkdir(parents=True)
    tokenizer = build_tokenizer(folder, seed)
    losses = LastLosses()
    config = build_config(tokenizer, scale).text_config
    model = pretrain_language(config, tokenizer, scale.language, seed, losses)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(losses)


def make_image_encoder(folder: Path, scale: DemoScale, seed: int) -> str:
    """A ViT that knows the digits of the training scans, wherever they stand."""
    scans = load_scans()
    train, _ = split_scans(scans.labels, scale.test_fraction, seed)
    rng = np.random.default_rng([seed, 10])
    pictures, digits, centres = [], [], []
    for index in np.tile(train, DRAWINGS_PER_SCAN)[: 2 * scale.num_images]:
        height = float(rng.uniform(0.40, 0.54))
        centre = rng.uniform(height / 2, 1 - height / 2, size=2)
        pictures.append(draw_image(scans.images[index], rng))
        pictures.append(draw_digit(scans.images[index], random_style(rng), 64, height, tuple(centre), rng))
        digits += [int(scans.labels[index])] * 2
        centres += [(0.5, 0.5), tuple(centre)]
    tokenizer = build_tokenizer_for_sizes(folder, seed)
    config = build_config(tokenizer, scale)
    processor = build_model_processor(config, tokenizer).image_processor
    batches = [pictures[start : start + 500] for start in range(0, len(pictures), 500)]
    pixels = torch.cat([processor(batch, return_tensors="pt")["pixel_values"] for batch in batches])
    losses = LastLosses()
    places = torch.tensor(centres, dtype=torch.float32)
    model = pretrain_vision(config.vision_config, pixels, torch.tensor(digits), places, scale.vision, seed, losses)
    model.save_pretrained(folder)
    return str(losses)


def make_speech_encoder(folder: Path, scale: DemoScale, seed: int, data: Path) -> str:
    """A Conformer that spells the words of the training recordings."""
    tokenizer = build_tokenizer_for_sizes(folder, seed)
    config = build_config(tokenizer, scale)
    extractor = build_model_processor(config, tokenizer).feature_extractor
    clips, words = [], []
    for line in (data / "convert_speech.jsonl").read_text(encoding="utf-8").splitlines():
        question, reply = json.loads(line)["messages"]
        wave = load_audio(str(data / question["content"][0]["path"]), extractor.sampling_rate)
        features = extractor(wave, sampling_rate=extractor.sampling_rate)["input_features"][0]
        clips.append(torch.as_tensor(features))
        text = reply["content"][0]["text"]
        words.append([WORDS.index(word) for word in (text.split() if text.isascii() else text)])
    losses = LastLosses()
    model = pretrain_speech(config.audio_config, clips, words, len(WORDS), scale.speech, seed, losses)
    model.save_pretrained(folder)
    return str(losses)


def build_tokenizer_for_sizes(folder: Path, seed: int):
    """The demo's tokenizer in a folder where it is not needed but for the sizes that depend on it."""
    scratch = folder.parent / f".{folder.name}"
    scratch.mkdir(parents=True, exist_ok=True)
    return build_tokenizer(scratch, seed)

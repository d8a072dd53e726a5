# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Each part beside what one would take instead, in turns in one process: medians of CPU time of one thread, ratios.

    OMP_NUM_THREADS=1 python benchmarks/peers.py [NAME ...] [--repetitions 9] [--json]

| name | ours | beside it | aim |
|---|---|---|---|
| decode | `generate` of the composite behind a picture | the bare language model (512 x 8), as long a prompt | 0.97 |
| mixed_step, mixed_packed | a training step of four rows of unequal lengths, also packed | the rows one by one | 1.0 |
| mixed_answers | `generate` for the same rows | the rows one by one | 1.0 |
| train_mode | `model.train()` at the paper's depth, stage 2 | `torch.nn.Module.train` of it | 1 ms |
| fbank | `XLLMFeatureExtractor`, normalised, 10 s | torchaudio's Kaldi filterbank and the same normalisation | 1.0 |
| pictures | the image processor, 640 x 480 to 224 | torchvision v2: resize, scale, normalise | 1.0 |
| cif | `integrate_and_fire` with backward, B8 T500 | FunASR's parallel form of it | 5.0 |
| cif_floor | the same | reading and writing its inputs and gradients once | 0.33 |
| compiled_decode | `generate` behind a picture, each step one graph over a static cache | as it is | |
| compiled_step | a training step of stage 2, the four rows, compiled | as it is | |
| import | `import xllm`, fresh processes | `import torch` | 0.71 |
| llama | prefill, decoding and a frozen step of ChatGLM | Llama of equal size | 1.0 |

Above 1 is faster than the other. Random weights.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import torchaudio
from chatglm import GMASK, SIZES, SOP, build, decode, prefill, training_step
from PIL import Image
from torchvision.transforms import v2
from transformers import BlipImageProcessor, CompileConfig, LlamaConfig, LlamaForCausalLM, ParakeetEncoderConfig
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig
from transformers.utils import logging

from xllm import (
    ChatGLMConfig,
    XLLMConfig,
    XLLMFeatureExtractor,
    XLLMForConditionalGeneration,
    freeze_for_stage,
    integrate_and_fire,
)
from xllm.assembly.tiny import sized_rows
from xllm.processing.picture_features import extract_pictures


Pair = dict[str, Callable[[], object]]
IMAGE, SPEECH, QUERIES = 8180, 8182, 32


def composite() -> XLLMForConditionalGeneration:
    """ChatGLM of 512 x 8 behind small towers."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    rows = {
        "image": {"num_query_tokens": QUERIES, "qformer_config": sizes, "token_id": IMAGE},
        "speech": {"cformer_config": {"cif_hidden_size": 64, **sizes}, "token_id": SPEECH, "subsampling_factor": 8},
    }
    vision = Blip2VisionConfig(**sizes, image_size=56, patch_size=14, initializer_range=0.02)
    audio = ParakeetEncoderConfig(**sizes, subsampling_conv_channels=8, layerdrop=0.0)
    text = ChatGLMConfig(**SIZES, gmask_token_id=GMASK, bos_token_id=SOP, eos_token_id=1, pad_token_id=0)
    config = XLLMConfig(modalities=sized_rows(rows), vision_config=vision, audio_config=audio, text_config=text)
    return XLLMForConditionalGeneration(config).eval().requires_grad_(False)


def row_of(words: int, picture: bool = False, seconds: float = 0, answer: int = 0) -> dict:
    """One row: a picture, a clip, words, `[gMASK] <sop>`, an answer."""
    media, ids = {}, []
    if picture:
        media["pixel_values"], ids = torch.randn(1, 3, 56, 56), [IMAGE] * QUERIES
    if seconds:
        frames = int(100 * seconds)
        media |= {"input_features": torch.randn(1, frames, 80), "input_features_mask": torch.ones(1, frames).long()}
        ids += [SPEECH] * -(-frames // 8)
    ids += torch.randint(10, 8000, (words,)).tolist() + [GMASK, SOP]
    labels = [-100] * len(ids) + (said := torch.randint(10, 8000, (answer,)).tolist())
    return {"input_ids": torch.tensor([ids + said]), "labels": torch.tensor([labels]), **media}


def batch_of(rows: list[dict]) -> dict:
    """Rows padded on the left."""
    longest = max(row["input_ids"].shape[1] for row in rows)
    batch = {name: torch.cat([row[name] for row in rows if name in row]) for name in ("pixel_values",)}
    for name, value in (("input_ids", 0), ("labels", -100)):
        pad = torch.nn.functional.pad
        batch[name] = torch.cat([pad(row[name], (longest - row[name].shape[1], 0), value=value) for row in rows])
    lengths = torch.tensor([row["input_ids"].shape[1] for row in rows])
    batch["attention_mask"] = (torch.arange(longest) >= longest - lengths[:, None]).long()
    clips = [row for row in rows if "input_features" in row]
    for name in ("input_features", "input_features_mask"):
        batch[name] = torch.nn.utils.rnn.pad_sequence([row[name][0] for row in clips], batch_first=True)
    return batch


def decoding() -> Pair:
    """64 tokens behind 256 others."""
    model, bare = composite(), build("chatglm", "cpu")
    row = row_of(256 - QUERIES - 2, picture=True)
    options = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": 8191, "pad_token_id": 0}
    features = model.encode_media(row)  # the towers are not what is compared
    ids = torch.randint(10, 8000, (1, 256))
    ids[0, -2:] = torch.tensor([GMASK, SOP])
    return {
        "ours": lambda: model.generate(row["input_ids"], modality_features=features, **options),
        "other": lambda: bare.generate(ids, **options),
    }


SHAPES = [(60, False, 0), (20, True, 0), (10, False, 5), (10, True, 8)]  # words, a picture?, seconds of sound


def stage_two() -> tuple[XLLMForConditionalGeneration, list[dict]]:
    """The composite in stage 2, and a row of each of `SHAPES` with its answer."""
    model = composite()
    rows = [row_of(*shape, answer=8 + 8 * index) for index, shape in enumerate(SHAPES)]
    freeze_for_stage(model, 2)
    return model.train(), rows


def mixed(kind: str) -> Pair:
    """Four rows: words, a picture, a clip of five seconds, a clip and a picture."""
    if kind == "answers":
        model = composite()
        options = {"max_new_tokens": 16, "do_sample": False, "eos_token_id": 8191, "pad_token_id": 0}
        rows = [row_of(*shape) for shape in SHAPES]
        for row in rows:
            row.pop("labels")
        batch = batch_of([{**row, "labels": row["input_ids"]} for row in rows])
        batch.pop("labels")
        return {
            "ours": lambda: model.generate(**batch, **options),
            "other": lambda: [model.generate(**row, **options) for row in rows],
        }
    model, rows = stage_two()
    batch = batch_of(rows)

    def step(*batches: dict, **how) -> None:
        for one in batches:
            model(**one, **how).loss.backward()
        model.zero_grad()

    return {"ours": lambda: step(batch, packing=kind == "packed"), "other": lambda: step(*rows)}


def compiled(kind: str) -> Pair:
    """What `torch.compile` gains on this machine; the first call, which compiles, is not timed."""
    if kind == "decode":
        model = composite()
        row, config = row_of(256 - QUERIES - 2, picture=True), CompileConfig(fullgraph=True, dynamic=False, mode=None)
        config._compile_all_devices = True  # transformers compiles by itself on accelerators alone
        options = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": 8191, "pad_token_id": 0}
        options |= {"modality_features": model.encode_media(row)}
        static = {"cache_implementation": "static", "compile_config": config}
        return {
            "ours": lambda: model.generate(row["input_ids"], **options, **static),
            "other": lambda: model.generate(row["input_ids"], **options),
        }
    model, rows = stage_two()
    graph, batch = torch.compile(model), batch_of(rows)

    def step(one: Callable) -> None:
        one(**batch).loss.backward()
        model.zero_grad()

    return {"ours": lambda: step(graph), "other": lambda: step(model)}


def train_mode() -> Pair:
    """28 layers of ChatGLM, 39 of ViT-g, 17 of Parakeet, the paper's interfaces; no weights."""
    with torch.device("meta"):
        model = XLLMForConditionalGeneration(XLLMConfig())
    freeze_for_stage(model, 2)
    model.train()
    return {"ours": model.train, "other": lambda: torch.nn.Module.train(model, False)}


def fbank() -> Pair:
    """Ten seconds of noise."""
    wave = (0.1 * np.random.default_rng(0).standard_normal(160_000)).astype(np.float32)
    extractor = XLLMFeatureExtractor()

    def other() -> torch.Tensor:
        found = torchaudio.compliance.kaldi.fbank(torch.from_numpy(wave)[None] * 32768, num_mel_bins=80)
        found = found - found.mean(0)
        return found / (found.square().mean(0) + 1e-7).sqrt()

    got = extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_features"][0]
    torch.testing.assert_close(got, other(), atol=1e-3, rtol=1e-3)
    return {"ours": lambda: extractor(wave, sampling_rate=16_000, return_tensors="pt"), "other": other}


def pictures() -> Pair:
    """Eight photographs' worth of noise."""
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (480, 640, 3), np.uint8)) for _ in range(8)]
    processor = BlipImageProcessor(size={"height": 224, "width": 224})
    steps = [v2.PILToTensor(), v2.Resize((224, 224), v2.InterpolationMode.BICUBIC, antialias=True)]
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
    pipeline = v2.Compose(steps)
    return {
        "ours": lambda: extract_pictures(processor, images, return_tensors="pt"),
        "other": lambda: torch.stack([pipeline(image) for image in images]),
    }


def parallel_fire(hidden: torch.Tensor, alphas: torch.Tensor, threshold: float = 1.0) -> torch.Tensor:
    """FunASR's `cif_v1`: fires where the floor of the running sum grows, and differences of sums at the fires."""
    running = alphas.cumsum(1)
    running = torch.where((running % 1.0 > 1 - 1e-5), running + 1e-5, running)  # its guard against rounding
    shifted = torch.nn.functional.pad(running.floor()[:, :-1], (1, 0))
    fires = (running.floor() > shifted).to(hidden.dtype)
    remains = (running - running.floor()) * fires
    whole = (alphas[..., None] * hidden).cumsum(1)  # (B, T, D)
    sums = whole - remains[..., None] * hidden
    counts = fires.sum(1).long()
    at_fires = sums[fires.bool()].split(counts.tolist())
    carried = (remains[..., None] * hidden)[fires.bool()].split(counts.tolist())
    tokens = []
    for row, rest in zip(at_fires, carried):
        previous = torch.nn.functional.pad(row[:-1] + rest[:-1], (0, 0, 1, 0))
        tokens.append(row - previous)
    # Sums behind a fire hold its remainder, which opens the next token.
    return torch.nn.utils.rnn.pad_sequence(
        [token + torch.nn.functional.pad(rest[:-1], (0, 0, 1, 0)) for token, rest in zip(tokens, carried)],
        batch_first=True,
    )


def cif(peer: str) -> Pair:
    """Width 256; every frame weighs 0 to 0.5."""
    torch.manual_seed(0)
    hidden = torch.randn(8, 500, 256, requires_grad=True)
    alphas = (torch.rand(8, 500) * 0.5).requires_grad_()
    tokens = integrate_and_fire(hidden, alphas, fire_threshold=1.0, tail_threshold=1.0).embeddings
    gradient = torch.randn_like(tokens)

    def ours() -> None:
        hidden.grad = alphas.grad = None
        integrate_and_fire(hidden, alphas, fire_threshold=1.0, tail_threshold=1.0).embeddings.backward(gradient)

    def funasr() -> None:
        hidden.grad = alphas.grad = None
        parallel_fire(hidden, alphas).backward(gradient)

    values, read, written = hidden.detach(), torch.empty(8, 125, 256), torch.empty_like(hidden)

    def floor() -> None:  # forward reads the states and writes the tokens; backward reads both and writes a gradient
        torch.sum(values.unflatten(1, (-1, 4)), 2, out=read)
        torch.mul(values, 0.5, out=written)
        read.sum()

    if peer == "funasr":
        torch.testing.assert_close(parallel_fire(hidden, alphas), tokens, atol=1e-3, rtol=1e-3)
    return {"ours": ours, "other": funasr if peer == "funasr" else floor}


def imports() -> Pair:
    """CPU seconds of fresh interpreters."""

    def fresh(name: str) -> float:
        code = f"import time; began = time.process_time(); import {name}; print(time.process_time() - began)"
        return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    return {"ours": lambda: fresh("xllm"), "other": lambda: fresh("torch")}


def llama(run: Callable) -> Pair:
    """ChatGLM and Llama of 512 x 8; Llama's gated MLP as many weights as the plain one of four times the width."""
    ours, sizes = build("chatglm", "cpu"), {**SIZES, "intermediate_size": 4 * 2 * 512 // 3}
    other = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=0, bos_token_id=SOP, eos_token_id=1)).eval()
    other.requires_grad_(False)
    return {"ours": lambda: run(ours), "other": lambda: run(other)}


MEASUREMENTS: dict[str, Callable[[], Pair]] = {
    "decode": decoding,
    "mixed_step": lambda: mixed("step"),
    "mixed_packed": lambda: mixed("packed"),
    "mixed_answers": lambda: mixed("answers"),
    "train_mode": train_mode,
    "fbank": fbank,
    "pictures": pictures,
    "cif": lambda: cif("funasr"),
    "cif_floor": lambda: cif("floor"),
    "compiled_decode": lambda: compiled("decode"),
    "compiled_step": lambda: compiled("step"),
    "import": imports,
    "llama prefill B1 L512": lambda: llama(prefill(1, 512, "cpu")),
    "llama prefill B8 L128": lambda: llama(prefill(8, 128, "cpu")),
    "llama decode B1": lambda: llama(decode(1, "cpu")),
    "llama decode B8": lambda: llama(decode(8, "cpu")),
    "llama step B4 L232": lambda: llama(training_step(4, 232, "cpu")),
}


def compare(pair: Pair, repetitions: int) -> dict[str, float]:
    """Medians in milliseconds and their ratio; a function that returns a number has measured by itself."""
    times: dict[str, list[float]] = {name: [] for name in pair}
    for repetition in range(repetitions + 1):
        for name, run in pair.items():
            began = time.process_time()
            own = run()
            if repetition:  # the first warms up
                times[name].append(own if isinstance(own, float) else time.process_time() - began)
    medians = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {**medians, "ratio": medians["other"] / medians["ours"]}


def main() -> None:
    """Print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="measurements whose names begin so")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = {}
    for name, make in MEASUREMENTS.items():
        if not arguments.names or name.startswith(tuple(arguments.names)):
            found[name] = compare(make(), arguments.repetitions)
            if not arguments.json:
                print(f"{name:22}", " ".join(f"{key} {value:.3f}" for key, value in found[name].items()), flush=True)
    if arguments.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

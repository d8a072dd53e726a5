# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""X-LLM on a GPU at full size: tokens per second, MFU and decoding, beside a bare LLM of equal size in the same run.

    python benchmarks/gpu.py [--minutes 30] [--models chatglm qwen3] [--json]    without a GPU: one line, exit status 2
    python benchmarks/gpu.py --device cpu --size tiny                            tries the script itself

Random weights, towers in bf16, interfaces in float32 under autocast, as `xllm train` with `dtype: bfloat16` and
`trainer.bf16=true`. A step is forward and backward of pictures (stage 2) or of a picture and speech (stage 3) in rows
of `TOKENS` tokens; the batch doubles until memory is full. The peer takes the gradient to its input embeddings over
rows of the same tokens: GPT-NeoX beside ChatGLM (the same block shape), Llama beside Qwen3.

MFU is the arithmetic that a step cannot avoid, per second, over the rate of one large bf16 matrix product measured in
this run. Per token, of parameters N in matrices: frozen LLM 4 N (forward, and backward to the activations; its weights
have no gradient), attention 8 L d per layer; interface 6 N; and what torch counts in one pass of the frozen encoders.
Decoding is bound by reading every weight once per token: bytes of the LLM over the rate of a large copy, measured.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DynamicCache,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    ParakeetEncoderConfig,
    Qwen3Config,
)
from transformers.models.blip_2.configuration_blip_2 import Blip2VisionConfig
from transformers.utils import logging

from xllm import ChatGLMConfig, X2LConfig, XLLMConfig, XLLMForConditionalGeneration, freeze_for_stage
from xllm.assembly.composing import sized_modalities
from xllm.modeling_xllm.configuration_xllm import default_modalities


TOKENS = 125  # of a row: the authors' samples without their padding (32 queries, prompt, answer)
ANSWER = 32  # of which carry loss
SPEECH = 4.0  # seconds of a clip, at 100 frames a second
IMAGE_TOKEN, SPEECH_TOKEN, GMASK, SOP, END, PAD = 5, 6, 7, 8, 9, 3
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
FULL = {  # of the language models
    "chatglm": {"hidden_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 32, "intermediate_size": 16384},
    "qwen3": {"hidden_size": 4096, "num_hidden_layers": 36, "num_attention_heads": 32, "intermediate_size": 12288},
}


def text_configs(name: str, size: str) -> tuple[Any, type, Any]:
    """Config of the language model; class and config of its peer."""
    sizes: dict[str, Any] = FULL[name] if size == "full" else TINY
    vocabulary = (130_528 if name == "chatglm" else 151_936) if size == "full" else 256
    ids = {"bos_token_id": SOP, "eos_token_id": END, "pad_token_id": PAD}
    common = {**sizes, "vocab_size": vocabulary, "max_position_embeddings": 2048}
    if name == "chatglm":
        config = ChatGLMConfig(**common, **ids, gmask_token_id=GMASK, mask_token_id=4)
        neox = GPTNeoXConfig(**common, rotary_pct=1.0, hidden_act="gelu_new", use_parallel_residual=False)
        return config, GPTNeoXForCausalLM, neox
    heads = {"num_key_value_heads": max(1, sizes["num_attention_heads"] // 4)}
    width = sizes["hidden_size"] // sizes["num_attention_heads"]
    return Qwen3Config(**common, **heads, **ids, head_dim=width), LlamaForCausalLM, LlamaConfig(**common, **heads)


def build(text_config: Any, size: str, device: str) -> XLLMForConditionalGeneration:
    """An X-LLM with ViT-g and a 0.6 B Conformer, random weights, towers in bf16."""
    sizes = {} if size == "full" else TINY
    speech = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 4096}
    table = default_modalities() if size == "full" else sized_modalities(sizes)
    rows: dict[str, X2LConfig] = {"image": table["image"], "speech": table["speech"]}
    rows["image"].token_id, rows["speech"].token_id = IMAGE_TOKEN, SPEECH_TOKEN
    config = XLLMConfig(
        text_config=text_config,
        vision_config=Blip2VisionConfig(initializer_range=0.02, **sizes),
        audio_config=ParakeetEncoderConfig(layerdrop=0.0, **(speech if size == "full" else sizes)),
        modalities=rows,
    )
    with torch.device(device):
        model = XLLMForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.model.interfaces.float()
    return model


def rows_of(model: XLLMForConditionalGeneration, batch: int, stage: int, device: str) -> dict[str, torch.Tensor]:
    """A batch of stage 2 (a picture each) or 3 (a picture and a clip each), whole rows of `TOKENS` tokens."""
    config, frames = model.config, int(100 * SPEECH)
    slots = {name: row.token_id for name, row in config.modalities.items()}
    media = [slots["image"]] * config.modalities["image"].num_query_tokens
    batch_of: dict[str, torch.Tensor] = {
        "pixel_values": torch.randn(batch, 3, *[config.vision_config.image_size] * 2, device=device)
    }
    if stage == 3:
        media += [slots["speech"]] * (frames // config.modalities["speech"].subsampling_factor)
        batch_of["input_features"] = torch.randn(batch, frames, 80, device=device)
        batch_of["input_features_mask"] = torch.ones(batch, frames, dtype=torch.long, device=device)
    length = max(TOKENS, len(media) + ANSWER + 8)
    ids = torch.randint(20, 200, (batch, length), device=device)
    ids[:, : len(media)] = torch.tensor(media, device=device)
    ids[:, -ANSWER - 2], ids[:, -ANSWER - 1] = GMASK, SOP
    labels = ids.clone()
    labels[:, :-ANSWER] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **batch_of}


# ---- the arithmetic of a step ---------------------------------------------------------------------------------------


def matrices(module: nn.Module) -> int:
    """Parameters that are multiplied with every token: those of linear and convolutional layers."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, kinds))


def step_flops(model: XLLMForConditionalGeneration, batch: dict[str, torch.Tensor]) -> float:
    """Floating-point operations of a step; see the module's first lines. The head reads the answers alone."""
    rows, length = batch["input_ids"].shape
    flops = decoder_flops(model.model.language_model, model.lm_head, rows, length)
    flops += rows * counted(model.model.vision_tower, batch["pixel_values"][:1])
    tokens = {"image": model.config.modalities["image"].num_query_tokens * rows}
    if "input_features" in batch:
        flops += rows * counted(model.model.audio_tower, batch["input_features"][:1])
        frames = batch["input_features"].shape[1] // model.config.modalities["speech"].subsampling_factor
        tokens["speech"] = frames * rows
    return flops + sum(6 * matrices(model.model.interfaces[name]) * count for name, count in tokens.items())


@torch.no_grad()
def counted(encoder: nn.Module, item: torch.Tensor) -> int:
    """What torch counts in the forward pass of an encoder, whose convolutions no formula of its parameters tells."""
    with FlopCounterMode(display=False) as counter:
        encoder(item.to(next(encoder.parameters()).dtype))
    return counter.get_total_flops()


def decoder_flops(decoder: nn.Module, head: nn.Module, rows: int, length: int) -> float:
    """Of a frozen decoder: forward, and backward to its inputs."""
    layers, width = decoder.config.num_hidden_layers, decoder.config.hidden_size
    body = 4 * matrices(decoder) * rows * length + 8 * layers * width * rows * length**2
    return body + 4 * matrices(nn.ModuleList([head])) * rows * ANSWER


# ---- measuring ------------------------------------------------------------------------------------------------------


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], device: str, repetitions: int = 5) -> float:
    """Median of one call, after one that warms up."""
    found = []
    for repetition in range(repetitions + 1):
        wait(device)
        started = time.perf_counter()
        run()
        wait(device)
        if repetition:
            found.append(time.perf_counter() - started)
    return statistics.median(found)


def product_rate(device: str, size: int) -> float:
    """FLOP/s of a large bf16 matrix product."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds(lambda: left @ right, device)


def copy_rate(device: str, count: int) -> float:
    """Bytes per second that are read in a large copy (as many are written)."""
    source = torch.empty(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / seconds(lambda: target.copy_(source), device)


def training_step(model: nn.Module, batch: dict[str, torch.Tensor], device: str) -> Callable[[], None]:
    """Forward and backward; a bare LLM takes the gradient to its embeddings."""

    def run() -> None:
        inputs = dict(batch)
        if not isinstance(model, XLLMForConditionalGeneration):
            ids = inputs.pop("input_ids")
            inputs["inputs_embeds"] = model.get_input_embeddings()(ids).requires_grad_(True)
        with torch.autocast(device, torch.bfloat16):
            model(**inputs, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def doubling(make: Callable[[int], Callable[[], None]], device: str, most: int) -> Iterator[tuple[int, float]]:
    """(rows, seconds) of steps with 1, 2, 4, ... rows, until memory is full."""
    rows = 1
    while rows <= most:
        try:
            yield rows, seconds(make(rows), device, 3)
        except torch.OutOfMemoryError:
            return
        finally:
            gc.collect()
            if device != "cpu":
                torch.cuda.empty_cache()
        rows *= 2


def decoding(model: Any, rows: int, device: str, context: int = 64, count: int = 16) -> float:
    """Tokens per second behind a context that is in the cache."""
    ids = torch.randint(20, 200, (rows, context), device=device)
    ids[:, -2], ids[:, -1] = GMASK, SOP
    how = {"do_sample": False, "eos_token_id": None, "pad_token_id": PAD, "attention_mask": torch.ones_like(ids)}
    cache = DynamicCache(config=model.config.get_text_config())
    model.generate(ids, past_key_values=cache, max_new_tokens=1, **how)

    def run() -> None:
        cache.crop(context - 1 - cache.get_seq_length())
        model.generate(ids, past_key_values=cache, max_new_tokens=count, **how)

    return rows * count / seconds(run, device, 3)


# ---- the table ------------------------------------------------------------------------------------------------------


class Subject:
    """A model to measure: X-LLM, or the bare LLM beside it."""

    def __init__(self, name: str, kind: str, arguments: argparse.Namespace):
        self.device, self.size = arguments.device, arguments.size
        text_config, peer_class, peer_config = text_configs(name, self.size)
        self.composite = kind == "X-LLM"
        if self.composite:
            self.model = build(text_config, self.size, self.device)
            self.title = f"X-LLM over {name}"
        else:
            with torch.device(self.device):
                self.model = peer_class._from_config(peer_config, dtype=torch.bfloat16).requires_grad_(False)
            self.title = f"{peer_class.__name__}, bare"

    def batch(self, rows: int, stage: int) -> dict[str, torch.Tensor]:
        """Whole rows; a bare LLM reads as many tokens of text."""
        if self.composite:
            return rows_of(self.model, rows, stage, self.device)
        ids = torch.randint(20, 200, (rows, TOKENS), device=self.device)
        labels = ids.clone()
        labels[:, :-ANSWER] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def flops(self, batch: dict[str, torch.Tensor]) -> float:
        if self.composite:
            return step_flops(self.model, batch)
        head = self.model.get_output_embeddings()
        return decoder_flops(self.model.base_model, head, *batch["input_ids"].shape)

    def training(self, stage: int, rates: dict[str, float], is_over: Callable[[], bool]) -> dict[str, Any]:
        """The batch with most tokens per second."""
        if self.composite:
            freeze_for_stage(self.model, stage)
        self.model.train()
        best: dict[str, Any] = {"tokens_per_second": 0.0}
        most = 256 if self.size == "full" else 2
        step = lambda rows: training_step(self.model, self.batch(rows, stage), self.device)  # noqa: E731
        for rows, took in doubling(step, self.device, most):
            batch = self.batch(rows, stage)
            tokens = batch["input_ids"].numel()
            if tokens / took > best["tokens_per_second"]:
                mfu = self.flops(batch) / took / rates["flops"]
                best = {"rows": rows, "seconds": took, "tokens_per_second": tokens / took, "mfu": mfu}
            if is_over():
                break
        return best

    def decoding(self, rows: int, rates: dict[str, float]) -> dict[str, float]:
        """Tokens per second, and the share of what reading the weights once per token would allow."""
        self.model.eval()
        text = [self.model.model.language_model, self.model.lm_head] if self.composite else [self.model]
        weights = sum(part.numel() * part.element_size() for one in text for part in one.parameters())
        speed = decoding(self.model, rows, self.device)
        return {"tokens_per_second": speed, "of_bound": speed / rows * weights / rates["bytes"]}


def table(arguments: argparse.Namespace, rates: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Lines of figures, one at a time; stops where the time is over."""
    end = time.monotonic() + 60 * arguments.minutes

    def is_over() -> bool:
        return time.monotonic() > end

    for name in arguments.models:
        for kind in ("X-LLM", "peer"):
            subject = Subject(name, kind, arguments)
            stages = (2, 3) if subject.composite else (2,)
            for stage in stages:
                if is_over():
                    return
                what = f"step of stage {stage}" if subject.composite else "step"
                yield {"model": subject.title, "what": what, **subject.training(stage, rates, is_over)}
            for rows in (1, 32) if arguments.size == "full" else (1, 2):
                if is_over():
                    return
                yield {"model": subject.title, "what": f"decode B{rows}", **subject.decoding(rows, rates)}
            del subject
            gc.collect()


def main() -> int:
    """Print the table, a line as soon as it is measured (or JSON)."""
    parser = argparse.ArgumentParser(description="X-LLM on a GPU at full size.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--models", nargs="+", choices=tuple(FULL), default=list(FULL))
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.device != "cpu" and not torch.cuda.is_available():
        sys.stderr.write("benchmarks/gpu.py: no GPU here; --device cpu --size tiny tries the script itself\n")
        return 2
    logging.set_verbosity_error()
    torch.manual_seed(0)
    large = arguments.size == "full"
    rates = {
        "flops": product_rate(arguments.device, 8192 if large else 128),
        "bytes": copy_rate(arguments.device, 2**31 if large else 2**20),
    }
    lines = []
    if not arguments.json:
        print(f"bf16 product {rates['flops'] / 1e12:.1f} TFLOP/s, copy {rates['bytes'] / 1e12:.2f} TB/s", flush=True)
    for line in table(arguments, rates):
        lines.append(line)
        if not arguments.json:
            figures = {key: round(value, 4) for key, value in line.items() if key not in ("model", "what")}
            print(f"{line['model']:24} {line['what']:16} {figures}", flush=True)
    if arguments.json:
        print(json.dumps({"rates": rates, "lines": lines}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speed and memory of ChatGLM against transformers' GPT-NeoX of equal size (the same block shape), both on sdpa.

    python benchmarks/chatglm.py [--threads 1] [--device cpu] [--repetitions 9] [--only NAME ...] [--json]

Both models run in one process, turn about, and medians are compared: above 1 is faster than GPT-NeoX. The frozen
training step takes the gradient to `inputs_embeds`, as X-LLM's stages do; labels are the last 32 tokens of each row.
Memory is the growth of the peak over one such step, and of loading a sharded fp16 checkpoint, each in a process of its
own. Random weights, fp32 on a CPU, bf16 on a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel
from transformers.utils import logging

from xllm import ChatGLMConfig, ChatGLMForConditionalGeneration
from xllm.modeling_xllm.conversion.thudm_layout import save_thudm_checkpoint


SIZES = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
GMASK, SOP, VOCAB, ANSWER = 8190, 8191, 8192, 32
SIZES["vocab_size"] = VOCAB


def build(name: str, device: str) -> PreTrainedModel:
    """A frozen model with random weights, "chatglm" or "gpt_neox"."""
    torch.manual_seed(0)
    if name == "chatglm":
        ids = {"gmask_token_id": GMASK, "bos_token_id": SOP, "eos_token_id": 1, "pad_token_id": 0}
        model = ChatGLMForConditionalGeneration(ChatGLMConfig(**SIZES, **ids))
    else:
        # Rotary over whole heads, GELU with tanh and one residual after another, as ChatGLM.
        config = GPTNeoXConfig(**SIZES, rotary_pct=1.0, hidden_act="gelu_new", use_parallel_residual=False)
        model = GPTNeoXForCausalLM._from_config(config, attn_implementation="sdpa")
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    return model.to(device, dtype).eval().requires_grad_(False)


def prompts(batch: int, length: int, device: str, answer: int = 0) -> torch.LongTensor:
    """Random rows that end in `[gMASK] <sop>` and `answer` more tokens."""
    ids = torch.randint(10, 8000, (batch, length), device=device)
    ids[:, length - answer - 2], ids[:, length - answer - 1] = GMASK, SOP
    return ids


def prefill(batch: int, length: int, device: str) -> Callable:
    """One pass over prompts, logits of their last token."""
    ids = prompts(batch, length, device)

    def run(model: PreTrainedModel) -> None:
        with torch.no_grad():
            model(ids, attention_mask=torch.ones_like(ids), logits_to_keep=1)

    return run


def decode(batch: int, device: str, context: int = 256, steps: int = 16) -> Callable:
    """`generate` of `steps` tokens behind a context that is in the cache already."""
    ids = prompts(batch, context, device)
    caches = {}

    def run(model: PreTrainedModel) -> None:
        cache = caches.setdefault(id(model), DynamicCache(config=model.config))
        if cache.get_seq_length() == 0:
            model.generate(ids, past_key_values=cache, max_new_tokens=1, do_sample=False)
        cache.crop(context - 1 - cache.get_seq_length())
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=cache,
            max_new_tokens=steps,
            eos_token_id=None,
            pad_token_id=0,
            do_sample=False,
        )

    return run


def training_step(batch: int, length: int, device: str, padding: int = 0) -> Callable:
    """Loss of the answers and its gradient to the embeddings; the model is frozen, in train mode.

    The last `padding` of the `length` tokens are padding, as in the authors' samples of fixed length.
    """
    ids = prompts(batch, length - padding, device, ANSWER)
    labels = ids.clone()
    labels[:, : length - padding - ANSWER] = -100
    mask = torch.nn.functional.pad(torch.ones_like(ids), (0, padding))
    ids, labels = (torch.nn.functional.pad(tensor, (0, padding), value=-100) for tensor in (ids, labels))
    ids = ids.clamp(min=0)

    def run(model: PreTrainedModel) -> None:
        embeds = model.get_input_embeddings()(ids).requires_grad_(True)
        inputs = {"input_ids": ids} if isinstance(model, ChatGLMForConditionalGeneration) else {}
        model.train()
        model(inputs_embeds=embeds, attention_mask=mask, labels=labels, use_cache=False, **inputs).loss.backward()
        model.eval()

    return run


def compare(run: Callable, models: dict[str, PreTrainedModel], repetitions: int) -> dict[str, float]:
    """Medians in seconds, the models taking turns, and their ratio."""
    # One thread is timed in CPU seconds: other work on the machine disturbs them least.
    clock = time.perf_counter if torch.cuda.is_available() or torch.get_num_threads() > 1 else time.process_time
    seconds = {name: [] for name in models}
    for repetition in range(repetitions + 1):
        for name, model in models.items():
            started = clock()
            run(model)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repetition:  # the first warms up
                seconds[name].append(clock() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {**medians, "ratio": medians["gpt_neox"] / medians["chatglm"]}


# ---- memory: each figure in a process of its own --------------------------------------------------------------------


def anonymous_memory() -> int:
    """Bytes of this process that are no mapped files (which the system can drop at any time). Linux."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def peak_growth(run: Callable[[], object]) -> int:
    """By how many bytes anonymous memory grows at most while `run` runs, looking every 2 ms."""
    before, peak, done = anonymous_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = run()  # kept until the watcher has looked
    peak = max(peak, anonymous_memory())
    done.set()
    watcher.join()
    del result
    return peak - before


def measure_memory(what: str, folder: str) -> int:
    """Bytes of one figure; runs in the child process."""
    if what == "loading":
        build("chatglm", "cpu")  # imports what loading needs
        return peak_growth(lambda: ChatGLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32))
    model = build(what, "cpu")
    training_step(1, 64, "cpu")(model)
    step = training_step(8, 232, "cpu")
    return peak_growth(lambda: step(model))


def in_child(what: str, threads: int, folder: str = "") -> float:
    """MiB measured by a fresh process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--child", what, "--folder", folder]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(child.stdout.split()[-1]) / 2**20


def loading_ratio(threads: int) -> dict[str, float]:
    """Peak growth while loading a sharded fp16 .bin checkpoint in fp32, and the size of the weights."""
    torch.manual_seed(0)
    ids = {"gmask_token_id": GMASK, "bos_token_id": SOP, "eos_token_id": 1, "pad_token_id": 0}
    model = ChatGLMForConditionalGeneration(ChatGLMConfig(**{**SIZES, "hidden_size": 1024}, **ids))
    weights = sum(parameter.numel() * 4 for parameter in model.parameters()) / 2**20
    with tempfile.TemporaryDirectory() as folder:
        save_thudm_checkpoint(model, folder, max_shard_size="50MB")
        peak = in_child("loading", threads, folder)
    return {"weights_mib": weights, "peak_mib": peak, "ratio": peak / weights}


def main() -> None:
    """Measure what was asked for, and print a line each (or JSON)."""
    parser = argparse.ArgumentParser(description="ChatGLM against GPT-NeoX of equal size.")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--only", nargs="+", default=[], help="measurements whose names contain one of these")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        print(measure_memory(arguments.child, arguments.folder))
        return
    device, figures = arguments.device, {}
    measurements = {
        "prefill B1 L512": lambda: compare(prefill(1, 512, device), models, arguments.repetitions),
        "prefill B8 L128": lambda: compare(prefill(8, 128, device), models, arguments.repetitions),
        "decode B1": lambda: compare(decode(1, device), models, arguments.repetitions),
        "decode B8": lambda: compare(decode(8, device), models, arguments.repetitions),
        "training step B4 L232": lambda: compare(training_step(4, 232, device), models, arguments.repetitions),
        "padded training step B4": lambda: compare(training_step(4, 232, device, 107), models, arguments.repetitions),
    }
    if device == "cpu":
        measurements["memory of a training step B8 L232"] = lambda: training_memory(arguments.threads)
        measurements["memory of loading"] = lambda: loading_ratio(arguments.threads)
    models = {name: build(name, device) for name in ("chatglm", "gpt_neox")}
    for name, measure in measurements.items():
        if not arguments.only or any(part in name for part in arguments.only):
            figures[name] = measure()
            if not arguments.json:
                print(name, {key: round(value, 4) for key, value in figures[name].items()}, flush=True)
    if arguments.json:
        print(json.dumps(figures, indent=2))


def training_memory(threads: int) -> dict[str, float]:
    """Peak growth of the frozen training step in MiB, and the share of ours (below 1 is less than GPT-NeoX)."""
    peaks = {name: in_child(name, threads) for name in ("chatglm", "gpt_neox")}
    return {**peaks, "ratio": peaks["chatglm"] / peaks["gpt_neox"]}


if __name__ == "__main__":
    main()

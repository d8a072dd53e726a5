# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""Speed and memory of ChatGLM against transformers' GPT-NeoX of equal size (the same block shape), both on sdpa.

    python benchmarks/chatglm.py [--threads 1] [--device cpu] [--repetitions 9] [--only NAME ...] [--json]
                                 [--published modeling_chatglm.py]

Both models run in one process, turn about, and medians are compared: above 1 is faster than GPT-NeoX. With the file
that THUDM or the authors of X-LLM published, its blocks run beside them, as its own forward runs them and without what
`generate` costs around it (`published`). The frozen training step takes the gradient to `inputs_embeds`, as X-LLM's
stages do; labels are the last 32 tokens of each row.
Memory is the growth of the peak over one such step, and of loading a sharded fp16 checkpoint, each in a process of its
own. Random weights, fp32 on a CPU, bf16 on a GPU.
"""

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedConfig, PreTrainedModel
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


class Published(nn.Module):
    """The blocks of a published `modeling_chatglm.py` between an embedding and a head, as `ChatGLMModel.forward` and
    `prepare_inputs_for_generation` of that file call them; eager attention, states `(L, B, hidden)`."""

    def __init__(self, file: str, device: str):
        super().__init__()
        code = read_published(file)
        torch.manual_seed(0)
        width, layers = SIZES["hidden_size"], SIZES["num_hidden_layers"]
        self.config = SimpleNamespace(bos_token_id=SOP)
        self.embeddings = nn.Embedding(VOCAB, width)
        sizes = {"inner_hidden_size": SIZES["intermediate_size"], "empty_init": False}
        self.layers = nn.ModuleList(
            code.GLMBlock(width, SIZES["num_attention_heads"], 1e-5, index, **sizes) for index in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)
        self.position_encoding_2d, self.layout = True, code.ChatGLMPreTrainedModel
        self.to(device, torch.float32 if device == "cpu" else torch.bfloat16).eval().requires_grad_(False)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def forward(self, input_ids, inputs_embeds=None, labels=None, pasts=None, **_) -> SimpleNamespace:
        """Logits of all tokens, as there; what other models are asked for besides is not looked at."""
        rows = [row.tolist() for row in input_ids]  # as it finds the places of its special tokens, in each step
        masks, starts = [row.index(GMASK) for row in rows], [row.index(SOP) for row in rows]
        device = input_ids.device
        if pasts is None:
            seen = self.layout.get_masks(self, input_ids, device)
            places = self.layout.get_position_ids(self, input_ids, masks, device, [True] * len(rows))
            embeds = self.embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        else:
            seen = torch.zeros(1, 1, device=device).bool()
            now = [[mask, len(row) - start] for row, mask, start in zip(rows, masks, starts)]
            places = torch.tensor(now, dtype=torch.long, device=device).unsqueeze(-1)
            embeds = self.embeddings(input_ids[:, -1:])
        states, kept = embeds.transpose(0, 1), []
        with_cache = labels is None
        for index, layer in enumerate(self.layers):
            number, past = torch.tensor(index), None if pasts is None else pasts[index]
            states, *present = layer(
                states, places, attention_mask=seen, layer_id=number, layer_past=past, use_cache=with_cache
            )
            kept.extend(present)
        logits = self.head(self.norm(states)).permute(1, 0, 2).contiguous()
        if labels is None:
            return SimpleNamespace(logits=logits, pasts=kept)
        wide, targets = logits.to(torch.float32)[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        return SimpleNamespace(loss=nn.functional.cross_entropy(wide, targets))

    @torch.no_grad()
    def continue_prompt(self, ids: torch.Tensor, pasts: list, steps: int) -> None:
        """`steps` tokens, the likeliest ones, behind what `pasts` hold of all but the last of `ids`."""
        for _ in range(steps):
            outputs = self(ids, pasts=pasts)
            ids, pasts = torch.cat([ids, outputs.logits[:, -1:].argmax(-1)], 1), outputs.pasts


def read_published(file: str) -> ModuleType:
    """The module of a published file, beside whose blocks its config class is not needed."""
    package, config = ModuleType("published"), ModuleType("published.configuration_chatglm")
    package.__path__, config.ChatGLMConfig = [], PreTrainedConfig
    sys.modules |= {"published": package, "published.configuration_chatglm": config}
    spec: Any = importlib.util.spec_from_file_location("published.modeling_chatglm", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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

    def run(model: nn.Module) -> None:
        if isinstance(model, Published):
            if id(model) not in caches:
                with torch.no_grad():  # all but the last token
                    caches[id(model)] = [[part[:-1] for part in past] for past in model(ids).pasts]
            return model.continue_prompt(ids, caches[id(model)], steps)
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
        inputs = {"input_ids": ids} if isinstance(model, (ChatGLMForConditionalGeneration, Published)) else {}
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
    beside = {"published_ratio": medians["published"] / medians["chatglm"]} if "published" in medians else {}
    return {**medians, "ratio": medians["gpt_neox"] / medians["chatglm"], **beside}


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
    parser.add_argument("--published", metavar="FILE", help="a published modeling_chatglm.py, to run beside them")
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
    models: dict[str, nn.Module] = {name: build(name, device) for name in ("chatglm", "gpt_neox")}
    if arguments.published:
        models["published"] = Published(arguments.published, device)
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

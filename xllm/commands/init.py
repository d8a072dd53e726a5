# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm init DIR`: compose a checkpoint from a preset, or from towers by Hub id or folder."""

import argparse
import sys
from copy import deepcopy
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--preset", choices=("tiny", "base", "chatglm-6b"), help="tiny: random weights, no download")
    what = "a causal LM; ID may end in @revision; default that of the X-LLMs that interfaces come from"
    parser.add_argument("--language-model", metavar="ID", help=what)
    placeholder = "a token of the vocabulary as placeholder ('image=<|reserved_0|>') instead of a new one"
    for option, metavar, meaning in (
        ("--encoder", "NAME=ID", "e.g. vision=Salesforce/blip2-opt-6.7b or speech=openai/whisper-small"),
        ("--interface", "NAME=ID", "e.g. speech=bert-base-chinese, or image=DIR of an X-LLM that has one"),
        ("--modality", "KIND[=FILE]", "add a row for status (FILE: its device), or a kind that --module registers"),
        ("--reserve", "ROW=TOKEN", placeholder),
    ):
        parser.add_argument(option, action="append", default=[], metavar=metavar, help=meaning)
    kept = "speech: its tokens become mixtures of words, by the head that the stage 1 of its --interface has left"
    parser.add_argument("--keep-words", action="append", default=[], metavar="ROW", help=kept)
    parser.add_argument(
        "--interface-size",
        metavar="WIDTHxLAYERS",
        help="of new interfaces, e.g. 256x4; default BERT base (768x12), or the language model's if that is smaller",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights that are not loaded")


def _pairs(values: list[str], option: str) -> dict[str, str]:
    pairs = dict(value.split("=", 1) for value in values if "=" in value)
    if len(pairs) < len(values):
        raise ValueError(f"{option} takes NAME=ID, got {', '.join(value for value in values if '=' not in value)}")
    return pairs


def run(args: argparse.Namespace) -> None:
    """Write the checkpoint folder."""
    from transformers import set_seed

    from xllm.assembly.composing import PRESETS, Towers, compose
    from xllm.assembly.tiny import build_tiny
    from xllm.modeling_xllm.configuration_xllm import XLLMConfig
    from xllm.modeling_xllm.conversion.output import new_folder
    from xllm.modeling_xllm.language_models import language_model_of

    options = ("language_model", "encoder", "interface", "interface_size", "reserve", "keep_words")
    if args.preset == "tiny" and (given := [f"--{name.replace('_', '-')}" for name in options if getattr(args, name)]):
        raise ValueError(f"--preset tiny is made of no towers: leave out {', '.join(given)}, or --preset tiny")
    set_seed(args.seed)
    with new_folder(args.output) as folder:
        if args.preset == "tiny":
            build_tiny(folder, args.modality)
        else:
            towers = deepcopy(PRESETS[args.preset]) if args.preset else Towers(args.language_model)
            towers.language_model = args.language_model or towers.language_model
            towers.encoders.update(_pairs(args.encoder, "--encoder"))
            towers.interfaces.update(_pairs(args.interface, "--interface"))
            size = _size(args.interface_size) if args.interface_size else None
            if other := set(args.keep_words) - set(towers.interfaces):
                raise ValueError(
                    f"--keep-words {min(other)}: give --interface {min(other)}=DIR, what its stage 1 left"
                )
            compose(towers, folder, args.modality, size, _pairs(args.reserve, "--reserve"))
            _keep_words(folder, {name: towers.interfaces[name] for name in args.keep_words})
        note = language_model_of(XLLMConfig.from_pretrained(folder)).note()
    sys.stdout.write((f"note: {note}\n" if note else "") + f"wrote {args.output}\n")


def _keep_words(folder: Path, sources: dict[str, str]) -> None:
    from xllm.assembly.opening import load_checkpoint
    from xllm.assembly.processors import save
    from xllm.training.starts import keep_words

    if not sources:
        return
    model, processor = load_checkpoint(str(folder))
    for name, source in sources.items():
        keep_words(model, name, source)
    save(model, processor, folder)


def _size(text: str) -> tuple[int, int]:
    width, _, layers = text.partition("x")
    if not (width.isdecimal() and layers.isdecimal() and int(width) % 8 == 0 and int(width) * int(layers)):
        raise ValueError(f"--interface-size takes WIDTHxLAYERS, the width a multiple of 8 (256x4), got {text!r}")
    return int(width), int(layers)

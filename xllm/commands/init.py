# Copyright 2026 The X-LLM Transformers Authors. Licensed under the Apache License, Version 2.0.
"""`xllm init DIR`: compose a checkpoint from a preset, or from towers by Hub id or folder."""

import argparse
import sys
from pathlib import Path


def add_parser(subparsers) -> argparse.ArgumentParser:
    """Declare the command."""
    parser = subparsers.add_parser("init", help="compose a checkpoint from published towers", description=__doc__)
    parser.add_argument("output", help="folder to write")
    parser.add_argument("--preset", choices=("tiny", "base", "chatglm-6b"), help="tiny: random weights, no download")
    parser.add_argument("--language-model", metavar="ID", help="a causal LM; ID may end in @revision")
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        metavar="NAME=ID",
        help="e.g. vision=Salesforce/blip2-opt-6.7b or speech=openai/whisper-small",
    )
    parser.add_argument(
        "--interface", action="append", default=[], metavar="NAME=ID", help="e.g. speech=bert-base-chinese"
    )
    parser.add_argument(
        "--modality", action="append", default=[], metavar="KIND", help="add a row for a kind that --module registers"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights that are not loaded")
    return parser


def _pairs(values: list[str], option: str) -> dict[str, str]:
    pairs = dict(value.split("=", 1) for value in values if "=" in value)
    if len(pairs) < len(values):
        raise ValueError(f"{option} takes NAME=ID, got {', '.join(value for value in values if '=' not in value)}")
    return pairs


def run(args: argparse.Namespace) -> int:
    """Write the checkpoint folder."""
    from transformers import set_seed

    from xllm.assembly import presets

    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: exists and is not an empty folder")
    if args.preset is None and args.language_model is None:
        raise ValueError("give --preset, or --language-model (with --encoder and --interface)")
    set_seed(args.seed)
    if args.preset == "tiny":
        presets.build_tiny(output, args.modality)
    else:
        towers = presets.PRESETS[args.preset] if args.preset else presets.Towers(args.language_model)
        towers.language_model = args.language_model or towers.language_model
        towers.encoders.update(_pairs(args.encoder, "--encoder"))
        towers.interfaces.update(_pairs(args.interface, "--interface"))
        presets.compose(towers, output, args.modality)
    sys.stdout.write(f"wrote {output}\n")
    return 0
